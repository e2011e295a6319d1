"""The attention gate: which channels, and which positions, of a feature map matter.

Source: Woo, Park, Lee, Kweon, "CBAM: Convolutional Block Attention Module", ECCV 2018, section 3
(https://arxiv.org/abs/1807.06521), with the variants of section 4.1. Squeeze-and-Excitation (Hu,
Shen, Sun, CVPR 2018) is the variant `spec.SE`.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from cbam_deploy.gates.description import ChannelPool, GateSpec, Spatial


class ChannelAttention(nn.Module):
    """Mc(x) = sigmoid(MLP(AvgPool(x)) + MLP(MaxPool(x))), equation 2 of the paper.

    One shared MLP, W1·ReLU(W0·v + b0) + b1, sees both pooled vectors (so b1 counts twice); the
    sigmoid applies to the sum. With `pool` ``avg`` or ``max`` only that vector is used.

    Args:
        channels: C, channels of the feature map.
        reduction: r; the MLP's hidden layer has max(C // r, 1) units.
        pool: which pooled vectors the MLP sees.
    """

    def __init__(self, channels: int, reduction: int, pool: ChannelPool) -> None:
        super().__init__()
        hidden = max(channels // reduction, 1)
        self.pool = pool
        self.reduce = nn.Linear(channels, hidden)
        self.expand = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Attention [N, C, 1, 1] of a map `x` [N, C, H, W]."""
        if self.pool == "avg":
            logits = self._mlp(x.mean((2, 3)))
        elif self.pool == "max":
            logits = self._mlp(x.amax((2, 3)))
        else:
            logits = self._mlp(x.mean((2, 3))) + self._mlp(x.amax((2, 3)))
        return logits.sigmoid()[:, :, None, None]

    def _mlp(self, pooled: Tensor) -> Tensor:
        out: Tensor = self.expand(self.reduce(pooled).relu())
        return out


class SpatialAttention(nn.Module):
    """Ms(x) = sigmoid(BN(conv_kxk(d(x)))), equation 3 of the paper.

    The descriptor d(x) stacks the channel-wise maximum (channel 0) and mean (channel 1); with
    `descriptor` ``conv1x1`` it is one map, made by a learned 1x1 convolution (section 4.1). As in
    the authors' code the k x k convolution has no bias and a BatchNorm follows it; both fold into
    one convolution with bias.

    Args:
        channels: C, channels of the feature map; only the 1x1 convolution depends on it.
        kernel_size: k, odd.
        descriptor: ``pool`` or ``conv1x1``.
    """

    def __init__(self, channels: int, kernel_size: int, descriptor: Spatial) -> None:
        super().__init__()
        pooled = descriptor == "pool"
        self.describe = None if pooled else nn.Conv2d(channels, 1, 1, bias=False)
        self.conv = nn.Conv2d(
            2 if pooled else 1, 1, kernel_size, padding=kernel_size // 2, bias=False
        )
        self.bn = nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        """Attention [N, 1, H, W] of a map `x` [N, C, H, W]."""
        if self.describe is None:
            described = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], dim=1)
        else:
            described = self.describe(x)
        attention: Tensor = self.bn(self.conv(described)).sigmoid()
        return attention


class FusedOperators(Protocol):
    """Operators that compute a whole gate, such as those of `plugins.torch_gate`."""

    def computes(self, gate: AttentionGate) -> bool:
        """Whether they compute `gate` as it is now."""
        ...

    def __call__(self, gate: AttentionGate, x: Tensor, residual: Tensor | None) -> Tensor:
        """The gate of `x` [N, C, H, W], or relu(gate(x) + residual)."""
        ...


class AttentionGate(nn.Module):
    """Refine a feature map by the attention that `spec` names.

    In sequence, the second attention sees the refined map: x' = x·Mc(x), y = x'·Ms(x'). In
    parallel, which the paper's table 3 compares without writing its equation, both see the input:
    y = x·Mc(x)·Ms(x). Given a residual, the result is relu(y + residual).

    Args:
        channels: C, channels of the feature map.
        spec: the variant.

    Attributes:
        operators: what computes the gate in place of standard operators, where it can; parameters
            and results stay the same, up to rounding.
    """

    channel: ChannelAttention
    spatial: SpatialAttention

    def __init__(self, channels: int, spec: GateSpec) -> None:
        super().__init__()
        self.spec = spec
        self.operators: FusedOperators | None = None
        if spec.arrangement != "spatial":
            self.channel = ChannelAttention(channels, spec.reduction, spec.channel_pool)
        if spec.arrangement != "channel":
            self.spatial = SpatialAttention(channels, spec.kernel_size, spec.spatial)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """The refined map, of the shape [N, C, H, W] of `x` and of `residual`."""
        if self.operators is not None and self.operators.computes(self):
            return self.operators(self, x, residual)
        refined = self._refine(x)
        return refined if residual is None else (refined + residual).relu()

    def _refine(self, x: Tensor) -> Tensor:
        if self.spec.arrangement == "parallel":
            parallel: Tensor = x * self.channel(x) * self.spatial(x)
            return parallel
        if self.spec.arrangement in ("channel-spatial", "channel"):
            x = x * self.channel(x)
        if self.spec.arrangement != "channel":
            x = x * self.spatial(x)
        if self.spec.arrangement == "spatial-channel":
            x = x * self.channel(x)
        return x

    def extra_repr(self) -> str:
        """The variant, for `print(model)`."""
        return repr(self.spec)
