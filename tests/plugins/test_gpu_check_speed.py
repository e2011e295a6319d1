"""How `benchmarks.gpu_check` times, shown on the CPU by made-up durations."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from gpu_check_jobs import outcome_of

from benchmarks.gpu_check import gates, networks, timing
from benchmarks.gpu_check.gate_cases import BATCHES, gate_cases
from benchmarks.gpu_check.job import ERROR, FAILED, PASSED


class StandInTimer:
    """Runs every contender once; the first takes 1 us, the second 2 us, and so on."""

    def sets(self, set_bytes):
        return 1

    def copy_bytes_per_second(self):
        return 1e12

    def seconds(self, contenders):
        for contender in contenders:
            assert contender() is not None
        return [1e-6 * (number + 1) for number in range(len(contenders))]


@pytest.fixture
def gates_on_cpu(monkeypatch):
    """`gates` with the CPU in the GPU's place, and eager PyTorch in `torch.compile`'s."""
    monkeypatch.setattr(gates, "DEVICE", "cpu")
    monkeypatch.setattr(gates, "compiled_gate", gates.pytorch_gate)
    monkeypatch.setattr(gates.torch_cuda, "planned", lambda gate, batch, device: gate)
    monkeypatch.setattr(gates.torch_cuda, "launch", lambda loaded, tensors, batch, device: None)
    monkeypatch.setattr(gates, "Timer", StandInTimer)
    monkeypatch.setattr(gates, "described_clocks", lambda: "SM 1980 MHz")
    small = [replace(case, batch=1) for case in gate_cases()[12:32:16]]
    assert [case.gate.dtype for case in small] == ["float16", "int8"]
    monkeypatch.setattr(gates, "gate_cases", lambda: small)
    return small


def test_gate_figures_follow_from_durations_and_bytes(gates_on_cpu, tmp_path):
    found = outcome_of(gates.run, tmp_path)
    assert found.status == PASSED, found
    fp16, int8 = found.rows
    assert {key: fp16[key] for key in ("map", "layout", "batch")} == {
        "map": "2048x7x7",
        "layout": "nhwc",
        "batch": 1,
    }
    assert fp16["gb_s"] == pytest.approx(gates_on_cpu[0].moved_bytes / 1e-6 / 1e9)
    assert fp16["percent_of_copy"] == pytest.approx(100 * gates_on_cpu[0].moved_bytes / 1e-6 / 1e12)
    for other in ("eager", "compiled"):
        assert (fp16[f"{other}_us"], fp16[f"{other}_over_fused"]) == (pytest.approx(2.0), 2.0)
    assert int8["fused_us"] == pytest.approx(1.0)
    assert "eager_us" not in int8
    assert "1000 GB/s" in found.notes[0]


def test_a_gate_that_cannot_be_timed_does_not_stop_the_others(gates_on_cpu, tmp_path, monkeypatch):
    def broken(case, device):
        raise RuntimeError("no memory")

    monkeypatch.setattr(gates, "pytorch_gate", broken)
    found = outcome_of(gates.run, tmp_path)
    assert (found.status, found.reason[:25]) == (ERROR, "RuntimeError: 1 of 2 case")
    assert found.rows[0]["problem"] == "RuntimeError: no memory"
    assert found.rows[1]["fused_us"] == pytest.approx(1.0)


@torch.no_grad()
def test_networks_are_compared_with_the_plain_one(tmp_path):
    def run(job):
        nets = networks.check(job, networks.REHEARSAL)
        networks.measure(job, networks.REHEARSAL, nets, StandInTimer())

    found = outcome_of(run, tmp_path, every=2)
    assert [(row["network"], row["batch"]) for row in found.rows] == [
        (kind, batch) for batch in BATCHES[::2] for kind in ("plain", "unfused", "fused")
    ]
    assert found.rows[2]["over_plain"] == pytest.approx(3.0)
    assert found.rows[2]["images_per_s"] == pytest.approx(32 / 3e-6)


def test_a_wrong_fused_network_fails_the_part(tmp_path, monkeypatch):
    create = networks.create_model

    def create_wrong(name, *, seed, fused=False, attention="cbam"):
        return create(name, seed=seed + fused, fused=fused, attention=attention)

    monkeypatch.setattr(networks, "create_model", create_wrong)
    found = outcome_of(networks.run, tmp_path, dry=True)
    assert found.status == FAILED
    assert "logits are off" in found.reason


class StandInGpu:
    """The part of `torch.cuda` that a `Timer` uses; it notes what happens, in order."""

    def __init__(self, monkeypatch):
        self.log: list[str] = []
        self.now = 0.0
        self.captured = SimpleNamespace()  # what runs outside of a capture leaves nothing
        gpu = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                gpu.log.append("event")
                self.at = gpu.now

            def elapsed_time(self, other):
                return other.at - self.at

        class Graph:
            name: str
            milliseconds: float

            def replay(self):
                gpu.log.append(self.name)
                gpu.now += self.milliseconds

        stream = SimpleNamespace(wait_stream=lambda other: None)
        for name, value in {
            "get_device_properties": lambda index: SimpleNamespace(L2_cache_size=1000),
            "Stream": lambda: stream,
            "current_stream": lambda: stream,
            "stream": lambda one: nullcontext(),
            "CUDAGraph": Graph,
            "graph": self.capture,
            "Event": Event,
            "synchronize": lambda: None,
        }.items():
            monkeypatch.setattr(timing.torch.cuda, name, value)
        monkeypatch.setattr(timing.torch, "empty", self.allocate)

    def allocate(self, size, *, dtype, device):
        """What a timer allocates is what it fills L2 with."""
        assert (dtype, device) == (torch.uint8, "cuda")
        return SimpleNamespace(zero_=lambda: self.log.append(f"{size} zeros"))

    @contextmanager
    def capture(self, graph):
        self.captured = graph
        yield
        self.captured = SimpleNamespace()

    def work(self, name, milliseconds):
        def contender():
            self.captured.name, self.captured.milliseconds = name, milliseconds

        return contender


def test_contenders_take_turns_with_a_cold_cache(monkeypatch):
    gpu = StandInGpu(monkeypatch)
    timer = timing.Timer()
    found = timer.seconds([gpu.work("a", 2.0), gpu.work("b", 3.0)])
    assert found == pytest.approx([2e-3, 3e-3])
    four_times_the_cache = "4000 zeros"
    turn = [
        *(four_times_the_cache, "event", "a", "event"),
        *(four_times_the_cache, "event", "b", "event"),
    ]
    assert gpu.log == turn * timing.REPLAYS


def test_buffers_are_more_than_the_cache_holds(monkeypatch):
    StandInGpu(monkeypatch)
    timer = timing.Timer()
    assert timer.sets(10**6) == 2
    assert timer.sets(100) * 100 >= 2 * 1000
    assert timer.sets(1) == 256
