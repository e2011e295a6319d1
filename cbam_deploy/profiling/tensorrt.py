"""Time the layers of an engine by TensorRT's own profiler; its inspector says what they are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from cbam_deploy.benchmarking.benchmark import Contender
from cbam_deploy.numerics.tensors import Arrays
from cbam_deploy.profiling.kernels import Kernel, LayerTimer, precision_of
from cbam_deploy.profiling.runs import typical
from cbam_deploy.runtimes.tensorrt import TensorRTRunner

_FUSED = re.compile(r"\s*\+\s*|\s*,\s*")
_NAMED = re.compile(r"[^\[\]{}()]+")
_REFORMAT = "Reformat"


@contextmanager
def layer_timer(contender: Contender) -> Iterator[LayerTimer]:
    """The timer of an engine, which runs it without CUDA graphs."""
    assert isinstance(contender.runner, TensorRTRunner)
    yield _Timer(contender.runner, contender.feeds)


class _Timer(LayerTimer):
    def __init__(self, runner: TensorRTRunner, feeds: Arrays) -> None:
        self._times: list[dict[str, float]] = []
        self.execution, information = runner.prepare_profiled(feeds, self._times)
        self._facts = layer_facts(information)

    def kernels(self) -> Sequence[Kernel]:
        """The layers, each with what it typically takes."""
        names = list(dict.fromkeys(name for run in self._times for name in run))
        seconds = typical([np.array([run.get(n, 0.0) for run in self._times]) for n in names])
        return [
            kernel(name, float(taken), self._facts.get(name, {}))
            for name, taken in zip(names, seconds, strict=True)
        ]


def layer_facts(information: str) -> dict[str, dict[str, Any]]:
    """What the inspector's JSON says of each layer, by its name; engines may hold names alone."""
    layers = json.loads(information).get("Layers", [])
    return {str(layer["Name"]): layer for layer in layers if isinstance(layer, dict)}


def kernel(name: str, seconds: float, facts: Mapping[str, Any]) -> Kernel:
    """A layer as a kernel: fused nodes are named in it, one after the other with a plus."""
    operator = str(facts.get("LayerType", ""))
    reformat = operator.startswith(_REFORMAT) or name.startswith("Reformatting")
    inputs = facts.get("Inputs", [])
    types = [str(entry.get("Format/Datatype", "")).split(" ")[0].lower() for entry in inputs]
    halves = {"half": "float16", "fp16": "float16", "fp32": "float32"}
    parts = (part for named in _NAMED.findall(name) for part in _FUSED.split(named))
    return Kernel(
        name,
        operator or ("Reformat" if reformat else "layer"),
        seconds,
        precision_of([halves.get(kind, kind) for kind in types]),
        tuple(part.strip() for part in parts if part.strip()),
        "reorder" if reformat else "",
    )
