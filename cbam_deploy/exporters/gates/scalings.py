"""Find what may be an attention in front of a Mul.

A *scaling* is a Mul of a map by an attention that is computed from a map and is the same all over a
channel or all over a position, or by the product or the sum of one of each.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Literal

import onnx_ir as ir

from cbam_deploy.exporters.gates.matching import (
    MOST_STEPS,
    Refused,
    behind_copies,
    find_constant,
    input_of,
    is_constant,
    is_op,
    view_of,
)
from cbam_deploy.exporters.gates.pools import Map, is_pool, pooled_axes
from cbam_deploy.graphs.shapes import Dims, Shapes

Kind = Literal["channel", "spatial"]

_ACTIVATIONS = (
    *("Sigmoid", "HardSigmoid", "Softmax", "Tanh", "Relu", "Exp", "Clip", "Min", "Max"),
    *("LeakyRelu", "Elu", "Softplus", "Softsign", "Erf"),
)
_LEARNED = ("Conv", "Gemm", "MatMul")
_TO_CHANNELS_LAST = [0, 2, 3, 1]


@dataclass(frozen=True)
class Attention:
    """What a map is multiplied by.

    Attributes:
        value: [N, C, 1, 1] or [N, 1, H, W], or a view of it.
        kind: what it tells apart.
        pooled: the maps behind it that are pooled.
        channels_last: whether the map is pooled as [N, H, W, C]; None where that cannot be told.
    """

    value: ir.Value
    kind: Kind
    pooled: tuple[ir.Value, ...]
    channels_last: bool | None


@dataclass(frozen=True)
class Scaling:
    """A Mul of a map by one attention, or by two of different kinds.

    Attributes:
        node: the Mul.
        x: the map.
        attentions: one, or two.
        joined: the nodes between two attentions and the Mul, the first of them joins the two.
    """

    node: ir.Node
    x: ir.Value
    attentions: tuple[Attention, ...]
    joined: tuple[ir.Node, ...] = ()

    @property
    def output(self) -> ir.Value:
        """The gated map."""
        return self.node.outputs[0]

    @property
    def kind(self) -> Kind | None:
        """Of its one attention."""
        return self.attentions[0].kind if len(self.attentions) == 1 else None


@dataclass
class _Search:
    """What lies behind an attention: the maps it pools, and the operators on the way."""

    pools: list[ir.Node] = field(default_factory=list)
    pooled: list[ir.Value] = field(default_factory=list)
    learned: list[ir.Node] = field(default_factory=list)
    activated: bool = False
    meets_map: bool = False


def find_scaling(node: ir.Node, shapes: Shapes) -> Scaling | None:
    """`node` as a scaling, None if it is anything else."""
    if node.op_type != "Mul" or node.domain or len(node.inputs) != 2:
        return None
    found = []
    for factor, other in (node.inputs, node.inputs[::-1]):
        if factor is None or other is None or is_constant(factor):
            continue
        x = behind_copies(factor)
        if is_op(x, "Expand") or not _may_be_alike(shapes.dims(x), shapes.dims(node.outputs[0])):
            continue  # It is spread over something else: an attention itself.
        one = _attention(other, x, shapes)
        if one is not None:
            found.append(Scaling(node, x, (one,)))
        else:
            found += _of_two(node, x, other, shapes)
    # Where the sizes are unknown, the map is the operand that the other one pools.
    found.sort(key=lambda scaling: scaling.x not in scaling.attentions[0].pooled)
    return found[0] if found else None


def _may_be_alike(one: Dims | None, other: Dims | None) -> bool:
    """Whether no sizes are known to differ; one of 1 does from one that is free."""
    pairs = zip(one or (), other or (), strict=False)
    return all(
        a == b
        for a, b in pairs
        if isinstance(a, int) and (isinstance(b, int) or (a == 1 and b is not None))
    )


def map_of(value: ir.Value, channels_last: bool | None) -> Map:
    """The map that `value` is; of a map that was transposed to channels-last, the one before.

    A map that is pooled as [N, C, H, W] is one, whatever it was transposed from.
    """
    node = value.producer()
    order = node.attributes.get_ints("perm", []) if node and is_op(value, "Transpose") else []
    if node is not None and list(order) == _TO_CHANNELS_LAST and channels_last is not False:
        return Map(input_of(node, 0))
    return Map(value, bool(channels_last))


def _of_two(node: ir.Node, x: ir.Value, value: ir.Value, shapes: Shapes) -> Iterator[Scaling]:
    """The scaling by a product or a sum of two attentions."""
    inside = _before_expansion(value)
    join = inside.producer()
    if join is None or not is_op(inside, "Mul", "Add"):
        return
    attentions = [
        attention
        for term in join.inputs
        if term is not None and (attention := _attention(term, x, shapes)) is not None
    ]
    if len(attentions) == 2 and attentions[0].kind != attentions[1].kind:
        yield Scaling(node, x, (attentions[0], attentions[1]), (join, *_expansion(value)))


def _attention(value: ir.Value, x: ir.Value, shapes: Shapes) -> Attention | None:
    """`value` as an attention of the map `x` or of one it was made from."""
    maps = {x, *_factors(x)}
    search = _search(value, maps)
    if not search.learned or not search.activated:
        return None
    of_one_channel = _has_one_channel(search.learned[0])
    dims = shapes.dims(_before_expansion(value))
    if dims is None or None in dims:
        plausible = bool(maps & set(search.pooled)) or (of_one_channel and search.meets_map)
        narrow = None
    else:
        narrow = _kind_by_size(dims)
        if narrow is None and len(dims) == 4 and dims[3] == 1 and of_one_channel:
            narrow = "spatial"
        plausible = narrow is not None and (search.meets_map or bool(search.pooled))
    if not plausible:
        return None
    kind = _clear_kind(dims) or _kind(search, of_one_channel)
    return Attention(value, kind, tuple(search.pooled), _is_channels_last(search, maps, kind))


def _kind_by_size(dims: Dims) -> Kind | None:
    """What a value of this shape tells apart: [N, C, 1, 1], [N, 1, 1, C] or [N, 1, H, W].

    Shapes of sequences and of volumes are told as well.
    """
    if len(dims) not in (3, 4, 5):
        return None
    if all(size == 1 for size in dims[2:]) or all(size == 1 for size in dims[1:-1]):
        return "channel"
    return "spatial" if dims[1] == 1 else None


def _clear_kind(dims: Dims | None) -> Kind | None:
    """What [N, C, 1, 1] or [N, 1, H, W] tells apart, where neither C nor H is 1."""
    if dims is None or None in dims or len(dims) != 4 or dims[1] == dims[2] == 1:
        return None
    if dims[2] == dims[3] == 1:
        return "channel"
    return "spatial" if dims[1] == 1 else None


def _kind(search: _Search, of_one_channel: bool) -> Kind:
    """An attention to positions is made by a convolution of a map, with one output channel."""
    if not of_one_channel:
        return "channel"
    axes = [_axes(node) for node in search.pools]
    over_positions = any(len(one) == 2 or one == (2,) for one in axes)
    return "channel" if over_positions else "spatial"


def _has_one_channel(node: ir.Node) -> bool:
    if node.op_type != "Conv" or len(node.inputs) < 2:
        return False
    w = find_constant(node.inputs[1])
    if w is None or w.ndim != 4 or len(w) != 1:
        return False
    return bool(w.shape[1] > 1 or w.shape[2] == w.shape[3])  # Else it is along the channels.


def _is_channels_last(search: _Search, maps: Collection[ir.Value], kind: Kind) -> bool | None:
    """Whether one of `maps` is pooled over the axes that [N, H, W, C] has; None of no pool."""
    wanted = (1, 2) if kind == "channel" else (3,)
    of_map = [node for node in search.pools if node.inputs[0] in maps]
    return all(_axes(node) == wanted for node in of_map) if of_map else None


def _axes(node: ir.Node) -> tuple[int, ...]:
    try:
        return pooled_axes(node)
    except Refused:
        return ()


def _factors(value: ir.Value) -> Iterator[ir.Value]:
    """The operands of a product, and of a product among them."""
    ahead = [value]
    for _ in range(4):
        if not ahead:
            return
        top = ahead.pop(0)
        node = top.producer()
        if node is not None and is_op(top, "Mul"):
            new = [behind_copies(one) for one in node.inputs if one is not None]
            yield from new
            ahead += new


def _search(attention: ir.Value, maps: Collection[ir.Value]) -> _Search:
    """Follow `attention` back to what is pooled, or to one of `maps`."""
    search = _Search()
    ahead, seen = [attention], {attention}
    while ahead and len(seen) < MOST_STEPS:
        value = ahead.pop(0)
        node = value.producer()
        if value in maps:
            search.meets_map = True
        elif is_pool(value) and node is not None:
            search.pools.append(node)
            search.pooled += _pooled(value)
        elif node is not None:
            if is_op(value, *_LEARNED):
                search.learned.append(node)
            search.activated |= is_op(value, *_ACTIVATIONS)
            sources = node.inputs[:1] if view_of(value) is not None else node.inputs
            known = ir.convenience.get_const_tensor
            computed = [one for one in sources if one is not None and known(one) is None]
            new = [source for source in computed if source not in seen]
            seen.update(new)
            ahead += new
    return search


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
    for node in _expansion(value):
        value = input_of(node, 0)
    return value


def _expansion(value: ir.Value) -> list[ir.Node]:
    """The nodes that spread an attention over a map, the last first."""
    nodes: list[ir.Node] = []
    for _ in range(MOST_STEPS):
        node = value.producer() if is_op(value, "Expand", "Identity", "Cast") else None
        if node is None or (source := node.inputs[0]) is None:
            break
        nodes.append(node)
        value = source
    return nodes
