"""Which nodes of a quantized graph run in INT8: those between DQ and Q."""

from __future__ import annotations

import onnx_ir as ir

from cbam_deploy.exporters.half_rules import is_float, is_gate, is_standard, is_weight

# What runtimes fuse with the Q and DQ around it, alone or with others of its kind.
FUSED = (
    *("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "MaxPool"),
    *("Relu", "Clip", "LeakyRelu", "PRelu", "HardSwish", "Identity"),
)


def int8_nodes(graph: ir.Graph) -> frozenset[ir.Node]:
    """Nodes whose floats exist within one INT8 kernel only.

    All floats they read are weights, or come from DequantizeLinear or from another such node; all
    they write is read by QuantizeLinear, or by another such node.
    """
    found = {node for node in graph if is_gate(node) or is_standard(node, *FUSED)}
    while outside := {node for node in found if not _is_enclosed(node, found)}:
        found -= outside
    return frozenset(found)


def _is_enclosed(node: ir.Node, found: set[ir.Node]) -> bool:
    activations = [value for value in node.inputs if is_float(value) and not is_weight(value)]
    sources = [value.producer() for value in activations if value is not None]
    readers = [use.node for value in node.outputs for use in value.uses()]
    return (
        bool(sources and readers)
        and not any(value.is_graph_output() for value in node.outputs)
        and all(source in found or is_standard(source, "DequantizeLinear") for source in sources)
        and all(reader in found or is_standard(reader, "QuantizeLinear") for reader in readers)
    )
