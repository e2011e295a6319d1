"""Which nodes of a quantized graph run in 8 bits: those whose floats all lie between DQ and Q.

In INT8 runtimes choose for themselves what they fuse there, and move Q and DQ along chains of nodes
to fuse more. So no operator is left out: all floats of such a region are of one type, the scales'
too. But a product with a float weight, or a gate that reads floats as they are, was left in float,
and no kernel of 8 bits carries it out. In FP8 nothing else has kernels but such products, gates,
and what is fused behind either.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from cbam_deploy.exporters.half.rules import PRODUCTS, is_float, is_standard, is_weight
from cbam_deploy.exporters.int8.quantized_types import FP8, INT8, QuantizedType, quantized_type
from cbam_deploy.gates.operators import operator_of

_ENDS = ("QuantizeLinear", "DequantizeLinear")


def int8_nodes(graph: ir.Graph) -> frozenset[ir.Node]:
    """Nodes whose floats do not leave such a region of INT8.

    All floats they read are weights, or come from DequantizeLinear or from another such node; all
    they write is read by QuantizeLinear, or by another such node.
    """
    return _enclosed(graph, INT8)


def fp8_nodes(graph: ir.Graph) -> frozenset[ir.Node]:
    """Nodes of such a region of FP8 that have kernels in it, or are fused behind one that has."""
    enclosed, found = _enclosed(graph, FP8), set()
    for node in graph:
        sources = [value.producer() for value in node.inputs if value is not None]
        weight = sources[1] if len(sources) > 1 else None
        has_kernel = operator_of(node) is not None or (
            is_standard(node, *PRODUCTS) and _is(weight, "DequantizeLinear", FP8)
        )
        behind = not is_standard(node, *PRODUCTS) and any(source in found for source in sources)
        if node in enclosed and (has_kernel or behind):
            found.add(node)
    return frozenset(found)


def _enclosed(graph: ir.Graph, kind: QuantizedType) -> frozenset[ir.Node]:
    found = {node for node in graph if not is_standard(node, *_ENDS) and not _is_left_float(node)}
    outside = [node for node in found if not _is_enclosed(node, found, kind)]
    while outside:
        node = outside.pop()
        if node in found:
            found.remove(node)
            outside += [other for other in _neighbours(node) if other in found]
    return frozenset(found)


def _is_left_float(node: ir.Node) -> bool:
    if gate := operator_of(node):
        maps = (value.producer() for value in node.inputs[: len(gate.maps)] if value is not None)
        return not all(is_standard(producer, "DequantizeLinear") for producer in maps)
    return is_standard(node, *PRODUCTS) and is_float(node.inputs[1]) and is_weight(node.inputs[1])


def _is_enclosed(node: ir.Node, found: set[ir.Node], kind: QuantizedType) -> bool:
    activations = [value for value in node.inputs if is_float(value) and not is_weight(value)]
    sources = [value.producer() for value in activations if value is not None]
    readers = [use.node for value in node.outputs for use in value.uses()]
    return (
        bool(sources and readers)
        and not any(value.is_graph_output() for value in node.outputs)
        and all(source in found or _is(source, "DequantizeLinear", kind) for source in sources)
        and all(reader in found or _is(reader, "QuantizeLinear", kind) for reader in readers)
    )


def _is(node: ir.Node | None, op: str, kind: QuantizedType) -> bool:
    return node is not None and node.op_type == op and quantized_type(node) is kind


def _neighbours(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes that cannot be enclosed once `node` is not."""
    for read in node.inputs:
        producer = read.producer() if read is not None else None
        if producer is not None:
            yield producer
    for value in node.outputs:
        if is_float(value):
            yield from value.consumers()
