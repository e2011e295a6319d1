"""A gate of a graph as a model of its own, beside the node that shall replace it.

         ┌─ the gate's nodes ─ (Add R) ─ (Relu) ─ original
    X ───┤
         └─ CbamGate ──────────────────────────── fused

The gate is a function of X alone; a map [N, H, W, C] is X transposed. R enters where it is added,
so it does not matter what R is in the graph: X itself, as in relu(gate(x) + x), or made from it.
All is in FP32 whatever the gate's type: that the two are the same function is asked, not how FP16
rounds it. A Reshape or Expand may take its target from elsewhere in the graph, often the batch of
the network's input; here it gets the shape that its result is known to have.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from cbam_deploy.exporters.gates.matching import Refused, input_of, single_precision
from cbam_deploy.exporters.gates.search import FoundGate
from cbam_deploy.gates.operators import DOMAIN, VERSION
from cbam_deploy.graphs.gate_bodies import GROUPS, gate_function
from cbam_deploy.graphs.shapes import Shapes

X, R, ORIGINAL, FUSED = "X", "R", "original", "fused"
TO_CHANNELS_LAST, TO_CHANNELS_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]

_IR_VERSION = 10
# Sizes are computed by fewer nodes than this, unless from some other part of the network.
_MOST_NODES = 200


def extract_gate(gate: FoundGate, opset: int, shapes: Shapes) -> onnx.ModelProto:
    """A model of inputs X (and R) [N, C, H, W], outputs `ORIGINAL` and `FUSED`, all FP32.

    Args:
        gate: a gate of a graph.
        opset: version of ONNX's own operators in its model.
        shapes: of its graph.

    Raises:
        Refused: the gate takes something other than its maps and constants.
    """
    excerpt = _excerpt(gate, shapes)
    channels = gate.channels
    names = gate.operator.maps
    fused = helper.make_node(gate.operator.name, gate.operator.inputs, [FUSED], domain=DOMAIN)

    def value_info(name: str) -> onnx.ValueInfoProto:
        shape: list[int | str | None] = ["N", channels or "C", "H", "W"]
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        [*excerpt.nodes, fused],
        "gate",
        [value_info(name) for name in names],
        [value_info(ORIGINAL), value_info(FUSED)],
        [
            numpy_helper.from_array(array, name)
            for name, array in (excerpt.constants | gate.weights).items()
        ],
    )
    grouped = channels is not None and channels % GROUPS == 0
    function = gate_function(gate.operator.name, opset, grouped=grouped)
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, VERSION)],
        functions=[ir.serde.serialize_function(function)],
        ir_version=_IR_VERSION,
    )


@dataclass
class _Excerpt:
    """Nodes and constants, under the names they have beside the gate."""

    names: dict[ir.Value, str]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)

    def name(self, value: ir.Value | None) -> str:
        """Names of the graph get a prefix, so that none of them is one of ours."""
        return "" if value is None else self.names.get(value, f"_{value.name}")


def _excerpt(gate: FoundGate, shapes: Shapes) -> _Excerpt:
    """All that computes the output of `gate` from its maps."""
    x = gate.x.value
    excerpt = _Excerpt({x: X})
    if gate.x.channels_last:
        excerpt.names[x] = "x_last"
        excerpt.nodes.append(_transpose(X, "x_last", TO_CHANNELS_LAST))
    residual = R
    if gate.residual is not None and gate.gated_last:
        residual = "r_last"
        excerpt.nodes.append(_transpose(R, residual, TO_CHANNELS_LAST))
    output = "output_last" if gate.gated_last else ORIGINAL
    excerpt.names[gate.output] = output
    foreign = {node for node in gate.nodes if _has_foreign_target(node, x)}
    for node in (*_makers(gate.gated, x, foreign), *gate.behind.nodes):
        proto = ir.to_proto(node)
        _single_precision(proto)
        del proto.input[:], proto.output[:]
        for value in node.inputs:
            array = None if value is None or value is x else _constant(value)
            if array is not None:
                excerpt.constants[excerpt.name(value)] = array
            added = node in gate.behind.nodes[:1] and value is gate.residual is not None
            proto.input.append(residual if added else excerpt.name(value))
        proto.output.extend(map(excerpt.name, node.outputs))
        if node in foreign:
            proto.input[1] = f"target_{len(excerpt.nodes)}"
            excerpt.nodes += _known_target(node, x, shapes, proto.input[1], excerpt.constants)
        excerpt.nodes.append(proto)
    if gate.gated_last:
        excerpt.nodes.append(_transpose(output, ORIGINAL, TO_CHANNELS_FIRST))
    return excerpt


def _transpose(source: str, result: str, order: list[int]) -> onnx.NodeProto:
    return helper.make_node("Transpose", [source], [result], perm=order)


def _makers(value: ir.Value, x: ir.Value, foreign: Collection[ir.Node] = ()) -> list[ir.Node]:
    """The nodes that compute `value` from `x` and constants, first to last.

    Args:
        value: what is computed.
        x: where to stop.
        foreign: nodes of which only the first input is followed.

    Raises:
        Refused: there is something else it is computed from.
    """
    order: dict[ir.Node, None] = {}
    seen: set[ir.Node] = set()
    ahead: list[ir.Value | ir.Node] = [value]
    while ahead:
        top = ahead.pop()
        if isinstance(top, ir.Node):  # All of its inputs are done.
            order[top] = None
            continue
        node = top.producer()
        if top is x or _constant(top) is not None or node in seen:
            continue
        if node is None or len(seen) > _MOST_NODES:
            raise Refused("it also depends on something else than the map it multiplies")
        seen.add(node)
        inputs = node.inputs[:1] if node in foreign else node.inputs
        ahead += [node, *(source for source in inputs if source is not None)]
    return list(order)


def _has_foreign_target(node: ir.Node, x: ir.Value) -> bool:
    """Whether `node` reshapes or expands to a target that depends on more than `x`."""
    if node.domain or node.op_type not in ("Reshape", "Expand"):
        return False
    try:
        _makers(input_of(node, 1), x)
    except Refused:
        return True
    return False


def _known_target(
    node: ir.Node, x: ir.Value, shapes: Shapes, name: str, constants: dict[str, NDArray[Any]]
) -> list[onnx.NodeProto]:
    """Nodes that compute, from X and new `constants`, the shape that the output of `node` has."""
    dims, of_x = shapes.dims(node.outputs[0]), shapes.dims(x)
    if dims is None or of_x is None:
        raise Refused("a shape inside is computed from elsewhere in the network")
    all_sizes = f"{name}_of_x"
    nodes = [helper.make_node("Shape", [X], [all_sizes])]
    parts = []
    inferred = False
    for axis, size in enumerate(dims):
        part = f"{name}_{axis}"
        parts.append(part)
        if isinstance(size, int):
            constants[part] = np.array([size], np.int64)
        elif size is not None and size in of_x:
            constants[f"{part}_axis"] = np.array([of_x.index(size)], np.int64)
            nodes.append(helper.make_node("Gather", [all_sizes, f"{part}_axis"], [part], axis=0))
        elif node.op_type == "Reshape" and not inferred:
            inferred = True
            constants[part] = np.array([-1], np.int64)
        else:
            raise Refused("a shape inside is computed from elsewhere in the network")
    return [*nodes, helper.make_node("Concat", parts, [name], axis=0)]


def _constant(value: ir.Value) -> NDArray[Any] | None:
    """A weight or Constant, in FP32 where it is in FP16."""
    tensor = None if value.is_graph_input() else ir.convenience.get_const_tensor(value)
    if tensor is None:
        return None
    return single_precision(tensor.numpy())


def _single_precision(node: onnx.NodeProto) -> None:
    """Let a Cast to FP16 be one to FP32."""
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to":
            attribute.i = (
                onnx.TensorProto.FLOAT if attribute.i == onnx.TensorProto.FLOAT16 else attribute.i
            )
