"""Any network made from a file, judged against it on a few pictures that are read once.

The figure of every trial is a metric's value, or the output fidelity where nothing says what is
right: 1 - noise, with noise = sum |a - r|^2 / sum |r|^2 of the outputs a against r, those of the
original (0.995 is a signal-to-noise ratio of 23 dB); the least of all outputs, 0 where one is not
finite. Numbers are those a GPU would compute: those of 16 bits are rounded
(`exporters.half.rounding`).
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from cbam_deploy.artefacts import OnnxFile
from cbam_deploy.data.network_input import network_feeds
from cbam_deploy.data.source import Batch, ImageSource
from cbam_deploy.errors import BadInput
from cbam_deploy.exporters.half.rounding import round_in_fp32
from cbam_deploy.graphs.signature import graph_precision
from cbam_deploy.numerics.feeds import infer_in_range
from cbam_deploy.numerics.metrics import ErrorAccumulator, TensorError
from cbam_deploy.preprocessing.choice import Asked
from cbam_deploy.report.units import MetricUnit
from cbam_deploy.runtimes.base import Runner
from cbam_deploy.runtimes.onnxruntime import OnnxRuntimeRunner
from cbam_deploy.validation.metrics import open_metric
from cbam_deploy.validation.metrics.metric import Judge, Metric, Network

FIDELITY = "fidelity"
# Pictures a trial is judged on, with a metric and without, unless it is said. Noise is told on as
# many with a metric as without: the original's outputs are kept in memory.
LABELLED, UNLABELLED = 256, 32
PROBED = 16  # Pictures on which the effect of a group by itself is measured.
_BATCH = 8
_FEW = PROBED // _BATCH  # Batches.

Outputs = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Outcome:
    """What a network came to: the `value` of the figure, and the `noise` of its outputs, 0 to 1."""

    value: float
    noise: float


class Evaluation:
    """The original's outputs for some pictures, and what they are worth.

    Attributes:
        metric: name of the metric, or ``fidelity``.
        unit: how its values are written.
        baseline: the original's value.
        images: number of pictures.
        notes: what a reader must know of it.
    """

    def __init__(
        self,
        file: OnnxFile,
        data: str,
        *,
        metric: str | None,
        preprocessing: Asked | None,
        limit: int | None,
    ) -> None:
        """Run the original.

        Args:
            file: the original.
            data: SOURCE.
            metric: what networks are judged by; ``fidelity`` for their outputs alone. None for
                top-1 where SOURCE has labels that fit the network, else that.
            preprocessing: how inputs are made from pictures.
            limit: number of pictures; None for `LABELLED` or `UNLABELLED`.

        Raises:
            BadInput: SOURCE has not what the metric needs, or the metric is 0 of the original.
        """
        self.notes: tuple[str, ...] = ()
        self._file = file
        if metric is not None:
            self._begin(metric, data, preprocessing, limit)
            return
        try:
            self._begin("top1", data, preprocessing, limit)
        except BadInput as error:
            self._begin(FIDELITY, data, preprocessing, limit)
            self.notes = (f"Judged by output fidelity; top-1 cannot judge: {error.message}.",)

    def _begin(
        self, metric: str, data: str, preprocessing: Asked | None, limit: int | None
    ) -> None:
        file = self._file
        self.metric, self._task = metric, None
        if metric == FIDELITY:
            self.unit = MetricUnit("output fidelity")
            self._source: ImageSource = file.samples(data, preprocessing, split="test")
        else:
            self._task = open_metric(metric, data, file.preparation(data, preprocessing))
            self.unit, self._source = self._task.unit, self._task.source
            self.notes = self._task.notes
        if limit is None:
            limit = UNLABELLED if self._task is None else LABELLED
        found = self._source.batches(_BATCH, limit=limit, shuffle_seed=0)
        self._references: list[Outputs] = []
        with OnnxRuntimeRunner(file.path) as runner:
            if self._task is not None:
                self._judge(self._task, runner)  # Refuses a network of another kind at once.
            self._batches = tuple(found)
            most = None if self._task is None else UNLABELLED // _BATCH
            self._references += [self._infer(runner, batch) for batch in self._batches[:most]]
            self.images = sum(map(len, self._batches))
            self.baseline = self._outcome(runner, self._batches).value
            self._few_baseline = self._outcome(runner, self._batches[:_FEW]).value
        if self._task is not None and self.unit.share and self.baseline <= 0:
            raise BadInput(
                f"the original's {self.unit.label} on {data} is {self.unit.text(self.baseline)}",
                f"judge by its outputs: --metric {FIDELITY}",
            )

    def judge(self, model: ir.Model, *, few: bool = False) -> Outcome:
        """What a network is worth, which is changed for it.

        Args:
            model: made from the original.
            few: on `PROBED` pictures; the value is then as far below `baseline` as it fell there.

        Raises:
            BadInput: ONNX Runtime cannot run it.
        """
        precision = graph_precision(model)
        round_in_fp32(model)
        batches = self._batches[:_FEW] if few else self._batches
        folder, proto = self._file.path.parent, ir.to_proto(model)
        with OnnxRuntimeRunner(
            proto, folder=folder, title="a trial", precision=precision, exact_biases=True
        ) as runner:
            found = self._outcome(runner, batches)
        if few:
            return Outcome(self.baseline - self._few_baseline + found.value, found.noise)
        return found

    def fingerprint(self) -> str:
        """Hash of pictures, what the original makes of them, and what that is worth."""
        digest = hashlib.sha256(f"{self.metric} {self.baseline!r}".encode())
        function = Path(self.metric.rpartition(":")[0])
        if function.is_file():
            digest.update(function.read_bytes())
        for arrays in (*(batch.inputs for batch in self._batches), *self._references):
            for name, array in arrays.items():
                digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def _infer(self, runner: Runner, batch: Batch) -> Outputs:
        feeds = network_feeds(batch.inputs, self._source, runner.inputs)
        return infer_in_range(runner.infer, feeds, runner.batch_range, str(self._file.title))

    def _judge(self, task: Metric, runner: Runner) -> Judge:
        provenance = self._file.provenance
        names = provenance.class_names if provenance else ()
        return task.judge(Network(self._file.title, tuple(runner.outputs), names))

    def _outcome(self, runner: Runner, batches: Sequence[Batch]) -> Outcome:
        judge = None if self._task is None else self._judge(self._task, runner)
        errors = {spec.name: ErrorAccumulator(spec.name) for spec in runner.outputs}
        same_shapes = True
        for batch, reference in itertools.zip_longest(batches, self._references[: len(batches)]):
            outputs = self._infer(runner, batch)
            if judge is not None:
                judge.add(outputs, batch.indices)
            for name, wanted in (reference or {}).items():
                if outputs[name].shape == wanted.shape:
                    errors[name].add(wanted, outputs[name])
                else:
                    same_shapes = False
        noises = [_noise(error.result()) for error in errors.values()]
        noise = max(noises) if same_shapes else 1.0
        if judge is None:
            return Outcome(1.0 - noise, noise)
        return Outcome(judge.score().readings[0].value or 0.0, noise)


def _noise(error: TensorError) -> float:
    """Error energy over energy, at most 1, also where something is not finite."""
    if error.nonfinite > error.reference_nonfinite:
        return 1.0
    return min(1.0, 10 ** (-error.snr_db / 10))
