"""What the PyTorch operators of the gate take: their signatures, and what is refused.

The checks run on shapes and types alone, so that the fake kernel (`torch.compile`), the CPU and
CUDA ones refuse the same inputs in the same words.
"""

from __future__ import annotations

from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from cbam_deploy.errors import BadInput
from cbam_deploy.gates.operators import DOMAIN, GateOperator, in_lower_case

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class GateInputs(NamedTuple):
    """Inputs of any of the operators; None for those it does not have.

    Attributes:
        x: map [N, C, H, W] of one of `DTYPES`.
        w0, b0, w1, b1: the channel gate's layers, float32 [hidden, C], [hidden], [C, hidden], [C].
        ws, bs: the spatial gate's convolution, float32 [1, 2, k, k] (maximum, mean) and [1].
        r: residual like x.
    """

    x: Tensor
    w0: Tensor
    b0: Tensor
    w1: Tensor
    b1: Tensor
    ws: Tensor | None = None
    bs: Tensor | None = None
    r: Tensor | None = None


def schema(operator: GateOperator) -> str:
    """Its signature, as `torch.library.define` takes it; the order is the ONNX operator's."""
    tensors = ", ".join(f"Tensor {name}" for name in in_lower_case(operator.inputs))
    return f"({tensors}) -> Tensor"


def bind(operator: GateOperator, tensors: tuple[Tensor, ...]) -> GateInputs:
    """Positional arguments by name."""
    return GateInputs(**dict(zip(in_lower_case(operator.inputs), tensors, strict=True)))


def check(operator: GateOperator, inputs: GateInputs) -> None:
    """Refuse what the operator cannot compute.

    Raises:
        BadInput: naming the argument, what it is and what it has to be.
    """

    def refuse(name: str, tensor: Tensor, wanted: str) -> NoReturn:
        raise BadInput(
            f"{DOMAIN}.{operator.function}: {name} is {_described(tensor)}, and has to be {wanted}",
            f"signature: {operator.function}{schema(operator)}",
        )

    x = inputs.x
    if x.dim() != 4:
        refuse("x", x, "a map [N, C, H, W]")
    if x.dtype not in DTYPES:
        refuse("x", x, "float32, float16 or bfloat16")
    channels = x.shape[1]
    if channels < 1 or x.shape[2] < 1 or x.shape[3] < 1:
        refuse("x", x, "at least one channel and one position")
    if inputs.r is not None and (inputs.r.shape != x.shape or inputs.r.dtype != x.dtype):
        refuse("r", inputs.r, f"like x, {_described(x)}")
    if inputs.w0.dim() != 2:
        refuse("w0", inputs.w0, f"[hidden, {channels}]")
    size = 0
    if inputs.ws is not None:
        size = inputs.ws.shape[-1] if inputs.ws.dim() == 4 else 0
        if size not in (3, 7):
            refuse("ws", inputs.ws, "[1, 2, k, k] with k 3 or 7")
    shapes = operator.weight_shapes(channels, inputs.w0.shape[0], size)
    for name, shape in zip(in_lower_case(shapes), shapes.values(), strict=True):
        weight = getattr(inputs, name)
        if tuple(weight.shape) != shape or weight.dtype != torch.float32:
            refuse(name, weight, f"{list(shape)} float32, as gate weights always are")
    for name, tensor in inputs._asdict().items():
        if tensor is not None and tensor.device != x.device:
            refuse(name, tensor, f"on the device of x, {x.device}")


def dense(x: Tensor) -> Tensor:
    """`x` itself where it is NCHW or channels-last in memory, else a copy in NCHW."""
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return x
    return x.contiguous()


def _described(tensor: Tensor) -> str:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return f"{list(tensor.shape)} {dtype} on {tensor.device}"
