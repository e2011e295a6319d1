"""Read what follows a gate: a residual addition, an activation, or both.

    y ─ Add(R) ─ Relu          CbamGateAddRelu
    y ─ Add(R)                 CbamGateAdd
    y ─ Sigmoid ─┐
    └─────────── Mul           CbamGateThenSilu

They belong to the gate where nothing else uses what lies inside, an activation only as a whole.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import onnx_ir as ir

from cbam_deploy.exporters.gates.activations import Activated, find_activation
from cbam_deploy.exporters.gates.matching import is_constant
from cbam_deploy.gates.operators import Last
from cbam_deploy.graphs.shapes import Shapes

# As many nodes lie between the argument of an activation and what it makes, at most.
_MOST_NODES = 8
_MOST_USES = 2


@dataclass(frozen=True)
class Behind:
    """What follows a gated map.

    Attributes:
        output: what it makes; the gated map where nothing follows.
        residual: what is added.
        activation: of the sum, or of the gated map.
        nodes: all of it, in order.
    """

    output: ir.Value
    residual: ir.Value | None = None
    activation: Last = "none"
    nodes: tuple[ir.Node, ...] = ()


def read_behind(gated: ir.Value, x: ir.Value, shapes: Shapes, taken: Collection[ir.Node]) -> Behind:
    """What follows `gated`, a map like `x`, but for the nodes in `taken`."""
    add = _only_user(gated, "Add")
    residual = None
    if add is not None and add not in taken:
        residual = next((value for value in add.inputs if value is not gated), None)
        if residual is None or is_constant(residual) or not shapes.alike(residual, x):
            residual = None
    if add is None or residual is None:
        activated = _activation_of(gated, taken)
        if activated is None:
            return Behind(gated)
        return Behind(_output(activated), None, activated.activation, activated.nodes)
    total = add.outputs[0]
    activated = _activation_of(total, taken)
    if activated is None:
        return Behind(total, residual, "none", (add,))
    return Behind(_output(activated), residual, activated.activation, (add, *activated.nodes))


def _output(activated: Activated) -> ir.Value:
    return activated.nodes[-1].outputs[0]


def _activation_of(value: ir.Value, taken: Collection[ir.Node]) -> Activated | None:
    """The activation, first node to last, that alone uses `value`."""
    if value.is_graph_output() or len(value.uses()) > _MOST_USES:
        return None
    ahead = [value]
    for _ in range(_MOST_NODES):
        if not ahead:
            break
        for node in list(ahead.pop(0).consumers()):
            if node.domain or len(node.outputs) != 1 or node in taken:
                return None
            activated = find_activation(node.outputs[0])
            if activated is not None and activated.argument is value:
                nodes = set(activated.nodes)
                inside = [value, *(one.outputs[0] for one in nodes - {node})]
                closed = all(
                    not one.is_graph_output() and set(one.consumers()) <= nodes for one in inside
                )
                if closed:
                    first_to_last = tuple(dict.fromkeys(reversed(activated.nodes)))
                    ordered = _in_order(first_to_last, value)
                    return Activated(activated.activation, value, ordered)
            if len(node.outputs[0].uses()) <= _MOST_USES:
                ahead.append(node.outputs[0])
    return None


def _in_order(nodes: tuple[ir.Node, ...], start: ir.Value) -> tuple[ir.Node, ...]:
    """The nodes that compute an activation of `start`, each behind those it uses."""
    inside = {node.outputs[0]: node for node in nodes}
    done: dict[ir.Node, None] = {}

    def visit(node: ir.Node) -> None:
        for value in node.inputs:
            if value is not None and value is not start and value in inside:
                visit(inside[value])
        done[node] = None

    used = {value for node in nodes for value in node.inputs}
    for node in nodes:
        if node.outputs[0] not in used:
            visit(node)
    return tuple(done)


def _only_user(value: ir.Value, op: str) -> ir.Node | None:
    """The node of operator `op` that is the only use of `value`, if it is so."""
    uses = list(value.uses())
    if value.is_graph_output() or len(uses) != 1:
        return None
    node = uses[0].node
    return node if not node.domain and node.op_type == op else None
