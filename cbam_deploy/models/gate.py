"""The attention gate: which channels, and which positions, of a feature map matter.

Source: Woo, Park, Lee, Kweon, "CBAM: Convolutional Block Attention Module", ECCV 2018, section 3
(https://arxiv.org/abs/1807.06521), with the variants of section 4.1. Squeeze-and-Excitation (Hu,
Shen, Sun, CVPR 2018) is the variant `SE`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cbam_deploy.gates.description import Activation, GateFunction, GateSpec

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "hard_swish": F.hardswish,
}
GATE_FUNCTIONS: dict[GateFunction, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "hard_sigmoid": F.hardsigmoid,
}


class ChannelAttention(nn.Module):
    """Mc(x) = sigmoid(MLP(AvgPool(x)) + MLP(MaxPool(x))), equation 2 of the CBAM paper.

    One mixer sees the pooled vectors: the shared MLP W1·ReLU(W0·v + b0) + b1 (b1 counts twice),
    one layer W·v + b, or a convolution along the channels without bias. `spec` says which, which
    pools there are and where they join, and which functions take the place of ReLU and sigmoid.

    Args:
        channels: C, channels of the feature map.
        spec: the variant; the MLP's hidden layer has max(C // spec.reduction, 1) units.
    """

    reduce: nn.Linear
    expand: nn.Linear
    mix: nn.Linear | nn.Conv1d

    def __init__(self, channels: int, spec: GateSpec) -> None:
        super().__init__()
        self.spec = spec
        if spec.mixer == "mlp":
            hidden = max(channels // spec.reduction, 1)
            self.reduce = nn.Linear(channels, hidden)
            self.expand = nn.Linear(hidden, channels)
        elif spec.mixer == "linear":
            self.mix = nn.Linear(channels, channels)
        else:
            size = spec.channel_kernel_size
            self.mix = nn.Conv1d(1, 1, size, padding=size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Attention [N, C, 1, 1] of a map `x` [N, C, H, W]."""
        spec, gate = self.spec, GATE_FUNCTIONS[self.spec.channel_gate]
        if spec.channel_pool == "avg":
            attention = gate(self._mixed(x.mean((2, 3))))
        elif spec.channel_pool == "max":
            attention = gate(self._mixed(x.amax((2, 3))))
        elif spec.join == "pools":
            attention = gate(self._mixed((x.mean((2, 3)) + x.amax((2, 3))) / 2))
        else:
            of_mean, of_max = self._mixed(x.mean((2, 3))), self._mixed(x.amax((2, 3)))
            gates = spec.join == "gates"
            attention = gate(of_mean) + gate(of_max) if gates else gate(of_mean + of_max)
        return attention[:, :, None, None]

    def _mixed(self, pooled: Tensor) -> Tensor:
        """Logits [N, C] of a pooled vector [N, C]."""
        if self.spec.mixer == "mlp":
            pooled = ACTIVATIONS[self.spec.activation](self.reduce(pooled))
            expanded: Tensor = self.expand(pooled)
            return expanded
        mixed: Tensor = self.mix(pooled if self.spec.mixer == "linear" else pooled[:, None])
        return mixed if self.spec.mixer == "linear" else mixed.squeeze(1)


class SpatialAttention(nn.Module):
    """Ms(x) = sigmoid(BN(conv_kxk(d(x)))), equation 3 of the CBAM paper.

    The descriptor d(x) stacks the channel-wise maximum (channel 0) and mean (channel 1), or is one
    of them, or one map made by a learned 1x1 convolution (section 4.1). As in the authors' code the
    k x k convolution has no bias and a BatchNorm follows it; both fold into one convolution with
    bias.

    Args:
        channels: C, channels of the feature map; only the 1x1 convolution depends on it.
        spec: the variant.
    """

    def __init__(self, channels: int, spec: GateSpec) -> None:
        super().__init__()
        self.spec = spec
        learned, size = spec.spatial == "conv1x1", spec.kernel_size
        self.describe = nn.Conv2d(channels, 1, 1, bias=False) if learned else None
        self.conv = nn.Conv2d(
            2 if spec.spatial == "pool" else 1, 1, size, padding=size // 2, bias=False
        )
        self.bn = nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        """Attention [N, 1, H, W] of a map `x` [N, C, H, W]."""
        if self.describe is not None:
            described = self.describe(x)
        elif self.spec.spatial == "pool":
            described = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], dim=1)
        elif self.spec.spatial == "max":
            described = x.amax(1, keepdim=True)
        else:
            described = x.mean(1, keepdim=True)
        return GATE_FUNCTIONS[self.spec.spatial_gate](self.bn(self.conv(described)))


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
    y = x·Mc(x)·Ms(x); so they do where they are summed: y = x·Mc(x) + x·Ms(x). Given a residual,
    the result is relu(y + residual).

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
        if spec.has_channel:
            self.channel = ChannelAttention(channels, spec)
        if spec.has_spatial:
            self.spatial = SpatialAttention(channels, spec)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """The refined map, of the shape [N, C, H, W] of `x` and of `residual`."""
        if self.operators is not None and self.operators.computes(self):
            return self.operators(self, x, residual)
        refined = self._refine(x)
        return refined if residual is None else (refined + residual).relu()

    def _refine(self, x: Tensor) -> Tensor:
        arrangement = self.spec.arrangement
        if arrangement == "parallel":
            parallel: Tensor = x * self.channel(x) * self.spatial(x)
            return parallel
        if arrangement == "sum":
            both: Tensor = x * self.channel(x) + x * self.spatial(x)
            return both
        for part in arrangement.split("-"):
            x = x * (self.channel(x) if part == "channel" else self.spatial(x))
        return x

    def extra_repr(self) -> str:
        """The variant, for `print(model)`."""
        return repr(self.spec)
