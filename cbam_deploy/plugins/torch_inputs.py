"""What the PyTorch operators of the gate take: their signatures, and what is refused.

The checks run on shapes and types alone, so that the fake kernel (`torch.compile`), the CPU and
CUDA ones refuse the same inputs in the same words.
"""

from __future__ import annotations

from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from cbam_deploy.errors import BadInput
from cbam_deploy.gates.description import KERNEL_SIZES
from cbam_deploy.gates.operators import DOMAIN, GateOperator, in_lower_case

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class GateInputs(NamedTuple):
    """Inputs of any of the operators; None for those it does not have.

    Attributes:
        x: map [N, C, H, W] of one of `DTYPES`.
        r: what is added to the gated map, like x.
        w0, b0: first layer of the channel part's MLP, float32 [hidden, C] and [hidden].
        w1, b1: its second, or only, layer, [C, hidden or C] and [C].
        wc, bc: convolution along the channels, [1, 1, k] and [1].
        wd: 1x1 convolution to the spatial part's descriptor, [1, C, 1, 1].
        ws, bs: convolution of the spatial part, [1, d, k, k] (maximum, mean) and [1].
    """

    x: Tensor
    r: Tensor | None = None
    w0: Tensor | None = None
    b0: Tensor | None = None
    w1: Tensor | None = None
    b1: Tensor | None = None
    wc: Tensor | None = None
    bc: Tensor | None = None
    wd: Tensor | None = None
    ws: Tensor | None = None
    bs: Tensor | None = None

    @property
    def hidden(self) -> int:
        """Units of the MLP's hidden layer; 0 without one."""
        return 0 if self.w0 is None else self.w0.shape[0]

    @property
    def kernel_size(self) -> int:
        """K of the spatial part; 0 without one."""
        return 0 if self.ws is None else self.ws.shape[-1]

    @property
    def channel_kernel_size(self) -> int:
        """K of the convolution along the channels; 0 without one."""
        return 0 if self.wc is None else self.wc.shape[-1]


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
    if inputs.w0 is not None and inputs.w0.dim() != 2:
        refuse("w0", inputs.w0, f"[hidden, {channels}]")
    sizes = f"k odd and at most {KERNEL_SIZES[-1]}"
    if inputs.ws is not None and (inputs.ws.dim() != 4 or inputs.kernel_size not in KERNEL_SIZES):
        described = 2 if operator.gate.spatial == "pool" else 1
        refuse("ws", inputs.ws, f"[1, {described}, k, k], {sizes}")
    if inputs.wc is not None and (
        inputs.wc.dim() != 3 or inputs.channel_kernel_size not in KERNEL_SIZES
    ):
        refuse("wc", inputs.wc, f"[1, 1, k], {sizes}")
    shapes = operator.weight_shapes(
        channels, inputs.hidden, inputs.kernel_size, inputs.channel_kernel_size
    )
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
