"""How many nodes of a converted graph compute in which type: each node counts once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

import onnx_ir as ir

from cbam_deploy.exporters.half.rules import is_standard, node_name, operator
from cbam_deploy.exporters.int8.int8_nodes import fp8_nodes, int8_nodes
from cbam_deploy.exporters.int8.quantized_types import FP8, INT8, QuantizedType
from cbam_deploy.report.content import Table

KINDS = ("INT8", "FP8", "FP16", "BF16", "FP32", "Q and DQ", "casts", "no floats")
_FLOATS = {
    ir.DataType.FLOAT16: "FP16", ir.DataType.BFLOAT16: "BF16", ir.DataType.FLOAT: "FP32",
}  # fmt: skip

NodeCounts = dict[str, dict[str, int]]


def count_nodes(
    graph: ir.Graph, quantized: Collection[str] = (), type_: QuantizedType = INT8
) -> NodeCounts:
    """Number of nodes by kind, one of `KINDS`, and by operator, the most frequent first.

    Args:
        graph: converted; types of its values are known.
        quantized: names of the nodes that were quantized. They compute in 8 bits also where their
            result goes on as float, and so does what `int8_nodes` and `fp8_nodes` find.
        type_: of those 8 bits.
    """
    enclosed = fp8_nodes(graph) if type_ is FP8 else int8_nodes(graph)
    found: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for node in graph:
        if is_standard(node, "QuantizeLinear", "DequantizeLinear"):
            kind = "Q and DQ"
        elif is_standard(node, "Cast", "CastLike"):
            kind = "casts"
        elif node in enclosed or node_name(node) in quantized:
            kind = type_.name
        else:
            kind = _float_of(node.outputs) or _float_of(node.inputs) or "no floats"
        found[kind][operator(node)] += 1
    return {kind: dict(counts.most_common()) for kind, counts in found.items() if counts}


def counts_table(counts: NodeCounts) -> Table:
    """A row for each kind, and the sum."""
    rows = [
        (
            kind,
            str(sum(operators.values())),
            ", ".join(f"{n} {name}" for name, n in operators.items()),
        )
        for kind, operators in counts.items()
    ]
    total = sum(sum(operators.values()) for operators in counts.values())
    return Table(
        ("computes in", "nodes", "operators"),
        (*rows, ("all", str(total), "")),
        caption="Each node of the graph in one row.",
        text_columns=3,
    )


def _float_of(values: Iterable[ir.Value | None]) -> str:
    types = [value.dtype for value in values if value is not None]
    return next((name for kind, name in _FLOATS.items() if kind in types), "")
