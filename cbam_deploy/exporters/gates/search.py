"""Find attention gates in a graph of standard ops, and say of every other one why it is none.

A gate is one scaling of a map by an attention, or two that meet (`scalings`):

    x ─┬─ ReduceMean(2,3) ─ Gemm(W0,B0) ─ Relu ─ Gemm(W1,B1) ─┐
       ├─ ReduceMax(2,3) ── Gemm(W0,B0) ─ Relu ─ Gemm(W1,B1) ─┴ Add ─ Sigmoid ─ Unsqueeze ─┐
       └──────────────────────────────────────────────────────────────────────────────── Mul ─ z

    z ─┬─ ReduceMax(1) ── Concat(1) ─ Conv(WS) ─ [BatchNormalization] ─ Sigmoid ─┐
       ├─ ReduceMean(1) ──┘                                                      │
       └────────────────────────────────────────────────────────────────────── Mul ─ y

The first alone, with only the mean, is Squeeze-and-Excitation (`SeGate`); both are CBAM
(`CbamGate`). They also meet in the other order, with both attentions of x (x·Mc·Ms, in any order of
products), and in the sum x·Mc + x·Ms. What follows and alone uses y belongs to the gate (`behind`).

The graph is read backwards from each Mul by small readers, one for each part, which know the part's
spellings; what is drawn here is one of them. To understand another spelling of a part, widen its
reader:

    sigmoid ─ channel ─┬─ layers ─ activations ─┬─ pools ─ the map
            └ spatial ─┘                        ┘

Where two scalings do not make one gate, because one half cannot be read, or because something of
it is used elsewhere, each is looked at alone. onnxscript's patterns are not used for it: a pattern
is one combination of spellings, and it tells whether a graph matches, but not, in words that help
its owner, why one that looks like a gate does not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from cbam_deploy.exporters.gates.behind import Behind, read_behind
from cbam_deploy.exporters.gates.channel import Part, read_channel
from cbam_deploy.exporters.gates.groups import Group, group_scalings
from cbam_deploy.exporters.gates.matching import (
    Matched,
    Refused,
    is_constant,
)
from cbam_deploy.exporters.gates.pools import Map
from cbam_deploy.exporters.gates.region import add_dead_users, check_closed, whole_region
from cbam_deploy.exporters.gates.scalings import Attention, find_scaling, map_of
from cbam_deploy.exporters.gates.spatial import read_spatial
from cbam_deploy.gates.description import Arrangement, GateSpec
from cbam_deploy.gates.operators import GateOperator, operator_for
from cbam_deploy.graphs.shapes import Shapes

_MAP_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


@dataclass(frozen=True)
class FoundGate:
    """A gate of the graph that one node can replace.

    Attributes:
        operator: that computes it.
        x: the map it gates.
        gated: the map times its attentions.
        behind: what follows that, and is replaced too.
        weights: arrays by the names of the operator's inputs.
        channels: C; None where neither weights nor shapes tell.
        dtype: type of the maps, FP32 or FP16.
        nodes: what the node replaces.
        scopes: path of PyTorch modules down to the gate's own; empty where the file has none.
        group: the scalings that it is read from.
        gated_last: whether the gated map is [N, H, W, C].
    """

    operator: GateOperator
    x: Map
    gated: ir.Value
    behind: Behind
    weights: dict[str, NDArray[np.float32]]
    channels: int | None
    dtype: ir.DataType
    nodes: tuple[ir.Node, ...]
    scopes: tuple[str, ...]
    group: Group
    gated_last: bool = False

    @property
    def output(self) -> ir.Value:
        """What it makes, with what follows it."""
        return self.behind.output

    @property
    def residual(self) -> ir.Value | None:
        """The map added to the gated one, for the operators that add."""
        return self.behind.residual

    @property
    def where(self) -> str:
        """Path of its PyTorch module, or the name of its output."""
        return self.scopes[-1] if self.scopes else self.output.name or ""


@dataclass(frozen=True)
class RefusedGate:
    """Something that looks like a gate and stays as it is.

    Attributes:
        where: path of its PyTorch module, or the name of its output.
        reason: a sentence in PyTorch's words.
        nodes: that scale its map.
    """

    where: str
    reason: str
    nodes: tuple[ir.Node, ...] = ()


@dataclass(frozen=True)
class _ReadPart:
    """A part that was read, with the value it is computed from, its layout, and its nodes."""

    part: Part
    source: ir.Value
    channels_last: bool | None
    nodes: tuple[ir.Node, ...]


def find_gates(graph: ir.Graph, shapes: Shapes) -> tuple[list[FoundGate], list[RefusedGate]]:
    """All gates of `graph`, in its order."""
    scalings = [scaling for node in graph if (scaling := find_scaling(node, shapes)) is not None]
    found: list[FoundGate] = []
    refused: list[RefusedGate] = []
    for group in group_scalings(scalings):
        gates, left = _read_group(group, shapes)
        found += gates
        refused += left
        for gate in gates:
            if not gate.gated_last and not gate.x.channels_last:
                shapes.note_kept(gate.gated, gate.x.value)
    order = {node: index for index, node in enumerate(graph)}
    found.sort(key=lambda gate: order[gate.group.last])
    taken: set[ir.Node] = set()
    return [_with_behind(gate, shapes, taken) for gate in found], refused


def find_halves(
    gate: FoundGate, gates: Sequence[FoundGate], shapes: Shapes, reason: str
) -> tuple[list[FoundGate], list[RefusedGate]]:
    """What each part of a refused gate makes alone.

    Args:
        gate: one of two parts, or of one.
        gates: all gates of the graph.
        shapes: of the graph.
        reason: why the gate is refused.
    """
    halves, left = _read_halves(gate.group, shapes)
    taken = {node for other in gates if other is not gate for node in other.behind.nodes}
    halves = [_with_behind(half, shapes, taken) for half in halves]
    return (halves, left) if halves else ([], [RefusedGate(gate.where, reason, gate.group.nodes)])


def _read_group(group: Group, shapes: Shapes) -> tuple[list[FoundGate], list[RefusedGate]]:
    """The gate that scalings make, or of two the gates that each makes, and what is refused."""
    try:
        return [_read(group, shapes)], []
    except Refused as refusal:
        gates, left = _read_halves(group, shapes)
        return (
            (gates, left) if gates else ([], [RefusedGate(group.where, str(refusal), group.nodes)])
        )


def _read_halves(group: Group, shapes: Shapes) -> tuple[list[FoundGate], list[RefusedGate]]:
    gates, left = [], []
    for half in group.halves:
        try:
            gates.append(_read(half, shapes))
        except Refused as refusal:
            left.append(RefusedGate(group.where, str(refusal), group.nodes))
    return gates, left


def _read(group: Group, shapes: Shapes) -> FoundGate:
    """The gate that a group of scalings makes; raises `Refused`."""
    first = group.scalings[0]
    dims = shapes.dims(first.x)
    if dims is not None and len(dims) != 4:
        raise Refused(f"its map has {len(dims)} axes; gates of maps [N, C, H, W] are fused")
    read: dict[str, _ReadPart] = {}
    maps = [scaling.x for scaling in group.scalings]
    for scaling in group.scalings:
        for attention in scaling.attentions:
            read[attention.kind] = _read_part(attention, scaling.x, maps, shapes)
    arrangement = _arrangement(group, read)
    return _gate(group, arrangement, read, shapes)


def _read_part(
    attention: Attention, scaled: ir.Value, maps: Sequence[ir.Value], shapes: Shapes
) -> _ReadPart:
    """Read an attention, of the map that it scales or, in a product of both, of the first."""
    sources = dict.fromkeys([scaled, *maps])
    sources = dict.fromkeys(sorted(sources, key=lambda value: value not in attention.pooled))
    refusal = Refused("")
    reader: Callable[..., Part] = read_channel if attention.kind == "channel" else read_spatial
    for source in sources:
        x = map_of(source, attention.channels_last)
        matched = Matched(shapes, f"the {attention.kind} part")
        try:
            part = reader(attention.value, x, matched)
            return _ReadPart(part, source, attention.channels_last, tuple(matched.nodes))
        except Refused as refused:
            refusal = refusal if str(refusal) else refused
    raise refusal


def _arrangement(group: Group, read: dict[str, _ReadPart]) -> Arrangement:
    """How the parts meet."""
    first, last = group.scalings[0], group.scalings[-1]
    kinds = list(read)
    sources = [read[kind].source for kind in kinds]
    if sources[0] is not first.x:
        raise Refused(
            f"the {kinds[0]} part alone is computed from another map than the one it multiplies"
        )
    if len(kinds) == 1:
        return "channel" if kinds == ["channel"] else "spatial"
    if len(group.scalings) == 1:
        join = first.joined[0].op_type
        if sources[1] is first.x:
            return "parallel" if join == "Mul" else "sum"
    elif group.last is not last.node:
        if sources[1] is first.x:
            return "sum"
    elif sources[1] is last.x:
        return "channel-spatial" if kinds[0] == "channel" else "spatial-channel"
    elif sources[1] is first.x:
        return "parallel"
    raise Refused("its two parts are computed from maps that are not those they multiply")


def _spec(arrangement: Arrangement, read: dict[str, _ReadPart]) -> GateSpec:
    channel, spatial = read.get("channel"), read.get("spatial")
    if spatial is None:
        assert channel is not None
        return channel.part.gate
    of_spatial = spatial.part.gate
    if channel is None:
        return of_spatial
    return replace(
        channel.part.gate,
        arrangement=arrangement,
        spatial=of_spatial.spatial,
        kernel_size=of_spatial.kernel_size,
        spatial_gate=of_spatial.spatial_gate,
    )


def _gate(
    group: Group, arrangement: Arrangement, read: dict[str, _ReadPart], shapes: Shapes
) -> FoundGate:
    operator = operator_for(_spec(arrangement, read))
    first = group.scalings[0]
    layouts = {one.channels_last for one in read.values()}
    channels_last = None if layouts == {None} else True in layouts
    x = map_of(first.x, channels_last)
    region = {node for one in read.values() for node in one.nodes}
    region |= {scaling.node for scaling in group.scalings} | {group.last}
    region |= {node for scaling in group.scalings for node in scaling.joined}
    gated = group.last.outputs[0]
    dtype = _map_type([x.value, *(scaling.output for scaling in group.scalings)], region, shapes)
    if dtype not in _MAP_TYPES:
        raise Refused(f"its map is {dtype.name}; gates of FLOAT and FLOAT16 maps are fused")
    add_dead_users(region, group.last)
    region = whole_region(region, {x.value})
    transpose = first.x.producer()
    if x.value is not first.x and transpose and not set(first.x.consumers()) <= region:
        region.discard(transpose)
    attentions = {one.value for scaling in group.scalings for one in scaling.attentions}
    check_closed(region, group.last, attentions, "".join(read) if len(read) == 1 else "")
    _check_precision(region, dtype)
    arrays = {name: array for one in read.values() for name, array in one.part.weights.items()}
    return FoundGate(
        operator=operator,
        x=x,
        gated=gated,
        behind=Behind(gated),
        weights={name: arrays[name] for name in operator.weights},
        channels=_channels(arrays, x, shapes),
        dtype=dtype,
        nodes=tuple(region),
        scopes=group.scopes,
        group=group,
        gated_last=bool(channels_last) or x.value is not first.x,
    )


def _channels(weights: dict[str, NDArray[np.float32]], x: Map, shapes: Shapes) -> int | None:
    """C, as the weights or else the map's shape say."""
    if "B1" in weights:
        return len(weights["B1"])
    if "WD" in weights:
        return int(weights["WD"].shape[1])
    dims = shapes.dims(x.value)
    size = dims[x.channel_axes[0]] if dims is not None else None
    return size if isinstance(size, int) else None


def _check_precision(region: Collection[ir.Node], dtype: ir.DataType) -> None:
    """Refuse a gate of FP32 maps that rounds to FP16 inside, as autocast does.

    The node computes in FP32 and rounds once, to the type of its maps. Where that is FP16, what
    rounding inside does is of the size of that; where it is FP32, thousands of times as much.
    """
    for node in region:
        if node.op_type != "Cast" or is_constant(node.inputs[0]):
            continue
        to = ir.DataType(node.attributes.get_int("to"))
        if to == ir.DataType.FLOAT16 and dtype != to:
            raise Refused(
                f"a value inside is rounded to {to.name}, as autocast does, and the map is "
                f"{dtype.name}; a fused gate of {dtype.name} maps does not round inside"
            )


def _map_type(maps: Sequence[ir.Value], region: Collection[ir.Node], shapes: Shapes) -> ir.DataType:
    """The type of the maps, or of the weights where that is all that is known."""
    known = (shapes.dtype(value) for value in maps)
    dtype = next((one for one in known if one != ir.DataType.UNDEFINED), ir.DataType.UNDEFINED)
    values = [value for node in region for value in node.inputs if value is not None]
    tensors = [ir.convenience.get_const_tensor(value) for value in values]
    types = [tensor.dtype for tensor in tensors if tensor is not None]
    floats = [dtype for dtype in types if dtype in _MAP_TYPES]
    return floats[0] if dtype == ir.DataType.UNDEFINED and floats else dtype


def _with_behind(gate: FoundGate, shapes: Shapes, taken: set[ir.Node]) -> FoundGate:
    """The gate with what follows it, where nothing else uses it and no other gate has it."""
    like = gate.gated if gate.gated_last else gate.x.value
    behind = read_behind(gate.gated, like, shapes, taken)
    taken.update(behind.nodes)
    operator = replace(
        gate.operator, residual=behind.residual is not None, activation=behind.activation
    )
    return replace(gate, operator=operator, behind=behind, nodes=(*gate.nodes, *behind.nodes))
