"""Where in an ONNX graph a value is made: the node, its module in PyTorch, the weights it reads."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cbam_deploy.gates.operators import DOMAIN
from cbam_deploy.graphs.name_scopes import scopes_of

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Place:
    """One value of a graph and the node that makes it.

    Attributes:
        value: name of the value.
        node: name of the node.
        op: operator, with its domain where that is not ONNX's own.
        module: path of the PyTorch module it comes from, such as ``layer1.0.conv2``; empty for the
            whole model or where the file does not say.
        weights: names of the initializers the node reads.
    """

    value: str
    node: str
    op: str
    module: str
    weights: tuple[str, ...]

    @property
    def is_gate(self) -> bool:
        """Whether a fused attention gate makes the value."""
        return self.op.startswith(DOMAIN + ".")

    def __str__(self) -> str:
        module = f" of {self.module}" if self.module else ""
        weights = f", reading {', '.join(self.weights)}" if self.weights else ""
        return f"{self.op} {self.node}{module} (value {self.value}{weights})"


def places(model: ir.Model) -> tuple[Place, ...]:
    """The place of every value that a node of the graph makes, in the graph's order."""
    return tuple(
        Place(
            value=output.name,
            node=node.name or "",
            op=f"{node.domain}.{node.op_type}" if node.domain else node.op_type,
            module=next(reversed(scopes_of(node)), ""),
            weights=tuple(
                value.name
                for value in node.inputs
                if value is not None and value.name and value.is_initializer()
            ),
        )
        for node in model.graph
        for output in node.outputs
        if output.name
    )


def stretch(model: ir.Model, end: str, good: Collection[str]) -> frozenset[str]:
    """Names of the values that `end` is computed from without passing a value of `good`.

    `end` is one of them, values of `good` are not: when `good` are known to be right and `end` is
    known to be wrong, the fault lies in the nodes that make these values.
    """
    by_name = {value.name: value for node in model.graph for value in node.outputs}
    found: set[str] = set()
    open_ends = [by_name[end]]
    while open_ends:
        value = open_ends.pop()
        producer = value.producer()
        if value.name is None or value.name in found or value.name in good or producer is None:
            continue
        found.add(value.name)
        open_ends.extend(source for source in producer.inputs if source is not None)
    return frozenset(found)
