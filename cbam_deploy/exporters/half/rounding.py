"""An FP16 or BF16 network for CPUs that loses what a GPU loses.

ONNX Runtime has few FP16 kernels for CPUs: it computes in FP32, and keeps FP32 from one node to the
next. A network that overflows FP16 on a GPU thus runs without fault on a CPU. For BF16 it has no
convolution at all. Here every node computes in FP32 (as GPUs accumulate), and every value that is
stored in 16 bits is rounded to them, by a Cast there and one back, which ONNX Runtime leaves alone.
"""

from __future__ import annotations

import onnx_ir as ir

from cbam_deploy.exporters.half.formats import DTYPES
from cbam_deploy.exporters.half.rules import is_standard
from cbam_deploy.graphs.names import Names

FP32 = ir.DataType.FLOAT


def round_in_fp32(model: ir.Model) -> None:
    """Make a 16-bit model compute in FP32 and round like it, in place; inputs and outputs stay."""
    graph = model.graph
    for value in graph.initializers.values():
        if value.dtype in DTYPES and value.const_value is not None:
            widened = value.const_value.numpy().astype(FP32.numpy())
            value.const_value = ir.Tensor(widened, name=value.name)
            value.type = ir.TensorType(FP32)
    names = Names(graph)
    outputs: dict[ir.Value, ir.Value] = {}
    for node in list(graph):
        for value in node.outputs:
            if value.dtype in DTYPES:
                outputs[value] = _round(graph, node, value, names)
    for index, value in enumerate(graph.outputs):
        graph.outputs[index] = outputs.get(value, value)
    for value in graph.inputs:
        if value.dtype in DTYPES:
            _widen(graph, value, names)


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value, names: Names) -> ir.Value:
    """Let all who read `value`, a 16-bit output of `node`, read it rounded; it keeps its name.

    Returns:
        The value in 16 bits, for where it is an output of the network.
    """
    assert value.dtype is not None
    dtype = value.dtype
    readers = list(value.uses())
    name = value.name or ""
    value.name = names.value(f"{name}_unrounded")
    value.type = ir.TensorType(FP32)
    if is_standard(node, "Cast"):
        node.attributes["to"] = ir.AttrInt64("to", int(FP32))
    half, full = name, name
    if value.is_graph_output():
        full = names.value(f"{name}_wide")
    else:
        half = names.value(f"{name}_narrow")
    narrow = _cast(value, half, dtype, names)
    widen = _cast(narrow.outputs[0], full, FP32, names)
    graph.insert_after(node, [narrow, widen])
    for reader, index in readers:
        reader.replace_input_with(index, widen.outputs[0])
    return narrow.outputs[0]


def _widen(graph: ir.Graph, value: ir.Value, names: Names) -> None:
    """Let all who read `value`, a 16-bit input, read it in FP32."""
    readers = list(value.uses())
    widen = _cast(value, names.value(f"{value.name}_wide"), FP32, names)
    for reader, index in readers:
        reader.replace_input_with(index, widen.outputs[0])
    graph.insert_before(graph[0], [widen])


def _cast(value: ir.Value, name: str, dtype: ir.DataType, names: Names) -> ir.Node:
    output = ir.Value(name=name, shape=value.shape, type=ir.TensorType(dtype))
    node_name = names.node(f"{name}_cast")
    return ir.node("Cast", [value], {"to": dtype}, outputs=[output], name=node_name)
