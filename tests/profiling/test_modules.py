"""Modules of PyTorch and operators of OpenVINO, timed."""

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from cbam_deploy import profile
from cbam_deploy.errors import BadInput
from cbam_deploy.gates.description import GateSpec
from cbam_deploy.models.gate import AttentionGate
from cbam_deploy.profiling import pytorch
from cbam_deploy.profiling.timers import TIMERS, open_timer
from cbam_deploy.runtimes import RUNTIMES
from cbam_deploy.runtimes.pytorch import PyTorchRunner


class Clock:
    """Time passes only where a module says so, in nanoseconds."""

    def __init__(self):
        self.now = 0

    def perf_counter_ns(self):
        return self.now


class Takes(nn.Module):
    def __init__(self, clock, before, inner=None, after=0):
        super().__init__()
        self.clock, self.before, self.inner, self.after = clock, before, inner, after

    def forward(self, x):
        self.clock.now += self.before
        x = self.inner(x) if self.inner is not None else x
        self.clock.now += self.after
        return x


def kernels_of(module, monkeypatch, clock=None, runs=3):
    if clock is not None:
        monkeypatch.setattr(pytorch, "time", clock)
    source = SimpleNamespace(open=lambda file: PyTorchRunner(module, output_names=("y",)))
    feeds = {"input": np.zeros((1, 3, 64, 64), np.float32)}
    runner = SimpleNamespace(name="pytorch-cpu")
    contender = SimpleNamespace(source=source, runner=runner, feeds=feeds, file=None)
    with pytorch.layer_timer(contender) as timer:
        assert timer.execution.measure(runs).shape == (runs,)
        return {kernel.name: kernel for kernel in timer.kernels()}


def test_a_module_counts_without_the_modules_that_it_calls(monkeypatch):
    clock = Clock()
    inner = Takes(clock, 5000)
    network = Takes(clock, 1000, nn.Sequential(inner, Takes(clock, 300)), after=2000)
    # The copy that the runner makes would have a clock of its own.
    monkeypatch.setattr(Clock, "__deepcopy__", lambda self, memo: self, raising=False)
    found = kernels_of(network, monkeypatch, clock)
    seconds = {name: kernel.seconds for name, kernel in found.items()}
    assert seconds == pytest.approx(
        {"(whole network)": 3000e-9, "inner.0": 5000e-9, "inner.1": 300e-9}
    )


def test_a_gate_is_one_module(monkeypatch):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 1), AttentionGate(16, GateSpec()))
    found = kernels_of(network, monkeypatch)
    assert [kernel.operator for kernel in found.values()] == [
        "Sequential", "Conv2d", "AttentionGate",
    ]  # fmt: skip
    assert found["0"].precision == "fp32"


@pytest.mark.parametrize("runtime", ["pytorch-cuda", "onnxruntime-cuda"])
def test_what_a_gpu_runs_is_refused_unless_it_is_an_engine(runtime):
    runner, source = SimpleNamespace(name=runtime), SimpleNamespace(name="net.onnx")
    with pytest.raises(BadInput, match=rf"net\.onnx in {runtime}: on a GPU only layers of engines"):
        open_timer(SimpleNamespace(runner=runner, source=source))


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs openvino")
def test_openvino_names_its_operators_after_the_file(gated_file):
    report = profile(gated_file, runtime="openvino", seconds=0.01, threads=1)
    layers = {layer.name: layer for layer in report.networks[0].layers if layer.kind != "reorder"}
    assert {"stem_conv", "block_conv", "gate"} <= set(layers)
    assert layers["gate"].operator == "CbamGateAddRelu"
    assert layers["block_conv"].module == "block.conv"
    assert {layer.precision for layer in layers.values()} <= {"fp32", ""}


def test_every_runtime_has_a_profiler():
    assert {row.name for row in RUNTIMES} == set(TIMERS)
