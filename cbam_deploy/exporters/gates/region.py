"""The nodes of a graph that one gate is made of, so that nothing else loses what it uses."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import onnx_ir as ir

from cbam_deploy.exporters.gates.matching import Refused


def whole_region(read: Iterable[ir.Node], maps: Collection[ir.Value]) -> set[ir.Node]:
    """The nodes `read` and all others that only they need, such as those that compute sizes.

    Nodes behind `maps`, what the gate is computed from, are not among them.

    Raises:
        Refused: anything but the last output is used outside.
    """
    region = set(read)
    ahead = [value for node in region for value in node.inputs]
    while ahead:
        value = ahead.pop()
        node = None if value is None or value in maps else value.producer()
        if node is None or node in region or not _only_used_by(region, node):
            continue
        region.add(node)
        ahead += node.inputs
    return region


def add_dead_users(region: set[ir.Node], last: ir.Node) -> None:
    """Add to `region` the users of its values that make nothing of use, such as unused ArgMaxes."""
    for node in list(region - {last}):
        for value in node.outputs:
            for user in value.consumers():
                if user not in region and not any(
                    output.uses() or output.is_graph_output() for output in user.outputs
                ):
                    region.add(user)


def check_closed(region: set[ir.Node], last: ir.Node) -> None:
    """Refuse a region of which anything but the output of `last` is used outside."""
    for node in region - {last}:
        for value in node.outputs:
            if value.is_graph_output():
                raise Refused(f"{value.name}, a value inside the gate, is an output of the graph")
            outside = next((user for user in value.consumers() if user not in region), None)
            if outside is not None:
                raise Refused(
                    f"{value.name}, a value inside the gate, is also used by {outside.name} "
                    f"({outside.op_type})"
                )


def _only_used_by(region: set[ir.Node], node: ir.Node) -> bool:
    return all(
        not value.is_graph_output() and all(use.node in region for use in value.uses())
        for value in node.outputs
    )
