"""An FP16 network for CPUs that loses what a GPU loses.

ONNX Runtime has few FP16 kernels for CPUs: it computes in FP32, and keeps FP32 from one node to the
next. A network that overflows FP16 on a GPU thus runs without fault on a CPU. Here every node
computes in FP32 (as GPUs accumulate), and every value that is stored in FP16 is rounded to it, by a
Cast there and one back, which ONNX Runtime leaves alone.
"""

from __future__ import annotations

import onnx_ir as ir

from cbam_deploy.exporters.half_rules import is_standard

FP16, FP32 = ir.DataType.FLOAT16, ir.DataType.FLOAT


def round_in_fp32(model: ir.Model) -> None:
    """Make an FP16 model compute in FP32 and round like it, in place; inputs and outputs stay."""
    graph = model.graph
    for value in graph.initializers.values():
        if value.dtype == FP16 and value.const_value is not None:
            widened = value.const_value.numpy().astype(FP32.numpy())
            value.const_value = ir.Tensor(widened, name=value.name)
            value.type = ir.TensorType(FP32)
    for node in list(graph):
        for value in node.outputs:
            if value.dtype == FP16:
                _round(graph, node, value)
    for value in graph.inputs:
        if value.dtype == FP16:
            _widen(graph, value)


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Let all who read `value`, an FP16 output of `node`, read it rounded; it keeps its name."""
    readers = list(value.uses())
    name, value.name = value.name, f"{value.name}_unrounded"
    value.type = ir.TensorType(FP32)
    if is_standard(node, "Cast"):
        node.attributes["to"] = ir.AttrInt64("to", int(FP32))
    is_output = any(output is value for output in graph.outputs)
    half, full = (name, f"{name}_wide") if is_output else (f"{name}_narrow", name)
    rounded = ir.Value(name=half, shape=value.shape, type=ir.TensorType(FP16))
    narrow = ir.node("Cast", [value], {"to": FP16}, outputs=[rounded], name=f"{name}_narrow")
    widened = ir.Value(name=full, shape=value.shape, type=ir.TensorType(FP32))
    widen = ir.node("Cast", [rounded], {"to": FP32}, outputs=[widened], name=f"{name}_widen")
    graph.insert_after(node, [narrow, widen])
    for reader, index in readers:
        reader.replace_input_with(index, widened)
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = rounded


def _widen(graph: ir.Graph, value: ir.Value) -> None:
    """Let all who read `value`, an FP16 input, read it in FP32."""
    readers = list(value.uses())
    widened = ir.Value(name=f"{value.name}_wide", shape=value.shape, type=ir.TensorType(FP32))
    widen = ir.node("Cast", [value], {"to": FP32}, outputs=[widened], name=f"{value.name}_widen")
    for reader, index in readers:
        reader.replace_input_with(index, widened)
    graph.insert_before(graph[0], [widen])
