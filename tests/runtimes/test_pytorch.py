"""PyTorch as a runner."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cbam_deploy.errors import BadInput, MissingCapability
from cbam_deploy.numerics.tensors import TensorSpec
from cbam_deploy.runtimes.pytorch import PyTorchRunner

INPUT = TensorSpec("input", ("batch", 3, 8, 8), "float32")


@pytest.mark.parametrize("channels_last", [False, True])
def test_outputs_are_those_of_the_module(module, pictures, reference, tolerance, channels_last):
    with PyTorchRunner(module, [INPUT], channels_last=channels_last) as runner:
        assert runner.outputs == (TensorSpec("logits", ("batch", 5), "float32"),)
        logits = runner.infer({"input": pictures})["logits"]
    expected = reference(pictures)["logits"]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=tolerance(expected))


def test_module_runs_in_evaluation_mode_and_stays_as_it_was(module, pictures):
    network = nn.Sequential(nn.Dropout(0.5), module).train()
    with PyTorchRunner(network, [INPUT], channels_last=True) as runner:
        first, second = (runner.infer({"input": pictures})["logits"] for _ in range(2))
        np.testing.assert_array_equal(first, second)
    assert network.training
    assert all(parameter.is_contiguous() for parameter in network.parameters())


def test_pictures_of_any_size_are_the_default_input(module):
    with PyTorchRunner(module) as runner:
        for size in (5, 9):
            result = runner.infer({"input": np.zeros((2, 3, size, size), np.float32)})
            assert result["logits"].shape == (2, 5)


def test_network_for_large_pictures_only_is_probed_at_a_size_it_takes():
    needs_room = nn.Sequential(nn.Conv2d(3, 4, 32), nn.Flatten(2), nn.AdaptiveAvgPool1d(1))
    with PyTorchRunner(needs_room) as runner:
        assert runner.outputs == (TensorSpec("logits", ("batch", 4, 1), "float32"),)


def test_several_outputs_have_their_names():
    class Heads(nn.Module):
        def forward(self, x):
            return x.mean(dim=(1, 2, 3)), x.amax(dim=(1, 2, 3))

    class Named(nn.Module):
        def forward(self, x):
            return {"double": 2 * x}

    feeds = {"input": np.full((2, 3, 8, 8), 3, np.float32)}
    with PyTorchRunner(Heads(), [INPUT], output_names=("mean", "peak")) as runner:
        assert {name: list(values) for name, values in runner.infer(feeds).items()} == {
            "mean": [3, 3],
            "peak": [3, 3],
        }
    with PyTorchRunner(Named(), [INPUT]) as runner:
        assert runner.infer(feeds)["double"].max() == 6
    with pytest.raises(BadInput, match="returns 2 outputs, named are 1"):
        PyTorchRunner(Heads(), [INPUT]).activate()


def test_unfit_input_is_refused_by_name(module):
    with PyTorchRunner(module, [INPUT]) as runner:
        for run in (runner.infer, runner.prepare):
            with pytest.raises(BadInput, match="input: its dtype is float64"):
                run({"input": np.zeros((1, 3, 8, 8))})


def test_timed_runs_run_the_module_that_often_without_gradients(module, pictures):
    seen = []

    class Watched(nn.Module):
        def forward(self, x):
            seen.append((torch.is_inference_mode_enabled(), torch.get_num_threads()))
            return module(x)

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with PyTorchRunner(Watched(), [INPUT], threads=1) as runner:
            execution = runner.prepare({"input": pictures})
            seen.clear()
            seconds = execution.measure(4)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert seconds.shape == (4,)
    assert (seconds > 0).all()
    assert seen == [(True, 1)] * 4


def test_cuda_without_a_gpu_is_a_missing_capability(module, monkeypatch):
    monkeypatch.setattr("cbam_deploy.machine.gpus", lambda: ())
    with pytest.raises(MissingCapability, match="needs an NVIDIA GPU, and this machine has none"):
        PyTorchRunner(module, [INPUT], "cuda").activate()


def test_gpu_with_a_pytorch_that_cannot_use_it_is_told_apart(module, monkeypatch):
    monkeypatch.setattr("cbam_deploy.machine.gpus", lambda: ("a GPU",))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(MissingCapability, match="PyTorch with CUDA"):
        PyTorchRunner(module, [INPUT], "cuda").activate()


@pytest.mark.gpu
def test_gpu_computes_what_the_cpu_computes(module, pictures, tolerance):
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    feeds = {"input": pictures}
    with PyTorchRunner(module, [INPUT], "cuda") as runner, PyTorchRunner(module, [INPUT]) as other:
        computed, expected = (each.infer(feeds)["logits"] for each in (runner, other))
        execution = runner.prepare(feeds)
        assert (execution.measure(10) > 0).all()
        assert execution.peak_memory_bytes() > 0
    np.testing.assert_allclose(computed, expected, rtol=0, atol=tolerance(expected))


def test_use_before_activation_is_a_defect_not_an_input_error(module, pictures):
    with pytest.raises(RuntimeError, match="not active"):
        PyTorchRunner(module, [INPUT]).infer({"input": pictures})


class Halving(nn.Module):
    """Halves its input in place: what it gives tells how often it ran on one array."""

    def forward(self, x):
        return x.div_(2).mean((1, 2, 3))[:, None]


class Own(nn.Module):
    """Gives its own buffer, overwritten in each run."""

    def __init__(self):
        super().__init__()
        self.register_buffer("out", torch.zeros(2, 1))

    def forward(self, x):
        return self.out.copy_(x.mean((1, 2, 3))[:, None])


def test_a_module_that_writes_into_its_input_leaves_the_callers_alone():
    feeds = {"input": np.full((2, 3, 8, 8), 4, np.float32)}
    with PyTorchRunner(Halving(), [INPUT]) as runner:
        for _ in range(2):
            np.testing.assert_array_equal(runner.infer(feeds)["logits"], [[2], [2]])
    np.testing.assert_array_equal(feeds["input"], 4)


def test_timed_runs_of_a_module_that_writes_into_its_input_all_get_the_same():
    seen = []

    class Telling(Halving):
        def forward(self, x):
            seen.append(float(x[0, 0, 0, 0]))
            return super().forward(x)

    with PyTorchRunner(Telling(), [INPUT]) as runner:
        execution = runner.prepare({"input": np.full((2, 3, 8, 8), 4, np.float32)})
        del seen[:]
        execution.measure(3)
    assert seen == [4, 4, 4]


def test_an_output_is_kept_when_the_module_overwrites_its_buffer():
    with PyTorchRunner(Own(), [TensorSpec("input", (2, 3, 8, 8), "float32")]) as runner:
        first = runner.infer({"input": np.ones((2, 3, 8, 8), np.float32)})["logits"]
        runner.infer({"input": np.zeros((2, 3, 8, 8), np.float32)})
    np.testing.assert_array_equal(first, 1)


def test_bfloat16_outputs_come_as_float32():
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 2)).bfloat16()

    class Rounded(nn.Module):
        def forward(self, x):
            return network(x.bfloat16())

    with PyTorchRunner(Rounded(), [INPUT]) as runner:
        assert runner.infer({"input": np.ones((1, 3, 8, 8), np.float32)})["logits"].dtype == "f4"
