"""Run a model in PyTorch, on the CPU or on a CUDA GPU: the reference of every comparison."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils._pytree import tree_leaves

from cbam_deploy.errors import BadInput
from cbam_deploy.foreign_code import foreign_code
from cbam_deploy.numerics.feeds import check_feeds
from cbam_deploy.numerics.tensors import Arrays, TensorSpec
from cbam_deploy.provenance import ModelIdentity
from cbam_deploy.runtimes import cuda
from cbam_deploy.runtimes.base import Execution, Runner, known_device

PICTURES = TensorSpec("input", ("batch", 3, "height", "width"), "float32")
PROBE_SIZE = 64  # for free sizes other than the batch, when looking for the outputs


class PyTorchRunner(Runner):
    """A PyTorch module in evaluation mode; the module given is copied, not changed.

    Args:
        model: a module, or the identity that `models.load_model` rebuilds it from.
        inputs: specs of its inputs, in the order of its forward method's arguments; by default one
            float32 input of pictures [batch, 3, height, width].
        device: ``cpu`` (also for None) or ``cuda``. On CUDA, FP32 stays FP32: TF32 is off.
        output_names: names for what it returns, in order; a dictionary of tensors brings its own.
        channels_last: keep weights and activations in NHWC memory order.
        threads: threads within one operator on the CPU; PyTorch's setting by default. It belongs
            to the process, so it is set for each call and put back after it.

    Activating raises:
        MissingCapability: `device` is ``cuda`` and there is no GPU, or no CUDA in PyTorch.
    """

    def __init__(
        self,
        model: nn.Module | ModelIdentity,
        inputs: Sequence[TensorSpec] = (PICTURES,),
        device: str | None = None,
        *,
        output_names: Sequence[str] = ("logits",),
        channels_last: bool = False,
        threads: int | None = None,
    ) -> None:
        device = known_device(device)
        self.name = f"pytorch-{device}"
        self.inputs, self.outputs = tuple(inputs), ()
        self._model, self._device_name, self._output_names = model, device, tuple(output_names)
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._threads = threads
        self._label = type(model).__name__ if isinstance(model, nn.Module) else model.name
        self._module: nn.Module | None = None
        self._held_bytes = 0

    def activate(self) -> None:
        """Load the module onto its device and find its outputs with a run on zeros."""
        self._device = torch.device("cpu")
        if self._device_name == "cuda":
            self._device = cuda.require_cuda("running PyTorch on CUDA")
            self._held_bytes = -cuda.used_memory_bytes()
        module = copy.deepcopy(_module(self._model)).eval().to(self._device)
        self._module = module.to(memory_format=self._format)  # type: ignore[call-overload]
        if self._device_name == "cuda":
            self._held_bytes += cuda.used_memory_bytes()
        self.outputs = self._find_outputs()

    def deactivate(self) -> None:
        """Free the module."""
        self._module = None
        if self._device_name == "cuda" and torch.cuda.is_available():
            torch.cuda.empty_cache()

    def infer(self, feeds: Arrays) -> dict[str, NDArray[np.generic]]:
        """Run once; raises `BadInput` when `feeds` do not fit the inputs."""
        check_feeds(feeds, self.inputs, self.batch_range)
        module = self.module
        with self._settings():
            outputs = self._named(module(*self._tensors(feeds)))
        if self._device_name == "cuda":
            return cuda.to_host(outputs)
        return {name: own_array(tensor) for name, tensor in outputs.items()}

    def prepare(self, feeds: Arrays) -> Execution:
        """Put `feeds` on the device; raises like `infer`.

        A module that writes into its inputs gets a copy of them for each run: before the run's time
        begins on the CPU, within it on CUDA, where runs are replays of one graph.
        """
        check_feeds(feeds, self.inputs, self.batch_range)
        module, tensors = self.module, self._tensors(feeds)
        with self._settings():
            writes = _writes_into(module, tensors)
        if self._device_name == "cpu":
            return _CpuExecution(module, tensors, self._settings, fresh=writes)
        with self._settings():
            return cuda.CudaExecution(
                lambda: module(*_copies(tensors) if writes else tensors),
                capture=True,
                held_bytes=self._held_bytes,
            )

    @property
    def module(self) -> nn.Module:
        """The copy that is run, once it is active."""
        if self._module is None:
            raise RuntimeError("the runner is not active")
        return self._module

    @contextmanager
    def _settings(self) -> Iterator[None]:
        """No gradients, no TF32, and as many threads as asked for; put back afterwards.

        What the module raises meanwhile is `BadInput`.
        """
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads or before)
        try:
            with (
                torch.inference_mode(),
                torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False),
                foreign_code(f"{self._label}: running it"),
            ):
                yield
        finally:
            torch.set_num_threads(before)

    def _named(self, result: Any) -> dict[str, torch.Tensor]:
        """The tensors that the module returns, in any container, by output name."""
        if isinstance(result, Mapping) and all(map(torch.is_tensor, result.values())):
            return dict(result)
        tensors = tensors_of(result)
        if len(tensors) != len(self._output_names):
            raise BadInput(
                f"the model returns {len(tensors)} outputs, named are {len(self._output_names)}",
                "give one output name for each",
            )
        return dict(zip(self._output_names, tensors, strict=True))

    def _tensors(self, feeds: Arrays) -> list[torch.Tensor]:
        """Copies of `feeds` on the device, in the order of the inputs; pictures in the format."""
        tensors = []
        for spec in self.inputs:
            array = feeds[spec.name]
            on_cpu = self._device_name == "cpu"
            tensor = own_tensor(array) if on_cpu else cuda.to_device(array, self._device)
            if tensor.dim() == 4:
                tensor = tensor.contiguous(memory_format=self._format)
            tensors.append(tensor)
        return tensors

    def _find_outputs(self) -> tuple[TensorSpec, ...]:
        """Specs of what the module returns; the first size is free where the input's is."""
        batch = self.inputs[0].shape[0]
        zeros = {}
        for spec in self.inputs:
            probe = [PROBE_SIZE if isinstance(size, str) else size for size in spec.shape]
            probe[0] = 1 if isinstance(batch, str) else batch
            zeros[spec.name] = np.zeros(probe, spec.dtype)
        specs = []
        with self._settings():
            outputs = self._named(self.module(*self._tensors(zeros)))
        for name, tensor in outputs.items():
            shape = (batch, *tensor.shape[1:])
            specs.append(TensorSpec(name, shape, str(tensor.dtype).removeprefix("torch.")))
        return tuple(specs)


class _CpuExecution(Execution):
    """A forward pass on tensors that stay where they are."""

    def __init__(
        self,
        module: nn.Module,
        tensors: Sequence[torch.Tensor],
        settings: Callable[[], AbstractContextManager[None]],
        *,
        fresh: bool,
    ) -> None:
        self._module, self._tensors, self._settings = module, tensors, settings
        self._fresh = fresh

    def measure(self, runs: int) -> NDArray[np.float64]:
        """Wall-clock seconds of each run."""
        module, tensors = self._module, self._tensors
        seconds = np.empty(runs)
        with self._settings():
            for index in range(runs):
                if self._fresh:
                    tensors = _copies(self._tensors)
                start = time.perf_counter_ns()
                module(*tensors)
                seconds[index] = (time.perf_counter_ns() - start) * 1e-9
        return seconds


def tensors_of(result: Any) -> list[torch.Tensor]:
    """The tensors in what a module returns, in any container, in order."""
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]


def own_tensor(array: NDArray[Any]) -> torch.Tensor:
    """A copy of `array`: a module may write into what it is given, keep it, or return it."""
    return torch.from_numpy(np.array(array, order="C"))


def own_array(tensor: torch.Tensor) -> NDArray[Any]:
    """A copy of a tensor on the CPU, which a module may overwrite in its next run."""
    # NumPy has no bfloat16; float32 holds all of its values.
    tensor = tensor.float() if tensor.dtype is torch.bfloat16 else tensor
    return np.array(tensor.numpy())


def _copies(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in tensors]


def _writes_into(module: nn.Module, tensors: Sequence[torch.Tensor]) -> bool:
    """Whether a run of `module` changes its inputs; tried on copies."""
    copies = _copies(tensors)
    module(*copies)
    return not all(map(torch.equal, copies, tensors))


def _module(model: nn.Module | ModelIdentity) -> nn.Module:
    if isinstance(model, nn.Module):
        return model
    from cbam_deploy.models import load_model

    return load_model(model)
