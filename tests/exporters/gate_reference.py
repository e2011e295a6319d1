"""The attention gate in float64, written from the papers' equations in PyTorch's functions.

Woo et al., "CBAM", ECCV 2018, equations 1 to 3; Hu et al., "Squeeze-and-Excitation Networks", CVPR
2018, equations 2 to 4; Wang et al., "ECA-Net", CVPR 2020, equation 8; Roy et al., MICCAI 2018.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from cbam_deploy.gates.operators import operator_named

ACTIVATIONS: dict[str, Callable[..., Any]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "hard_swish": F.hardswish,
}
GATES: dict[str, Callable[..., Any]] = {"sigmoid": torch.sigmoid, "hard_sigmoid": F.hardsigmoid}


def mixed(spec, v, weights):
    """Logits [N, C] of one statistic [N, C]."""
    if spec.mixer == "conv":
        size = weights["WC"].shape[-1]
        return F.conv1d(v[:, None], weights["WC"], weights["BC"], padding=size // 2)[:, 0]
    if spec.mixer == "mlp":
        v = ACTIVATIONS[spec.activation](F.linear(v, weights["W0"], weights["B0"]))
    return F.linear(v, weights["W1"], weights["B1"])


def channel_attention(spec, x, weights):
    """Mc of `x` [N, C, H, W], [N, C, 1, 1]."""
    pools = {"avg": [x.mean((2, 3))], "max": [x.amax((2, 3))]}
    pools["avg+max"] = pools["avg"] + pools["max"]
    pooled = pools[spec.channel_pool]
    if spec.join == "pools":
        pooled = [torch.stack(pooled).mean(0)]
    logits = torch.stack([mixed(spec, v, weights) for v in pooled])
    gate = GATES[spec.channel_gate]
    attention = gate(logits).sum(0) if spec.join == "gates" else gate(logits.sum(0))
    return attention[:, :, None, None]


def spatial_attention(spec, x, weights):
    """Ms of `x` [N, C, H, W], [N, 1, H, W]."""
    if spec.spatial == "conv1x1":
        described = F.conv2d(x, weights["WD"])
    else:
        planes = {"max": [x.amax(1, keepdim=True)], "avg": [x.mean(1, keepdim=True)]}
        planes["pool"] = planes["max"] + planes["avg"]
        described = torch.cat(planes[spec.spatial], 1)
    reach = weights["WS"].shape[-1] // 2
    logits = F.conv2d(described, weights["WS"], weights["BS"], padding=reach)
    return GATES[spec.spatial_gate](logits)


def gate(op, x, weights, residual=None):
    """What operator `op` computes, in float64, from arrays of any type."""
    operator = operator_named(op)
    spec = operator.gate
    weights = {name: torch.from_numpy(array).double() for name, array in weights.items()}
    x = torch.from_numpy(x).double()
    y = x
    if spec.arrangement == "parallel":
        y = x * channel_attention(spec, x, weights) * spatial_attention(spec, x, weights)
    elif spec.arrangement == "sum":
        y = x * channel_attention(spec, x, weights) + x * spatial_attention(spec, x, weights)
    else:
        for part in spec.arrangement.split("-"):
            attention = channel_attention if part == "channel" else spatial_attention
            y = y * attention(spec, y, weights)
    if operator.residual:
        y = y + torch.from_numpy(residual).double()
    if operator.activation != "none":
        y = ACTIVATIONS[operator.activation](y)
    return y.numpy()
