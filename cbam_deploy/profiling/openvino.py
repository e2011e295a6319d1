"""Time the operators of OpenVINO's graph by its own counters, which know the file's names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cbam_deploy.artefacts import OnnxFile
from cbam_deploy.benchmarking.benchmark import Contender
from cbam_deploy.numerics.tensors import Arrays
from cbam_deploy.profiling.kernels import Conversion, Kernel, LayerTimer, precision_of
from cbam_deploy.runtimes.base import Execution
from cbam_deploy.runtimes.openvino import OpenVinoRunner

_COLD_RUNS = 3  # In which kernels are compiled and memory is taken; their times are subtracted.
_CUT = 0.5  # Counters are whole microseconds, cut: what is lost of each, on average.
_CONVERSIONS: dict[str, Conversion] = {
    "Reorder": "reorder", "FakeQuantize": "quantize", "Convert": "cast",
}  # fmt: skip


@dataclass(frozen=True)
class Counter:
    """What OpenVINO says of one operator: its facts, and its time in all runs so far, in us."""

    facts: Mapping[str, str]
    microseconds: float


@contextmanager
def layer_timer(contender: Contender) -> Iterator[LayerTimer]:
    """The timer of an ONNX file; raises like `OpenVinoRunner`."""
    file, threads = contender.file, contender.source.threads
    assert isinstance(file, OnnxFile)
    with OpenVinoRunner(file, threads=threads, counting=True) as runner:
        yield _Timer(runner, contender.feeds)


class _Timer(LayerTimer):
    def __init__(self, runner: OpenVinoRunner, feeds: Arrays) -> None:
        self._runner = runner
        self.execution = self._counted = _Counted(runner.prepare(feeds))
        self._counted.execution.measure(_COLD_RUNS)
        self._before = counters(runner.executed(), _COLD_RUNS)

    def kernels(self) -> Sequence[Kernel]:
        """The operators, each with its mean, scaled from the mean run to the median one."""
        walls = np.concatenate(self._counted.seconds)
        runs = len(walls)
        after = counters(self._runner.executed(), _COLD_RUNS + runs)
        scale = 1e-6 / runs * float(np.median(walls) / walls.mean())
        originals = {c.facts["name"]: _originals(c.facts) for c in after}
        return [
            Kernel(
                now.facts["name"],
                now.facts.get("layerType", ""),
                max(now.microseconds - before.microseconds, 0.0) * scale,
                precision_of([now.facts.get("runtimePrecision", "")]),
                _originals(now.facts) or originals.get(now.facts["reads"], ()),
                _conversion(now.facts),
            )
            for before, now in zip(self._before, after, strict=True)
            if now.microseconds
        ]


class _Counted(Execution):
    """Remembers what the runs took, to set it beside counters that know only their sum."""

    def __init__(self, execution: Execution) -> None:
        self.execution = execution
        self.seconds: list[NDArray[np.float64]] = []

    def measure(self, runs: int) -> NDArray[np.float64]:
        """Wall-clock seconds of each run, the counting in it."""
        self.seconds.append(self.execution.measure(runs))
        return self.seconds[-1]


def counters(executed: Sequence[Mapping[str, str]], runs: int) -> list[Counter]:
    """The facts of `OpenVinoRunner.executed` after `runs`, with sums in the place of means."""
    found = []
    for facts in executed:
        mean = facts.get("execTimeMcs", "")
        found.append(Counter(facts, runs * (int(mean) + _CUT) if mean.isdigit() else 0.0))
    return found


def _originals(facts: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(filter(None, facts.get("originalLayersNames", "").split(",")))


def _conversion(facts: Mapping[str, str]) -> Conversion:
    names = _originals(facts)
    if names and all("/Dequantization" in name for name in names):
        return "dequantize"
    return _CONVERSIONS.get(facts.get("layerType", ""), "")
