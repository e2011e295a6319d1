"""Find attention gates in a graph of standard ops, and say of every other one why it is none.

A *scaling* is a Mul of a map [N,C,H,W] by an attention that is computed from that map and is the
same all over a channel [N,C,1,1] or all over a position [N,1,H,W]. A gate is one or two of them:

    x ─┬─ ReduceMean(2,3) ─ Gemm(W0,B0) ─ Relu ─ Gemm(W1,B1) ─┐
       ├─ ReduceMax(2,3) ── Gemm(W0,B0) ─ Relu ─ Gemm(W1,B1) ─┴ Add ─ Sigmoid ─ Unsqueeze ─┐
       └──────────────────────────────────────────────────────────────────────────────── Mul ─ z

    z ─┬─ ReduceMax(1) ── Concat(1) ─ Conv(WS) ─ [BatchNormalization] ─ Sigmoid ─┐
       ├─ ReduceMean(1) ──┘                                                      │
       └────────────────────────────────────────────────────────────────────── Mul ─ y

The first alone, with only the mean, is Squeeze-and-Excitation (`SeGate`); both are CBAM
(`CbamGate`). A residual addition and ReLU that alone use y belong to the gate (`...AddRelu`):

    y ─ Add(R) ─ Relu

The graph is read backwards from each Mul by small readers, one for each of these parts, which know
the part's spellings; what is drawn here is one of them. onnxscript's patterns are not used for
it: a pattern is one combination of spellings, and it tells whether a graph matches, but not, in
words that help its owner, why one that looks like a gate does not.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from cbam_deploy.exporters.gates.matching import Refused, Trail, is_constant
from cbam_deploy.exporters.gates.pools import Pool
from cbam_deploy.exporters.gates.readers import (
    Scaling,
    channel_attention,
    find_scaling,
    spatial_attention,
)
from cbam_deploy.exporters.gates.region import add_dead_users, check_closed, whole_region
from cbam_deploy.gates.description import CBAM, SE, ChannelPool
from cbam_deploy.gates.operators import GateOperator, operator_for
from cbam_deploy.graphs.name_scopes import scopes_of
from cbam_deploy.graphs.shapes import Shapes

_MAP_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
_CHANNEL_POOLS: dict[frozenset[Pool], ChannelPool] = {
    frozenset({"mean"}): "avg",
    frozenset({"maximum"}): "max",
    frozenset({"mean", "maximum"}): "avg+max",
}


@dataclass(frozen=True)
class FoundGate:
    """A gate of the graph that one node can replace.

    Attributes:
        operator: that computes it.
        x: the map it gates.
        gated: the map times its attentions.
        output: what it makes: `gated`, or the rectified sum of it and the residual.
        residual: the map added to the gated one, for the operators that add.
        weights: arrays in the order of the operator's inputs.
        dtype: type of the maps, FP32 or FP16.
        nodes: what the node replaces, in the graph's order.
        scopes: path of PyTorch modules down to the gate's own; empty where the file has none.
    """

    operator: GateOperator
    x: ir.Value
    gated: ir.Value
    output: ir.Value
    residual: ir.Value | None
    weights: dict[str, NDArray[np.float32]]
    dtype: ir.DataType
    nodes: tuple[ir.Node, ...]
    scopes: tuple[str, ...]

    @property
    def channels(self) -> int:
        """C, the length of B1."""
        return len(self.weights["B1"])


@dataclass(frozen=True)
class RefusedGate:
    """Something that looks like a gate and stays as it is.

    Attributes:
        where: path of its PyTorch module, or the name of its output.
        reason: a sentence that names the value at fault.
    """

    where: str
    reason: str


def find_gates(graph: ir.Graph, shapes: Shapes) -> tuple[list[FoundGate], list[RefusedGate]]:
    """All gates of `graph`, in its order."""
    scalings = [scaling for node in graph if (scaling := find_scaling(node, shapes)) is not None]
    order = {node: index for index, node in enumerate(graph)}
    found: list[FoundGate] = []
    refused: list[RefusedGate] = []
    for chain in _chains(scalings):
        scopes = _common_scopes([scaling.node for scaling in chain])
        try:
            gate = _read(chain, shapes)
            nodes = tuple(sorted(gate.nodes, key=order.__getitem__))
            found.append(replace(gate, nodes=nodes, scopes=scopes))
            shapes.note_kept(gate.output, gate.x)
        except Refused as refusal:
            where = scopes[-1] if scopes else chain[-1].node.outputs[0].name
            refused.append(RefusedGate(where or "", str(refusal)))
    taken: set[ir.Node] = set()
    return [_with_add_relu(gate, shapes, taken) for gate in found], refused


def _chains(scalings: Sequence[Scaling]) -> list[list[Scaling]]:
    """Group the scalings by gate: two of different kinds, where one feeds the other, are one."""
    chains: list[list[Scaling]] = []
    open_ends: dict[ir.Value, list[Scaling]] = {}
    for scaling in scalings:
        before = open_ends.pop(scaling.x, None)
        if before is not None and before[0].kind != scaling.kind:
            before.append(scaling)
            continue
        chains.append([scaling])
        open_ends[scaling.node.outputs[0]] = chains[-1]
    return chains


def _read(chain: Sequence[Scaling], shapes: Shapes) -> FoundGate:
    """The gate that a chain of scalings makes; raises `Refused`."""
    trail = Trail(shapes)
    first, last = chain[0], chain[-1]
    dims = shapes.dims(first.x)
    if dims is not None and len(dims) != 4:
        raise Refused(f"{first.x.name} has {len(dims)} axes; gates of maps [N, C, H, W] are fused")
    if [scaling.kind for scaling in chain] == ["spatial", "channel"]:
        raise Refused("the spatial attention comes first; only channel before spatial is fused")
    if first.kind == "spatial":
        raise Refused("a spatial attention without a channel attention before it is not fused")
    mlp, pools = channel_attention(first, trail)
    alone = len(chain) == 1
    gate = replace(SE if alone else CBAM, channel_pool=_CHANNEL_POOLS[frozenset(pools)])
    operator = operator_for(gate)
    weights = mlp if alone else (*mlp, *spatial_attention(last, trail))
    return _gate(operator, weights, chain, trail)


def _gate(
    operator: GateOperator,
    weights: Sequence[NDArray[np.float32]],
    chain: Sequence[Scaling],
    trail: Trail,
) -> FoundGate:
    x, last = chain[0].x, chain[-1].node
    dtype = _map_type(chain, trail)
    if dtype not in _MAP_TYPES:
        raise Refused(f"{x.name} is {dtype.name}; gates of FLOAT and FLOAT16 maps are fused")
    region = set(trail.nodes)
    add_dead_users(region, last)
    region = whole_region(region, {x})
    check_closed(region, last)
    _check_precision(region, dtype, x)
    gate_weights = dict(zip(operator.weights, weights, strict=True))
    gated = last.outputs[0]
    return FoundGate(operator, x, gated, gated, None, gate_weights, dtype, tuple(region), ())


def _check_precision(region: Collection[ir.Node], dtype: ir.DataType, x: ir.Value) -> None:
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
                f"{node.outputs[0].name} is rounded to {to.name}, and the map {x.name} is "
                f"{dtype.name}; a fused gate of {dtype.name} maps does not round inside"
            )


def _map_type(chain: Sequence[Scaling], trail: Trail) -> ir.DataType:
    """The type of the maps, or of the weights where that is all that is known."""
    maps = [value for one in chain for value in (one.x, one.attention, *one.node.outputs)]
    known = (trail.shapes.dtype(value) for value in maps)
    dtype = next((one for one in known if one != ir.DataType.UNDEFINED), ir.DataType.UNDEFINED)
    values = [value for node in trail.nodes for value in node.inputs if value is not None]
    tensors = [ir.convenience.get_const_tensor(value) for value in values]
    types = [tensor.dtype for tensor in tensors if tensor is not None]
    floats = [dtype for dtype in types if dtype in _MAP_TYPES]
    return floats[0] if dtype == ir.DataType.UNDEFINED and floats else dtype


def _with_add_relu(gate: FoundGate, shapes: Shapes, taken: set[ir.Node]) -> FoundGate:
    """The gate with the residual addition and ReLU that follow it, where nothing else uses it."""
    add = _only_user(gate.output, "Add")
    relu = _only_user(add.outputs[0], "Relu") if add else None
    if add is None or relu is None or add in taken:
        return gate
    taken.add(add)
    residual = next((value for value in add.inputs if value is not gate.output), None)
    if residual is None or not shapes.alike(residual, gate.x):
        return gate
    return replace(
        gate,
        operator=replace(gate.operator, residual=True, activation="relu"),
        residual=residual,
        output=relu.outputs[0],
        nodes=(*gate.nodes, add, relu),
    )


def _only_user(value: ir.Value, op: str) -> ir.Node | None:
    """The node of operator `op` that is the only use of `value`, if it is so."""
    uses = list(value.uses())
    if value.is_graph_output() or len(uses) != 1:
        return None
    node = uses[0].node
    return node if not node.domain and node.op_type == op else None


def _common_scopes(nodes: Sequence[ir.Node]) -> tuple[str, ...]:
    """Modules that all `nodes` are in, outermost first."""
    paths = [scopes_of(node) for node in nodes]
    common = []
    for level in zip(*paths, strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return tuple(name for name in common if name)
