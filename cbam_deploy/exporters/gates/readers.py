"""Find what may be an attention in front of a Mul, and read it whole.

Each part has its own reader, which takes the value that the part makes and returns what the part is
made of; to understand another spelling of a part, widen its reader:

    gate_sigmoid ─ gate_mlp     ─┐
                 └ gate_spatial ─┴ gate_pools ─ the map            all of them use gate_trail
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import onnx_ir as ir

from cbam_deploy.exporters.gates.matching import (
    MOST_STEPS,
    Trail,
    Weights,
    behind_copies,
    find_constant,
    is_constant,
    is_op,
    view_of,
)
from cbam_deploy.exporters.gates.mlp import Mlp, read_mlp
from cbam_deploy.exporters.gates.pools import Pool, is_pool
from cbam_deploy.exporters.gates.sigmoid import read_sigmoid
from cbam_deploy.exporters.gates.spatial import read_spatial
from cbam_deploy.graphs.shapes import Dims, Shapes

Kind = Literal["channel", "spatial"]

_ACTIVATIONS = ("Sigmoid", "HardSigmoid", "Softmax", "Tanh", "Relu", "Exp", "Clip")
_LEARNED = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class Scaling:
    """A Mul of a map by an attention.

    Attributes:
        node: the Mul.
        x: the map [N, C, H, W].
        attention: what it is multiplied by, [N, C, 1, 1] or [N, 1, H, W].
        kind: what the attention tells apart.
    """

    node: ir.Node
    x: ir.Value
    attention: ir.Value
    kind: Kind


@dataclass
class _Detour:
    """What lies behind an attention: the maps it pools, and the operators on the way."""

    pooled: list[ir.Value] = field(default_factory=list)
    learned: list[ir.Node] = field(default_factory=list)
    activated: bool = False
    meets_map: bool = False


def find_scaling(node: ir.Node, shapes: Shapes) -> Scaling | None:
    """`node` as a scaling, None if it is anything else."""
    if node.op_type != "Mul" or node.domain or len(node.inputs) != 2:
        return None
    likely = []
    for factor, attention in (node.inputs, node.inputs[::-1]):
        if factor is not None and attention is not None and not is_constant(factor):
            x = behind_copies(factor)
            likely.append((x, attention, _detour(attention, x)))
    # Where the sizes are unknown, the map is the operand that the other one pools.
    likely.sort(key=lambda entry: entry[0] not in entry[2].pooled)
    for x, attention, detour in likely:
        if not detour.learned or not detour.activated:
            continue
        dims = shapes.dims(_before_expansion(attention))
        if dims is None or None in dims:
            plausible = x in detour.pooled
        else:
            plausible = _is_narrow(dims) and (detour.meets_map or bool(detour.pooled))
        if plausible:
            return Scaling(node, x, attention, _kind(detour.learned[0]))
    return None


def channel_attention(scaling: Scaling, trail: Trail) -> tuple[Mlp, set[Pool]]:
    """Read sigmoid(MLP(pool(x)) [+ MLP(pool(x))]).

    Returns:
        The weights W0 [h, C], B0 [h], W1 [C, h], B1 [C] of the one MLP, and which pools it sees.
    """
    trail.note(scaling.node)
    return read_mlp(read_sigmoid(scaling.attention, trail), scaling.x, trail)


def spatial_attention(scaling: Scaling, trail: Trail) -> tuple[Weights, Weights]:
    """Read sigmoid([BatchNormalization](Conv(Concat(max, mean)))).

    Returns:
        WS [1, 2, k, k], channel 0 for the maximum, and BS [1], BatchNormalization folded in.
    """
    trail.note(scaling.node)
    return read_spatial(read_sigmoid(scaling.attention, trail), scaling.x, trail)


def _detour(attention: ir.Value, x: ir.Value) -> _Detour:
    """Follow `attention` back to what is pooled, or to `x`."""
    detour = _Detour()
    ahead, seen = [attention], {attention}
    while ahead and len(seen) < MOST_STEPS:
        value = ahead.pop(0)
        node = value.producer()
        if value is x:
            detour.meets_map = True
        elif is_pool(value):
            detour.pooled += _pooled(value)
        elif node is not None:
            if is_op(value, *_LEARNED):
                detour.learned.append(node)
            detour.activated |= is_op(value, *_ACTIVATIONS)
            sources = node.inputs[:1] if view_of(value) is not None else node.inputs
            new = [source for source in sources if source is not None and source not in seen]
            seen.update(new)
            ahead += new
    return detour


def _pooled(value: ir.Value) -> Iterator[ir.Value]:
    """What a pool is taken of: every value from it back through views and other pools."""
    for _ in range(MOST_STEPS):
        node = value.producer() if is_pool(value) else view_of(value)
        if node is None or (source := node.inputs[0]) is None:
            return
        value = source
        yield value


def _before_expansion(value: ir.Value) -> ir.Value:
    """The attention as it was before it was spread over the map."""
    for _ in range(MOST_STEPS):
        node = value.producer() if is_op(value, "Expand", "Identity", "Cast") else None
        if node is None or (source := node.inputs[0]) is None:
            break
        value = source
    return value


def _is_narrow(dims: Dims) -> bool:
    """Whether a shape is [N, C, 1, 1] or [N, 1, H, W], or that of sequences or of volumes."""
    return len(dims) in (3, 4, 5) and (dims[1] == 1 or all(size == 1 for size in dims[2:]))


def _kind(last: ir.Node) -> Kind:
    """An attention to positions is made by a convolution of a map, with one output channel."""
    if last.op_type != "Conv" or len(last.inputs) < 2:
        return "channel"
    w = find_constant(last.inputs[1])
    return "spatial" if w is not None and w.ndim == 4 and len(w) == 1 else "channel"
