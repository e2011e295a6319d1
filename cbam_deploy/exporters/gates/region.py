"""The nodes of a graph that one gate is made of, so that nothing else loses what it uses."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import onnx_ir as ir

from cbam_deploy.exporters.gates.matching import MOST_STEPS, Refused, input_of, said, view_of
from cbam_deploy.graphs.name_scopes import scopes_of

# A value that more nodes use than this is no gate's own.
_MOST_USERS = 50


def whole_region(read: Iterable[ir.Node], maps: Collection[ir.Value]) -> set[ir.Node]:
    """The nodes `read` and all others that only they need, such as those that compute sizes.

    Nodes behind `maps`, what the gate is computed from, are not among them.
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
            users = value.consumers()
            for user in users if len(users) <= _MOST_USERS else ():
                if user not in region and not any(
                    output.uses() or output.is_graph_output() for output in user.outputs
                ):
                    region.add(user)


def check_closed(
    region: set[ir.Node], last: ir.Node, attentions: Collection[ir.Value] = (), kind: str = ""
) -> None:
    """Refuse a region of which anything but the output of `last` is used outside.

    Args:
        region: the nodes of a gate.
        last: of them, the one that makes the gated map.
        attentions: values that sentences call so, as views of them.
        kind: of the gate's one part.
    """
    part = kind and f"the {kind} part: "
    attentions = {before for value in attentions for before in (value, *_before_views(value))}
    for node in sorted(region - {last}, key=lambda node: node.outputs[0] not in attentions):
        for value in node.outputs:
            what = "its attention map" if value in attentions else f"a value inside ({said(value)})"
            if value.is_graph_output():
                raise Refused(f"{part}{what} is an output of the network as well")
            outside = next((user for user in value.consumers() if user not in region), None)
            if outside is not None:
                raise Refused(f"{part}{what} is also used outside, by {_user(outside)}")


def _before_views(value: ir.Value) -> Iterator[ir.Value]:
    for _ in range(MOST_STEPS):
        node = view_of(value)
        if node is None:
            return
        value = input_of(node, 0)
        yield value


def _user(node: ir.Node) -> str:
    what = said(node.outputs[0]) if node.outputs else node.op_type
    scopes = [name for name in scopes_of(node) if name]
    return f"{what} in {scopes[-1]}" if scopes else what


def _only_used_by(region: set[ir.Node], node: ir.Node) -> bool:
    return all(
        not value.is_graph_output() and all(use.node in region for use in value.uses())
        for value in node.outputs
    )
