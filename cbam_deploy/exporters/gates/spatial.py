"""Read the logits of a spatial attention: a convolution of the map's maximum and mean.

    ReduceMax(1) ── Concat(1) ─ Conv(WS) ─ [Add] ─ [BatchNormalization]
    ReduceMean(1) ─┘

The bias may be in the Conv, in an Add behind it, or missing; a BatchNormalization is folded in.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from cbam_deploy.exporters.gates.matching import (
    Refused,
    Trail,
    Weights,
    input_of,
    is_op,
    split_scalar,
    weights,
)
from cbam_deploy.exporters.gates.pools import CHANNEL_AXES, read_pool

KERNEL_SIZES = (3, 7)


def read_spatial(logits: ir.Value, x: ir.Value, trail: Trail) -> tuple[Weights, Weights]:
    """Read the convolution over maximum and mean.

    Args:
        logits: what the sigmoid is taken of.
        x: the map [N, C, H, W].
        trail: gets the nodes.

    Returns:
        WS [1, 2, k, k], channel 0 for the maximum, and BS [1], all that follows folded in.
    """
    value = trail.behind_views(logits)
    normalization = None
    if is_op(value, "BatchNormalization"):
        normalization = trail.maker(value, "BatchNormalization")
        value = trail.behind_views(input_of(normalization, 0))
    added, value = _scalar_bias(value, trail)
    convolution = trail.maker(trail.behind_views(value), "Conv")
    ws, bs = _weights(convolution)
    bs = bs + added
    concat = trail.maker(trail.behind_views(input_of(convolution, 0)), "Concat")
    pools = [
        read_pool(input_of(concat, index), x, CHANNEL_AXES, trail)
        for index in range(len(concat.inputs))
    ]
    if concat.attributes.get_int("axis") not in (1, -3) or sorted(pools) != ["maximum", "mean"]:
        raise Refused(f"{concat.outputs[0].name} is not the maximum and the mean over channels")
    if pools[0] == "mean":
        ws = np.ascontiguousarray(ws[:, ::-1])
    if normalization is not None:
        ws, bs = _fold(normalization, ws, bs)
    return ws, bs


def _scalar_bias(value: ir.Value, trail: Trail) -> tuple[np.float32, ir.Value]:
    """A scalar that is added last, and what it is added to; 0 and `value` where none is."""
    if not is_op(value, "Add"):
        return np.float32(0), value
    add = trail.maker(value, "Add")
    split = split_scalar(add)
    if split is None:
        raise Refused(f"{value.name} is a sum, not a convolution with a bias")
    return np.float32(split[1]), split[0]


def _weights(node: ir.Node) -> tuple[Weights, Weights]:
    """WS [1, 2, k, k] and BS [1] of a convolution that keeps the map's size."""
    ws = weights(input_of(node, 1))
    name = node.outputs[0].name
    if ws.shape not in [(1, 2, k, k) for k in KERNEL_SIZES]:
        raise Refused(
            f"{name} is a convolution of shape {list(ws.shape)}, not [1, 2, k, k], k 3 or 7"
        )
    attributes = node.attributes
    half = ws.shape[-1] // 2
    same = attributes.get_string("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER")
    if any(step != 1 for step in attributes.get_ints("strides", [1])):
        raise Refused(f"{name} is a convolution with a stride")
    if any(step != 1 for step in attributes.get_ints("dilations", [1])):
        raise Refused(f"{name} is a dilated convolution")
    if not same and list(attributes.get_ints("pads", [0] * 4)) != [half] * 4:
        raise Refused(f"{name} is a convolution that is not padded by {half} all around")
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return ws, np.zeros(1, np.float32) if bias is None else weights(bias)


def _fold(node: ir.Node, ws: Weights, bs: Weights) -> tuple[Weights, Weights]:
    """Weights of a convolution and the BatchNormalization of its one output channel, in one."""
    scale, shift, mean, variance = (
        weights(input_of(node, index)).astype(np.float64) for index in (1, 2, 3, 4)
    )
    factor = scale / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    folded = (bs - mean) * factor + shift
    return (ws * factor).astype(np.float32), folded.astype(np.float32)
