"""How far a network's own FP32 result is from FP64: what no FP32 program can be blamed for."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from cbam_deploy.numerics.metrics import tensor_error
from cbam_deploy.runtimes.pytorch import own_array, own_tensor, tensors_of


def rounding_errors(
    module: nn.Module, inputs: Sequence[NDArray[Any]], outputs: Sequence[NDArray[Any]]
) -> list[float] | None:
    """For each output, the largest error of FP32 over the largest value, against FP64.

    Args:
        module: on the CPU, in evaluation mode.
        inputs: any floating-point type counts as exact.
        outputs: what the module gives for `inputs` in FP32.

    Returns:
        None where the module does not run in FP64, or gives outputs of other shapes there.
    """
    try:
        wide = _run(module, inputs)
    except Exception:  # The user's code may fail in any way where a type is not as it expects.
        return None
    if [array.shape for array in wide] != [array.shape for array in outputs]:
        return None
    return [
        tensor_error("", exact, rounded).max_relative
        for exact, rounded in zip(wide, outputs, strict=True)
    ]


def _run(module: nn.Module, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    wide = copy.deepcopy(module).double()
    tensors = [own_tensor(array) for array in inputs]
    with torch.no_grad(), in_float64():
        outputs = wide(*(t.double() if t.is_floating_point() else t for t in tensors))
    return list(map(own_array, tensors_of(outputs)))


@contextmanager
def in_float64() -> Iterator[None]:
    """Let a network whose inputs and weights are FP64 compute in FP64 throughout."""
    with _float64_by_default(), _Float64():  # type: ignore[no-untyped-call]
        yield


class _Float64(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """FP64 where a network asks for FP32 by name, as in `x.float()` or a constant of its own."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(_widened, (args, kwargs or {}))
        return func(*args, **kwargs)


def _widened(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.double() if value.dtype is torch.float32 else value
    return torch.float64 if value is torch.float32 else value


@contextmanager
def _float64_by_default() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
