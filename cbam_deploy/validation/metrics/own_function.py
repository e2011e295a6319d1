"""A metric that a function of the person's own computes.

It is imported only where the person named it on the command line. It gets all outputs at once, a
dictionary of arrays [N, ...] by the names of the network's outputs, and the targets: labels int64
[N] where the data has class folders, else the names of the pictures (their paths), by which it
finds its own. It returns one number, the larger the better.
"""

from __future__ import annotations

import math

import numpy as np

from cbam_deploy.data.open_source import open_source
from cbam_deploy.errors import BadInput
from cbam_deploy.foreign_code import foreign_code, importable, named_object
from cbam_deploy.machine import check_memory
from cbam_deploy.preprocessing import Preprocessing
from cbam_deploy.report.units import MetricUnit
from cbam_deploy.validation.metrics.metric import (
    Indices,
    Judge,
    Metric,
    Network,
    Outputs,
    Reading,
    Score,
)

_FORM = "give package.module:function or path/file.py:function, of outputs and targets"


class OwnFunction(Metric):
    """What the function `name` says.

    Args:
        name: as the person wrote it.
        data: SOURCE; of one with a split, its held-out part.
        preprocessing: how network inputs are made from its pictures.
    """

    unit = MetricUnit("value", share=False)

    def __init__(self, name: str, data: str, preprocessing: Preprocessing) -> None:
        self.name = name
        self.function = named_object(name, "metric", _FORM)
        self.source = open_source(data, preprocessing, split="test")

    def judge(self, network: Network) -> Judge:
        """For networks of any outputs."""
        return _Judge(self, network)


class _Judge(Judge):
    def __init__(self, metric: OwnFunction, network: Network) -> None:
        self._metric = metric
        self._network = network
        self._outputs: list[Outputs] = []
        self._indices: list[Indices] = []

    def add(self, outputs: Outputs, indices: Indices) -> None:
        if not self._outputs:
            each = sum(array.nbytes for array in outputs.values()) / len(indices)
            # Once in pieces, once in one piece for the function.
            needed = 2 * round(each * len(self._metric.source))
            check_memory(needed, f"{self._network.name}: all its outputs for {self._metric.name}")
        self._outputs.append(outputs)
        self._indices.append(indices)

    def score(self) -> Score:
        name, source = self._metric.name, self._metric.source
        outputs = {
            key: np.concatenate([piece[key] for piece in self._outputs]) for key in self._outputs[0]
        }
        indices = np.concatenate(self._indices)
        targets = (
            [source.names[index] for index in indices.tolist()]
            if source.labels is None
            else source.labels[indices]
        )
        with importable(name), foreign_code(f"{name}: judging {self._network.name}"):
            value = float(self._metric.function(outputs, targets))
        if not math.isfinite(value):
            raise BadInput(
                f"{name}: says {value} of {self._network.name}", "return a finite number"
            )
        return Score((Reading("value", self._metric.unit, value),))
