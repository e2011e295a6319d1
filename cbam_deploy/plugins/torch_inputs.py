"""What the PyTorch operators of the gate take: their signatures, and what is refused.

The checks run on shapes and types alone, so that the fake kernel (`torch.compile`), the CPU and
CUDA ones refuse the same inputs in the same words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cbam_deploy.errors import BadInput

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_MLP = "Tensor w0, Tensor b0, Tensor w1, Tensor b1"


class GateInputs(NamedTuple):
    """Inputs of any of the operators; None for those it does not have.

    Attributes:
        x: map [N, C, H, W] of one of `DTYPES`.
        r: residual like x.
        w0, b0, w1, b1: the channel gate's layers, float32 [hidden, C], [hidden], [C, hidden], [C].
        ws, bs: the spatial gate's convolution, float32 [1, 2, k, k] (maximum, mean) and [1].
    """

    x: Tensor
    r: Tensor | None
    w0: Tensor
    b0: Tensor
    w1: Tensor
    b1: Tensor
    ws: Tensor | None = None
    bs: Tensor | None = None


@dataclass(frozen=True)
class GateOperator:
    """One operator of ``torch.ops.cbam_deploy``."""

    name: str
    residual: bool
    spatial: bool

    @property
    def schema(self) -> str:
        """Its signature, as `torch.library.define` takes it; the order is the ONNX operator's."""
        residual = "Tensor r, " if self.residual else ""
        spatial = ", Tensor ws, Tensor bs" if self.spatial else ""
        return f"(Tensor x, {residual}{_MLP}{spatial}) -> Tensor"

    def bind(self, tensors: tuple[Tensor, ...]) -> GateInputs:
        """Positional arguments by name."""
        x, *weights = tensors
        residual = weights.pop(0) if self.residual else None
        return GateInputs(x, residual, *weights)

    def check(self, inputs: GateInputs) -> None:
        """Refuse what the operator cannot compute.

        Raises:
            BadInput: naming the argument, what it is and what it has to be.
        """
        x = inputs.x
        if x.dim() != 4:
            self._refuse("x", x, "a map [N, C, H, W]")
        if x.dtype not in DTYPES:
            self._refuse("x", x, "float32, float16 or bfloat16")
        channels = x.shape[1]
        if channels < 1 or x.shape[2] < 1 or x.shape[3] < 1:
            self._refuse("x", x, "at least one channel and one position")
        if inputs.r is not None and (inputs.r.shape != x.shape or inputs.r.dtype != x.dtype):
            self._refuse("r", inputs.r, f"like x, {_described(x)}")
        if inputs.w0.dim() != 2:
            self._refuse("w0", inputs.w0, f"[hidden, {channels}]")
        hidden = inputs.w0.shape[0]
        expected: dict[str, tuple[int, ...]] = {
            "w0": (hidden, channels),
            "b0": (hidden,),
            "w1": (channels, hidden),
            "b1": (channels,),
        }
        if inputs.ws is not None:
            size = inputs.ws.shape[-1] if inputs.ws.dim() == 4 else 0
            if size not in (3, 7):
                self._refuse("ws", inputs.ws, "[1, 2, k, k] with k 3 or 7")
            expected |= {"ws": (1, 2, size, size), "bs": (1,)}
        for name, shape in expected.items():
            weight = getattr(inputs, name)
            if tuple(weight.shape) != shape or weight.dtype != torch.float32:
                self._refuse(name, weight, f"{list(shape)} float32, as gate weights always are")
        for name, tensor in inputs._asdict().items():
            if tensor is not None and tensor.device != x.device:
                self._refuse(name, tensor, f"on the device of x, {x.device}")

    def _refuse(self, name: str, tensor: Tensor, wanted: str) -> None:
        raise BadInput(
            f"cbam_deploy.{self.name}: {name} is {_described(tensor)}, and has to be {wanted}",
            f"signature: {self.name}{self.schema}",
        )


OPERATORS = (
    GateOperator("cbam_gate", residual=False, spatial=True),
    GateOperator("cbam_gate_add_relu", residual=True, spatial=True),
    GateOperator("se_gate", residual=False, spatial=False),
    GateOperator("se_gate_add_relu", residual=True, spatial=False),
)


def dense(x: Tensor) -> Tensor:
    """`x` itself where it is NCHW or channels-last in memory, else a copy in NCHW."""
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return x
    return x.contiguous()


def _described(tensor: Tensor) -> str:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return f"{list(tensor.shape)} {dtype} on {tensor.device}"
