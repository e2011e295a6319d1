"""The groups of nodes that a precision is chosen for: blocks, by their names, and gates.

A block is the part of a network that repeats: of the PyTorch module path recorded in a file, or of
a name such as ``/layer1/layer1.0/conv1/Conv``, what reaches to the first number
(``layer1.0``, ``features.3``), else the module around the node's own (``enc1`` of ``enc1.conv2``).
A fused gate is a group by itself. Where nothing says where nodes come from, each convolution or
matrix product is a group, with what stands behind it.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from cbam_deploy.exporters.half.rules import PRODUCTS, is_standard, node_name
from cbam_deploy.gates.operators import operator_of
from cbam_deploy.graphs.name_scopes import module_of


@dataclass(frozen=True)
class Group:
    """Nodes that belong together.

    Attributes:
        name: path of the PyTorch module, scope in the nodes' names, or name of the first node.
        nodes: their names, or their first outputs' where they have none, in the graph's order.
        gate: whether it is a fused attention gate.
    """

    name: str
    nodes: tuple[str, ...]
    gate: bool = False


def groups_of(model: ir.Model) -> tuple[Group, ...]:
    """The groups of a graph in its order; each node of it is in one of them."""
    nodes: dict[tuple[str, bool], list[str]] = {}
    places: dict[ir.Node, tuple[str, bool]] = {}
    for node in model.graph:
        if operator_of(node) is not None:
            place = (module_of(node) or node_name(node), True)
        elif block := _block(module_of(node).split(".")) or _scope(node.name or ""):
            place = (block, False)
        else:
            place = _behind(node, places) or (node_name(node), False)
        places[node] = place
        nodes.setdefault(place, []).append(node_name(node))
    return tuple(Group(name, tuple(found), gate) for (name, gate), found in nodes.items())


def _block(path: list[str]) -> str:
    """What of a module's path reaches to the first number, else what is around the module."""
    number = next((i for i, part in enumerate(path) if part.isdecimal()), None)
    kept = path[: number + 1] if number is not None else path[:-1] or path
    return ".".join(kept)


def _scope(name: str) -> str:
    """The block in a node's name of scopes between slashes, whose last part is the node's own."""
    path = [part for part in name.split("/") if part][:-1]
    number = next((i for i, part in enumerate(path) if part.rpartition(".")[2].isdecimal()), None)
    return "/".join(path[: number + 1] if number is not None else path[:-1] or path)


def _behind(node: ir.Node, places: dict[ir.Node, tuple[str, bool]]) -> tuple[str, bool] | None:
    """The group that a node without a name of its own group stands behind; None for a product."""
    if is_standard(node, *PRODUCTS):
        return None
    producers = (value.producer() for value in node.inputs if value is not None)
    found = (places[one] for one in producers if one in places)
    return next((place for place in found if not place[1]), None)
