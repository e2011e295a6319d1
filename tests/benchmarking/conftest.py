"""A machine whose clock only its own runs move, so that no test depends on the real one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import parser

from cbam_deploy.benchmarking.result import BenchReport, Entry
from cbam_deploy.numerics.tensors import TensorSpec
from cbam_deploy.report.units import Estimate
from cbam_deploy.runtimes.base import Execution, Runner

NETWORK = """
<ir_version: 10, opset_import: ["" : 18]>
network (float[batch,2] input) => (float[batch,2] logits) { logits = Relu (input) }
"""


class Machine:
    """Runs take what `slowness` of the time so far makes of their nominal duration."""

    def __init__(self, slowness: Callable[[float], float] = lambda now: 1.0) -> None:
        self.now = 0.0
        self.slowness = slowness
        self.log: list[tuple[str, int]] = []
        self.active: list[str] = []

    def execution(self, seconds: float, name: str = "") -> FakeExecution:
        return FakeExecution(self, seconds, name)


class FakeExecution(Execution):
    def __init__(self, machine: Machine, seconds: float, name: str) -> None:
        self.machine, self.seconds, self.name = machine, seconds, name

    def measure(self, runs):
        self.machine.log.append((self.name, runs))
        durations = []
        for _ in range(runs):
            durations.append(self.seconds * self.machine.slowness(self.machine.now))
            self.machine.now += durations[-1]
        return np.array(durations)

    def peak_memory_bytes(self):
        return 1_000_000


class FakeRunner(Runner):
    """Takes `seconds` per image; its inputs are known once it is active."""

    def __init__(self, machine, name, seconds, largest, runtime) -> None:
        self.machine, self.artefact, self.seconds, self.largest = machine, name, seconds, largest
        self.name = f"fake-{runtime}"

    @property
    def batch_range(self):
        return (1, self.largest)

    def activate(self):
        self.inputs = (TensorSpec("input", ("batch", 3, 4, 4), "float32"),)
        self.outputs = (TensorSpec("logits", ("batch", 2), "float32"),)
        self.machine.active.append(self.artefact)

    def deactivate(self):
        if self.artefact in self.machine.active:
            self.machine.active.remove(self.artefact)

    def infer(self, feeds):
        return {"logits": np.zeros((len(feeds["input"]), 2), np.float32)}

    def prepare(self, feeds):
        batch = len(feeds["input"])
        return self.machine.execution(self.seconds * batch, f"{self.artefact} {batch}")


@pytest.fixture
def machine_of():
    """The class of machines: ``machine_of(lambda now: 1 + now)`` slows down with time."""
    return Machine


@pytest.fixture
def bench_on(monkeypatch, tmp_path):
    """``bench_on(machine, {"a.onnx": 0.001}, largest={}, **options)`` with fake runners."""
    from cbam_deploy.benchmarking.benchmark import bench

    monkeypatch.chdir(tmp_path)

    def run(machine, seconds_per_image, largest=None, artefacts=None, **options):
        for name in seconds_per_image:
            onnx.save(parser.parse_model(NETWORK), name)

        def opened(artefact, *, runtime, **_):
            name = artefact.path.name
            speed, most = seconds_per_image[name], (largest or {}).get(name)
            return FakeRunner(machine, name, speed, most, runtime or "gpu")

        monkeypatch.setattr("cbam_deploy.runtimes.open_runtime", opened)
        return bench(artefacts or list(seconds_per_image), **options)

    return run


def make_entry(
    artefact="new.onnx", batch=1, rounds=(1.0,) * 20, runtime="onnxruntime-cpu", **changes
):
    """An entry whose only interesting figures are those given."""
    median = float(np.median(rounds))
    fields = {
        "sha256": "0" * 64,
        "runs": len(rounds),
        "round_seconds": tuple(rounds),
        "median_seconds": median,
        "p90_seconds": median,
        "p95_seconds": median,
        "p99_seconds": median,
        "images_per_second": Estimate(batch / median, 0.99 * batch / median, 1.01 * batch / median),
    }
    return Entry(artefact, runtime, batch, **{**fields, **changes})


def make_report(*entries, **fields):
    """A report of these entries and nothing else."""
    return BenchReport(tuple(entries), settings={"input": "noise", "threads": None}, **fields)


@pytest.fixture
def entry():
    """``entry("new.onnx", batch=1, rounds=[...])``."""
    return make_entry


@pytest.fixture
def report():
    """``report(entry(...), relative_to=...)``."""
    return make_report
