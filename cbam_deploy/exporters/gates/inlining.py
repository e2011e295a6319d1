"""Write gates as the standard operators they stand for, for tools that know no functions.

OpenVINO and others refuse operators of an unknown domain even where their meaning lies beside them.
The inlined file computes the same; `fuse` makes its gates nodes again. Bodies pool over channels in
one step here: the two steps that make ONNX Runtime faster cost OpenVINO more than they save
(``benchmarks/results/gate-body-2026-11-26.md``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import onnx_ir as ir
from onnx_ir.passes import common

from cbam_deploy.command_files import check_apart
from cbam_deploy.exporters.conversion_check import check_conversion
from cbam_deploy.gates.operators import DOMAIN
from cbam_deploy.graphs.gate_bodies import gate_function
from cbam_deploy.graphs.gate_functions import foreign_operators, gate_nodes
from cbam_deploy.graphs.names import Names
from cbam_deploy.graphs.onnx_file import read_model, read_provenance, set_provenance, write_model
from cbam_deploy.graphs.weights import check_weights
from cbam_deploy.library_errors import said_of_the_file
from cbam_deploy.outputs import check_place
from cbam_deploy.report.content import Section, Table
from cbam_deploy.report.result import Result


@dataclass(frozen=True)
class InlinedGates(Result):
    """What became of a file's gates.

    Attributes:
        gates: name and operator of each.
        cosine: the smallest one, over the outputs, between both files on seeded noise.
    """

    schema: ClassVar[str] = "cbam_deploy.inline"

    gates: tuple[tuple[str, str], ...]
    cosine: float

    def sections(self) -> tuple[Section, ...]:
        """Each gate, and how alike the outputs are."""
        tables = [Table.facts([("cosine", f"{self.cosine:.6f}")])]
        if self.gates:
            tables.append(Table(("gate", "operator"), self.gates, text_columns=2))
        title = f"{len(self.gates)} attention gates written as standard operators"
        return (Section(title, tables=tuple(tables)),)


@said_of_the_file
def inline(source: str | Path, output: str | Path) -> InlinedGates:
    """Write the ONNX file `source` without functions: gates become standard operators.

    Raises:
        BadInput: `source` is no valid ONNX file, or `output` cannot be written.
        CheckFailed: ONNX Runtime does not run the inlined file, or gets something else from it.
    """
    source, output = Path(source), Path(output)
    check_place(output, artefact=True)
    check_apart(output, source=source)
    model = read_model(source)
    check_weights(model, source)
    provenance = read_provenance(model)
    gates = inline_gates(model)
    common.InlinePass()(model)
    model.opset_imports.pop(DOMAIN, None)
    if provenance is not None:
        set_provenance(model, replace(provenance, gates={}))
    cosines: list[float] = []

    def verify(path: Path) -> None:
        cosines.append(check_conversion(source, path, "inlined", None, 0))

    write_model(model, output, verify)
    return InlinedGates(gates, cosines[0])


def inline_gates(model: ir.Model) -> tuple[tuple[str, str], ...]:
    """Put the standard operators in the place of each gate of ours, in place.

    Returns:
        name and operator of each.
    """
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
