"""Put a model's functions where they are called, gates of ours first, so that none is left.

A gate's body pools over channels in one step here: the two steps that make ONNX Runtime faster cost
OpenVINO more than they save (``benchmarks/results/gate-body-2026-11-26.md``).
"""

from __future__ import annotations

import onnx_ir as ir
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
