"""Put a model's functions where they are called, gates of ours first, so that none is left.

A gate's body pools over channels in one step here: the two steps that make ONNX Runtime faster cost
OpenVINO more than they save (``benchmarks/results/gate-body-2026-11-26.md``). Tools that know no
functions often know few spellings too, so what a body computes of weights alone is computed, pads
are numbers, and casts that change nothing are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from cbam_deploy.gates.operators import DOMAIN
from cbam_deploy.graphs.gate_bodies import gate_function
from cbam_deploy.graphs.gate_functions import foreign_operators, gate_nodes
from cbam_deploy.graphs.names import Names


def inline_functions(model: ir.Model) -> tuple[tuple[str, str], ...]:
    """Put the body of each function in the place of its calls, in place.

    Returns:
        name and operator of each gate of ours that there was.
    """
    gates = _inline_gates(model)
    common.InlinePass()(model)
    model.opset_imports.pop(DOMAIN, None)
    return gates


def _inline_gates(model: ir.Model) -> tuple[tuple[str, str], ...]:
    foreign, names = foreign_operators(model), Names(model.graph)
    gates = [node for node in gate_nodes(model) if node.op_type not in foreign]
    if any(node.inputs[0] is not None and node.inputs[0].dtype is None for node in gates):
        common.ShapeInferencePass()(model)
    found = tuple((node.name or node.outputs[0].name or "", node.op_type) for node in gates)
    for node, (name, _) in zip(gates, found, strict=True):
        _put_body(node, name, model.opset_imports[""], names)
    for operator in {operator for _, operator in found}:
        model.functions.pop((DOMAIN, operator, ""), None)
    return found


def _put_body(gate: ir.Node, name: str, opset: int, names: Names) -> None:
    x = gate.inputs[0]
    graph = gate.graph
    assert x is not None
    assert isinstance(graph, ir.Graph)
    dtype = x.dtype or ir.DataType.FLOAT
    function = gate_function(gate.op_type, opset, grouped=False, dtype=dtype)
    for parameter, value in zip(function.inputs, gate.inputs, strict=True):
        assert value is not None
        parameter.replace_all_uses_with(value)
    (result,), nodes = tuple(function.outputs), list(function)
    function.outputs.clear()
    function.remove(nodes)
    for node in nodes:
        node.name = names.node(f"{name}/{node.outputs[0].name}")
        for value in node.outputs:
            value.name = names.value(f"{name}/{value.name}")
    graph.insert_before(gate, nodes)
    output = gate.outputs[0]
    result.type, result.shape = output.type, output.shape
    old = output.name
    output.replace_all_uses_with(result, replace_graph_outputs=True)
    graph.remove(gate, safe=True)
    result.name = old
    _fold_weights(graph, nodes)
    _write_pads(nodes)
    if x.dtype is not None:
        _settle_casts(graph, nodes, result, x.dtype)


def _fold_weights(graph: ir.Graph, nodes: Sequence[ir.Node]) -> None:
    """Compute what a body makes of weights alone: many tools take a Conv's weights as they lie."""
    for node in nodes:
        operands = [None if v is None else ir.convenience.get_const_tensor(v) for v in node.inputs]
        if node.op_type not in ("Unsqueeze", "Mul") or any(o is None for o in operands):
            continue
        first, *others = (operand.numpy() for operand in operands if operand is not None)
        if node.op_type == "Mul":
            folded = first * others[0]
        else:  # Its axes are an attribute before opset 13.
            axes = others[0].tolist() if others else node.attributes["axes"].as_ints()
            folded = np.expand_dims(first, tuple(axes))
        _replace(graph, node, folded)
    for node in nodes:
        if node.op_type == "Constant" and not node.outputs[0].uses():
            graph.remove(node, safe=True)


def _write_pads(nodes: Sequence[ir.Node]) -> None:
    """Say how many rows and columns of zeros a convolution adds, which follows from its kernel."""
    for node in nodes:
        weight = (
            node.inputs[1] if node.op_type == "Conv" and "auto_pad" in node.attributes else None
        )
        if weight is None or weight.shape is None or not weight.shape.is_static():
            continue
        sides = [size // 2 for size in weight.shape.numpy()[2:]]  # Kernels are odd.
        del node.attributes["auto_pad"]
        node.attributes["pads"] = ir.AttrInt64s("pads", [*sides, *sides])


def _replace(graph: ir.Graph, node: ir.Node, array: NDArray[Any]) -> None:
    """Put a weight in the place of a node."""
    (output,) = node.outputs
    tensor = ir.tensor(array, name=output.name)
    shape, kind = ir.Shape(array.shape), ir.TensorType(tensor.dtype)
    weight = ir.Value(name=output.name, shape=shape, type=kind, const_value=tensor)
    output.replace_all_uses_with(weight)
    graph.remove(node, safe=True)
    graph.register_initializer(weight)


def _settle_casts(
    graph: ir.Graph, nodes: Sequence[ir.Node], result: ir.Value, dtype: ir.DataType
) -> None:
    """Drop the casts of FP32 maps to FP32, and name the type that a CastLike gives to others."""
    for node in nodes:
        if node.op_type not in ("Cast", "CastLike"):
            continue
        value, output = node.inputs[0], node.outputs[0]
        assert value is not None
        if dtype == ir.DataType.FLOAT:
            if output is result:
                value.name, value.type, value.shape = output.name, output.type, output.shape
            output.replace_all_uses_with(value, replace_graph_outputs=True)
            graph.remove(node, safe=True)
        elif node.op_type == "CastLike":
            node.op_type = "Cast"
            node.resize_inputs(1)
            node.attributes["to"] = ir.AttrInt64("to", int(dtype))
