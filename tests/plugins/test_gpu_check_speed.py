"""How `benchmarks.gpu_check` times, shown on the CPU by made-up durations."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from gpu_check_jobs import outcome_of

from benchmarks.gpu_check import (
    candidates,
    compiled,
    contenders,
    gates,
    networks,
    timing,
    warm,
)
from benchmarks.gpu_check.correctness import limits
from benchmarks.gpu_check.gate_cases import BATCHES, gate_cases
from benchmarks.gpu_check.job import ERROR, FAILED, PASSED
from benchmarks.gpu_check.plans import described
from cbam_deploy.plugins.cost_model import seconds
from cbam_deploy.plugins.cuda_launch import NoRoom
from cbam_deploy.plugins.geometry import plan, ranked_plans

LIMITS = limits(dry=True)


class StandInTimer:
    """Runs every contender once; the first takes 1 us, the second 2 us, and so on."""

    l2_bytes = 10**6

    def sets(self, set_bytes):
        return 1

    def copy_bytes_per_second(self):
        return 1e12

    def empty_launch_seconds(self):
        return 0.5e-6

    def seconds(self, contenders):
        for contender in contenders:
            assert contender() is not None
        return [1e-6 * (number + 1) for number in range(len(contenders))]


@pytest.fixture
def on_cpu(monkeypatch):
    """The timing parts with the CPU in the GPU's place; kernels are launched on nothing."""
    for part in (gates, candidates, compiled, warm):
        monkeypatch.setattr(part, "DEVICE", "cpu")
        monkeypatch.setattr(part, "Timer", StandInTimer)

    def planned(gate, batch, device):
        return SimpleNamespace(plan=plan(gate, LIMITS, batch=batch))

    monkeypatch.setattr(contenders.torch_cuda, "planned", planned)
    monkeypatch.setattr(contenders.torch_cuda, "launch", lambda *arguments: None)
    monkeypatch.setattr(compiled, "compiled", partial(contenders.compiled, backend="eager"))
    monkeypatch.setattr(gates, "described_clocks", lambda: "SM 1980 MHz")
    small = [replace(case, batch=1) for case in gate_cases()[12:32:16]]
    assert [case.gate.dtype for case in small] == ["float16", "int8"]
    for part in (gates, compiled, warm):
        monkeypatch.setattr(part, "gate_cases", lambda: small)
    return small


def test_gate_figures_follow_from_durations_and_bytes(on_cpu, tmp_path):
    found = outcome_of(gates.run, tmp_path)
    assert found.status == PASSED, found
    fp16, int8 = found.rows
    assert {key: fp16[key] for key in ("map", "layout", "batch")} == {
        "map": "2048x7x7",
        "layout": "nhwc",
        "batch": 1,
    }
    assert fp16["plan"].startswith("fused 16 x")
    assert (fp16["gate_us"], fp16["add_us"]) == (pytest.approx(1.0), pytest.approx(2.0))
    assert fp16["gb_s"] == pytest.approx(on_cpu[0].moved_bytes / 1e-6 / 1e9)
    assert fp16["percent_of_add"] == pytest.approx(200)
    assert fp16["empty_us"] == pytest.approx(0.5)
    assert fp16["over_add_less_empty"] == pytest.approx((1 - 0.5) / (2 - 0.5))
    assert int8["percent_of_add"] == pytest.approx(200)
    assert "1000 GB/s" in found.notes[0]
    assert "0.50 us" in found.notes[1]


def test_a_gate_that_cannot_be_timed_does_not_stop_the_others(on_cpu, tmp_path, monkeypatch):
    original = contenders.torch_cuda.planned

    def broken(gate, batch, device):
        if gate.dtype == "float16":
            raise RuntimeError("no memory")
        return original(gate, batch, device)

    monkeypatch.setattr(contenders.torch_cuda, "planned", broken)
    found = outcome_of(gates.run, tmp_path)
    assert (found.status, found.reason[:25]) == (ERROR, "RuntimeError: 1 of 2 case")
    assert found.rows[0]["problem"] == "RuntimeError: no memory"
    assert found.rows[1]["gate_us"] == pytest.approx(1.0)


def test_compiled_gates_are_timed_beside_the_kernels(on_cpu, tmp_path):
    found = outcome_of(compiled.run, tmp_path)
    assert found.status == PASSED, found
    (row,) = found.rows
    assert row["fits_l2"] == "yes"
    assert (row["compiled_us"], row["compiled_over_gate"]) == (pytest.approx(2.0), 2.0)


def test_the_time_of_a_warm_gate_is_what_it_adds_to_writing_x(on_cpu, tmp_path):
    found = outcome_of(warm.run, tmp_path)
    assert found.status == PASSED, found
    (row,) = found.rows
    assert (row["cold_us"], row["warm_us"]) == (pytest.approx(1.0), pytest.approx(3.0 - 2.0))


def test_every_plan_stands_beside_its_prediction(on_cpu, tmp_path, monkeypatch):
    case = on_cpu[0]
    monkeypatch.setattr(candidates, "candidate_cases", lambda: [case])
    monkeypatch.setattr(candidates, "limits", lambda dry: LIMITS)

    def load(plan, device):
        if plan.launches[0].cluster == 16:
            raise NoRoom("no room")
        return SimpleNamespace(plan=plan, active_clusters=(7,))

    monkeypatch.setattr(candidates, "load", load)
    found = outcome_of(candidates.run, tmp_path)
    assert found.status == PASSED, found
    plans = ranked_plans(case.gate, LIMITS, batch=1)
    assert len(found.rows) == len(plans)
    measured = [row for row in found.rows if "measured_us" in row]
    refused = [row for row in found.rows if "problem" in row]
    without_room = {"fused 16 x 256", "fused 16 x 256, 2 images", "fused 16 x 512"}
    assert {row["plan"] for row in refused} == without_room
    assert [row["fastest"] for row in measured] == ["yes"] + [""] * (len(measured) - 1)
    for number, row in enumerate(measured, 1):
        expected = next(one for one in plans if described(one) == row["plan"])
        assert row["measured_us"] == pytest.approx(number)
        here = replace(LIMITS.chip, memory_bytes_per_s=1e12)
        assert row["predicted_us"] == pytest.approx(1e6 * seconds(expected, 1, here))
        assert row["measured_over_predicted"] == pytest.approx(number / row["predicted_us"])
        assert row["active_clusters"] == 7


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


@torch.no_grad()
def test_the_plain_network_adds_and_cuts_off_in_one_step():
    x, r = (torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last) for _ in range(2))
    y = networks.AddRelu("eager")(None, x, r)
    torch.testing.assert_close(y, (x + r).relu(), rtol=0, atol=0)
    assert y.is_contiguous(memory_format=torch.channels_last)
    gateless = networks.create_model("resnet20", attention="none").eval()
    plain = networks.plain_network(networks.REHEARSAL).eval()
    plain.load_state_dict(gateless.state_dict(), strict=False)
    pictures = torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(plain(pictures), gateless(pictures))


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
    assert timer.l2_bytes == 1000
    assert timer.sets(10**6) == 2
    assert timer.sets(100) * 100 >= 2 * 1000
    assert timer.sets(1) == 256


def test_an_empty_launch_is_one_of_many_in_a_graph(monkeypatch):
    gpu, launched = StandInGpu(monkeypatch), []
    monkeypatch.setattr(timing, "current_device", lambda device: nullcontext())

    def call(name, *arguments):
        if name == "cuLaunchKernel":
            launched.append(arguments)
            gpu.captured.name, gpu.captured.milliseconds = "empty", 0.128
        return name

    monkeypatch.setattr(timing, "call", call)
    stream = SimpleNamespace(wait_stream=lambda other: None, cuda_stream=42)
    monkeypatch.setattr(timing.torch.cuda, "current_stream", lambda: stream)
    assert timing.Timer().empty_launch_seconds() == pytest.approx(0.128e-3 / 64)
    assert len(launched) == 3 * 64, "twice before the capture, once in it"
    assert launched[0] == ("cuModuleGetFunction", 1, 1, 1, 32, 1, 1, 0, 42, 0, 0)
