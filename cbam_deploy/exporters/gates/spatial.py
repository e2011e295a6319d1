"""Read the spatial part of a gate: descriptor, k x k convolution, gate function.

    ReduceMax(1) ── Concat(1) ─ Conv ─ [BatchNormalization] ── σ     maximum and mean, or one
    ReduceMean(1) ─┘
    0.5·ReduceMax(1) + 0.5·ReduceMean(1) ─ Conv ── σ                 the same, with weights in half
    Conv 1x1 C -> 1 ─ [Conv k x k] ── σ                              a learned descriptor

A bias may be in the Conv, in an Add behind it, or missing, and a dilated kernel is as large as what
it covers. A bias of the descriptor itself is not, where a k x k convolution pads what comes behind
it with zeros.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from cbam_deploy.exporters.gates.channel import Part
from cbam_deploy.exporters.gates.layers import Layer, dense_kernel, is_layer, read_layer
from cbam_deploy.exporters.gates.matching import Matched, Weights, input_of, is_op, said
from cbam_deploy.exporters.gates.pools import Map, Pool, pool_shares
from cbam_deploy.exporters.gates.sigmoid import read_gate_function
from cbam_deploy.gates.description import GateFunction, GateSpec, Spatial

_FUSED = "fused are conv_k[max; mean], conv_k of one of them or of w·x, k odd"


def read_spatial(attention: ir.Value, x: Map, matched: Matched) -> Part:
    """Read the spatial part whose attention is [N, 1, H, W] or a view of it.

    Raises:
        Refused: it is none of those above.
    """
    function, logits = read_gate_function(attention, matched)
    layer = read_layer(logits, matched)
    if layer is None:
        what = said(matched.behind_views(logits))
        raise matched.refused(f"σ is taken of {what}, not of a convolution; {_FUSED}")
    if len(layer.w) != 1:
        raise matched.refused(f"its convolution makes {len(layer.w)} maps, not one; {_FUSED}")
    source = matched.behind_views(layer.source, x.value)
    if source is x.value:
        if not layer.is_linear:
            size = "x".join(map(str, layer.w.shape[2:]))
            raise matched.refused(f"a {size} convolution sees all channels of x; {_FUSED}")
        return _part("conv1x1", function, np.ones((1, 1, 1, 1), np.float32), layer.b, layer.w)
    if is_layer(source):
        descriptor = _descriptor(source, x, matched)
        ws = _kernel(layer, matched)
        bs = layer.b + ws.sum() * descriptor.b if ws.shape[-1] == 1 else layer.b
        if ws.shape[-1] > 1 and descriptor.b.any():
            raise matched.refused(
                "its 1x1 convolution has a bias, which the next one's zero padding does not see "
                "at the border; give it bias=False"
            )
        return _part("conv1x1", function, ws, bs, descriptor.w)
    ws = _kernel(layer, matched)
    if is_op(source, "Concat"):
        pools, ws = _concatenated(source, ws, x, matched)
    else:
        shares = pool_shares(source, x, x.channel_axes, matched)
        pools = tuple(shares)
        if ws.shape[1] != 1:
            raise matched.refused(f"its convolution sees {ws.shape[1]} maps where there is one")
        ws = np.concatenate([ws * np.float32(share) for share in shares.values()], 1)
    if len(pools) == 1:
        return _part("avg" if pools[0] == "mean" else "max", function, ws, layer.b)
    if pools[0] == "mean":
        ws = np.ascontiguousarray(ws[:, ::-1])
    return _part("pool", function, ws, layer.b)


def _part(
    spatial: Spatial, function: GateFunction, ws: Weights, bs: Weights, wd: Weights | None = None
) -> Part:
    gate = GateSpec(
        arrangement="spatial",
        spatial=spatial,
        kernel_size=ws.shape[-1],
        spatial_gate=function,
    )
    descriptor = {} if wd is None else {"WD": wd.reshape(1, -1, 1, 1)}
    return Part(gate, {**descriptor, "WS": ws.astype(np.float32), "BS": bs.astype(np.float32)})


def _descriptor(value: ir.Value, x: Map, matched: Matched) -> Layer:
    """Read the 1x1 convolution of the map to one channel."""
    layer = read_layer(value, matched)
    if layer is None or not layer.is_linear or len(layer.w) != 1:
        raise matched.refused(f"two convolutions, the first of them not 1x1 to one map; {_FUSED}")
    if matched.behind_views(layer.source, x.value) is not x.value:
        raise matched.refused(
            f"it is computed from another map ({said(layer.source)}) than the one it multiplies"
        )
    return layer


def _kernel(layer: Layer, matched: Matched) -> Weights:
    """[1, d, k, k] of a convolution that keeps the map's size."""
    if layer.is_linear:
        return layer.w.reshape(*layer.w.shape, 1, 1)
    if layer.w.ndim != 4:
        raise matched.refused(f"its convolution is of {layer.w.ndim - 2} axes, not 2; {_FUSED}")
    dense = dense_kernel(layer, matched)
    if dense.shape[2] != dense.shape[3]:
        raise matched.refused(f"a {dense.shape[2]}x{dense.shape[3]} convolution is not square")
    return dense


def _concatenated(
    value: ir.Value, ws: Weights, x: Map, matched: Matched
) -> tuple[tuple[Pool, ...], Weights]:
    """The pools that are concatenated, and weights with their scalars."""
    concat = value.producer()
    assert concat is not None
    matched.note(concat)
    shares = [
        pool_shares(input_of(concat, index), x, x.channel_axes, matched)
        for index in range(len(concat.inputs))
    ]
    axis = concat.attributes.get_int("axis") % 4
    pools = tuple(pool for one in shares for pool in one)
    one_each = all(len(one) == 1 for one in shares) and len(set(pools)) == len(pools)
    if axis not in (1, 3) or not one_each or ws.shape[1] != len(pools):
        raise matched.refused(f"its convolution does not see [max; mean] over channels; {_FUSED}")
    scalars = [share for one in shares for share in one.values()]
    if any(scalar != 1 for scalar in scalars):
        ws = ws * np.array(scalars, np.float32).reshape(1, -1, 1, 1)
    return pools, ws
