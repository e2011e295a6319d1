"""Rounding to INT8 that learns: what Q and DQ of a file compute, with gradients.

``QuantizeLinear`` divides by the scale, rounds half to even and clamps. PyTorch's fake-quantize
functions multiply by the scale's reciprocal instead, which is another level for a few values in a
million. So they are given quotients and the scale 1 here: then every level is ONNX's.

The gradient passes through the rounding where a value is in range (straight-through estimator).
For the scale s of an activation x that makes round(x / s) - x / s in range and the largest level
beyond: Esser et al., "Learned Step Size Quantization", ICLR 2020, equation 3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cbam_deploy.exporters.int8.qdq import SMALLEST_SCALE
from cbam_deploy.exporters.int8.quantized_types import INT8


def fake_quantize(values: Tensor, scale: Tensor, lowest: int) -> Tensor:
    """What Q and DQ leave of `values`; `scale` broadcasts against them, levels end at 127."""
    levels = torch.fake_quantize_per_tensor_affine(values / scale, 1.0, 0, lowest, INT8.largest)
    return levels * scale


def fake_quantize_weight(weight: Tensor) -> Tensor:
    """A weight [channels, ...] rounded as `exporters.int8.qdq` stores it.

    Its scales follow it, max|w| / 127 for each output channel; their gradient is left out.
    """
    largest = weight.detach().flatten(1).abs().amax(1)
    # By a tensor: CUDA multiplies by the reciprocal of a number.
    scales = (largest / torch.full_like(largest, INT8.largest)).clamp(min=SMALLEST_SCALE)
    return fake_quantize(weight, scales.reshape(-1, *(1,) * (weight.ndim - 1)), -INT8.largest)


class ActivationQuantizer(nn.Module):
    """Q and DQ of one activation [N, ...], with a scale that is learnt.

    Args:
        scale: at first.
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """What is left of `x`."""
        # Section 2.2 of the paper: so a scale learns as fast as weights, however large `x` is.
        share = 1 / math.sqrt(INT8.largest * max(x[0].numel(), 1))
        scale: Tensor = _ScaledGradient.apply(self.scale, share)  # type: ignore[no-untyped-call]
        return fake_quantize(x, scale.clamp(min=SMALLEST_SCALE), INT8.lowest)

    @property
    def value(self) -> float:
        """The scale, as a file stores it."""
        return max(float(self.scale.detach()), SMALLEST_SCALE)


class _ScaledGradient(torch.autograd.Function):
    """The same value, with a gradient times a factor."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, value: Tensor, factor: float) -> Tensor:
        ctx.factor = factor  # type: ignore[attr-defined]
        return value.view_as(value)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None  # type: ignore[attr-defined]
