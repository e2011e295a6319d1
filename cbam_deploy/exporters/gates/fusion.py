"""Make each attention gate of a graph one node of domain `cbam_deploy`, with a body anyone can run.

    ... ─ ReduceMean, ReduceMax, Gemm, ..., Mul ─ Add ─ Relu ─ ...      about twenty nodes

    ... ─ CbamGateAddRelu(X, R, W0, B0, W1, B1, WS, BS) ─ ...           one node, and its function

What is a gate is found by `search`; every gate is run against its replacement (`proof`) before it
is replaced. The value that the last node made keeps its name, and the rest of the graph stays as it
is. Maps [N, H, W, C] get a Transpose in front of the node and behind it, where there is none yet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import onnx_ir as ir

from cbam_deploy.errors import BadInput
from cbam_deploy.exporters.gates.extraction import TO_CHANNELS_FIRST, TO_CHANNELS_LAST
from cbam_deploy.exporters.gates.proof import find_difference
from cbam_deploy.exporters.gates.recognition import name_others
from cbam_deploy.exporters.gates.scalings import map_of
from cbam_deploy.exporters.gates.search import FoundGate, RefusedGate, find_gates, find_halves
from cbam_deploy.gates.operators import DOMAIN, PLUGIN_ATTRIBUTES, operator_of
from cbam_deploy.graphs.gate_bodies import FIRST_OPSET
from cbam_deploy.graphs.gate_body_opsets import needs_dtype
from cbam_deploy.graphs.gate_functions import (
    foreign_operators,
    foreign_version,
    gate_counts,
    gate_nodes,
    set_functions,
)
from cbam_deploy.graphs.name_scopes import NAME_SCOPES
from cbam_deploy.graphs.names import Names
from cbam_deploy.graphs.onnx_file import (
    read_model,
    read_provenance,
    set_provenance,
    write_model,
)
from cbam_deploy.graphs.shapes import Shapes
from cbam_deploy.graphs.weights import check_weights
from cbam_deploy.library_errors import said_of_the_file
from cbam_deploy.progress import progress
from cbam_deploy.report.content import Section, Table
from cbam_deploy.report.result import Result


@dataclass(frozen=True)
class FusionReport(Result):
    """What fusion did to a graph.

    Attributes:
        found: number of gates that were no nodes of ours, fused or not.
        fused: name and operator of each new gate node.
        refused: for each gate left as it was, where it is and a sentence that says why.
        present: number of gates that were nodes before.
    """

    schema: ClassVar[str] = "cbam_deploy.fusion"

    found: int
    fused: tuple[tuple[str, str], ...]
    refused: tuple[tuple[str, str], ...]
    present: int = 0

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready data."""
        return {
            **super().to_json(),
            "fused": [{"node": name, "op": op} for name, op in self.fused],
            "refused": [{"where": where, "reason": reason} for where, reason in self.refused],
        }

    def sections(self) -> tuple[Section, ...]:
        """Each gate: its node, or why it was left."""
        before = f", {self.present} fused before" if self.present else ""
        lists = (("gate", "operator", self.fused), ("left as it is", "because", self.refused))
        return (
            Section(
                f"{len(self.fused)} of {self.found} attention gates fused{before}",
                tables=tuple(
                    Table((what, how), rows, text_columns=2) for what, how, rows in lists if rows
                ),
            ),
        )


@said_of_the_file
def fuse(source: str | Path, output: str | Path) -> FusionReport:
    """Fuse the attention gates of the ONNX file `source`; write the result to `output`.

    Raises:
        BadInput: `source` is no valid ONNX file, or `output` cannot be written.
    """
    model = read_model(source)
    check_weights(model, source)
    provenance = read_provenance(model)
    with progress() as bar:
        task = bar.add_task("fusing gates", total=None)
        try:
            report = fuse_model(
                model, lambda done, total: bar.update(task, completed=done, total=total)
            )
        except BadInput as error:
            raise BadInput(f"{source}: {error.message}", error.hint) from error
    if provenance is not None:
        set_provenance(model, replace(provenance, gates=gate_counts(model)))
    write_model(model, output)
    return report


def fuse_model(
    model: ir.Model, on_progress: Callable[[int, int], None] | None = None
) -> FusionReport:
    """Fuse the attention gates of `model`'s main graph, in place.

    Args:
        model: a model whose maps are FP32 or FP16.
        on_progress: called with the number of gates done and in all.

    Raises:
        BadInput: a node is of one of our operators but has not its inputs, or a weight is damaged.
    """
    foreign = foreign_operators(model)
    present = [node for node in gate_nodes(model) if node.op_type not in foreign]
    for node in present:
        _check_inputs(node)
    opset = model.opset_imports.get("", 0)
    shapes = Shapes(model)
    gates, refused = find_gates(model.graph, shapes)
    refused += [
        RefusedGate(node.name or node.outputs[0].name or "", foreign[node.op_type])
        for node in gate_nodes(model)
        if node.op_type in foreign
    ]
    dtype = _map_type(present, gates, shapes)
    sound: list[FoundGate] = []
    ahead, done = list(gates), 0
    while ahead:
        gate = ahead.pop(0)
        reason = (
            foreign_version(model)
            or foreign.get(gate.operator.name)
            or _cannot_take(gate, opset, dtype)
        )
        halves: list[FoundGate] = []
        left = [RefusedGate(gate.where, reason or "", gate.group.nodes)]
        if reason is None and (reason := find_difference(gate, opset, shapes)):
            halves, left = find_halves(gate, [*sound, *ahead], shapes, reason)
        if reason is None:
            sound.append(gate)
        else:
            refused += left
            ahead = halves + ahead
        done += not halves
        if on_progress:
            on_progress(done, done + len(ahead))
    order = {node: index for index, node in enumerate(model.graph)}
    sound.sort(key=lambda gate: order[gate.group.last])
    refused = name_others(model.graph, shapes, sound, refused)
    fused = _replace_all(model.graph, sound)
    if fused:
        set_functions(model, dtype)
    return FusionReport(
        found=len(fused) + len(refused),
        fused=tuple((node.name or "", node.op_type) for node in fused),
        refused=tuple((gate.where, gate.reason) for gate in refused),
        present=len(present),
    )


def _map_type(
    present: Sequence[ir.Node], gates: Sequence[FoundGate], shapes: Shapes
) -> ir.DataType:
    """The one type of all gates' maps; FP32 where there are both."""
    types = [gate.dtype for gate in gates]
    types += [shapes.dtype(value) for node in present if (value := node.inputs[0]) is not None]
    only_half = bool(types) and all(dtype == ir.DataType.FLOAT16 for dtype in types)
    return ir.DataType.FLOAT16 if only_half else ir.DataType.FLOAT


def _cannot_take(gate: FoundGate, opset: int, dtype: ir.DataType) -> str | None:
    """Why a model of this opset, whose gates have bodies for `dtype`, cannot have `gate` fused."""
    if opset < FIRST_OPSET:
        return f"the model is of opset {opset}; gates are fused from {FIRST_OPSET} on"
    if needs_dtype(opset) and gate.dtype != dtype:
        return f"its map is {gate.dtype.name}, and in opset {opset} all gates are of one type"
    return None


def _check_inputs(node: ir.Node) -> None:
    operator = operator_of(node)
    if operator and len(node.inputs) != len(operator.inputs):
        raise BadInput(
            f"gate {node.name} ({node.op_type}) has {len(node.inputs)} inputs, "
            f"not {len(operator.inputs)}",
            "make the file again with this version of cbam-deploy",
        )


def _replace_all(graph: ir.Graph, gates: Sequence[FoundGate]) -> list[ir.Node]:
    """Put one node in the place of each gate.

    Last gate first: the output that a gate replaces may be the residual of one behind it.
    """
    names = Names(graph)
    read = (value for gate in gates for node in gate.nodes for value in node.inputs)
    before = {value for value in read if value is not None}
    made = [_replace(graph, gate, names) for gate in reversed(gates)][::-1]
    for value in before:
        unused = value.is_initializer() and not value.uses()
        if unused and value.name and not (value.is_graph_input() or value.is_graph_output()):
            del graph.initializers[value.name]
    return made


def _replace(graph: ir.Graph, gate: FoundGate, names: Names) -> ir.Node:
    """Put one node in the place of the one that makes the gate's output.

    Args:
        graph: what it is in.
        gate: a gate that was checked.
        names: those that are taken; gets the new ones.
    """
    name = names.node(gate.where)
    weights = []
    for key, array in gate.weights.items():
        weight_name = names.value(f"{name}.{key}")
        tensor = ir.tensor(array, name=weight_name)
        value = ir.Value(
            name=weight_name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(array.shape),
            const_value=tensor,
        )
        graph.register_initializer(value)
        weights.append(value)
    last = gate.output.producer()
    assert last is not None
    made: list[ir.Node] = []
    maps = [_channels_first(gate.x.value, gate.x.channels_last, names, made)]
    if gate.residual is not None:
        maps.append(_channels_first(gate.residual, gate.gated_last, names, made))
    node = ir.node(
        gate.operator.name,
        [*maps, *weights],
        PLUGIN_ATTRIBUTES,
        domain=DOMAIN,
        name=name,
        metadata_props={NAME_SCOPES: repr(["", *gate.scopes, name])} if gate.scopes else None,
    )
    made.append(node)
    if gate.gated_last:
        node.outputs[0].name = names.value(f"{name}.channels_first")
        made.append(_transpose(node.outputs[0], TO_CHANNELS_LAST, names))
    ir.convenience.replace_nodes_and_values(
        graph, last, gate.nodes, made, [gate.output], made[-1].outputs
    )
    return node


def _channels_first(
    value: ir.Value, channels_last: bool, names: Names, made: list[ir.Node]
) -> ir.Value:
    """The map `value` as [N, C, H, W]; a node that transposes it is appended to `made`."""
    if not channels_last:
        return value
    before = map_of(value, channels_last)
    if not before.channels_last:
        return before.value
    made.append(_transpose(value, TO_CHANNELS_FIRST, names))
    made[-1].outputs[0].name = names.value(f"{value.name}.channels_first")
    return made[-1].outputs[0]


def _transpose(value: ir.Value, order: list[int], names: Names) -> ir.Node:
    name = names.node(f"{value.name}.transposed")
    return ir.node("Transpose", [value], {"perm": order}, name=name)
