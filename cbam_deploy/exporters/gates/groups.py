"""Group the scalings of a graph by the gate that they may make.

x ─ Mul(Mc) ─ Mul(Ms) ─      one behind the other
x ─┬ Mul(Mc) ─┬ Add ─        side by side
└ Mul(Ms) ─┘
x ─ Mul(Mc·Ms) ─             at once, and any of them alone
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from cbam_deploy.exporters.gates.matching import behind_copies, is_op
from cbam_deploy.exporters.gates.scalings import Scaling
from cbam_deploy.graphs.name_scopes import scopes_of


@dataclass(frozen=True)
class Group:
    """Scalings that may make one gate, and the node that makes its gated map."""

    scalings: tuple[Scaling, ...]
    last: ir.Node

    @property
    def scopes(self) -> tuple[str, ...]:
        """Modules that all of it is in, outermost first."""
        return _common_scopes([*(scaling.node for scaling in self.scalings), self.last])

    @property
    def where(self) -> str:
        """Path of its PyTorch module, or the name of its output."""
        return self.scopes[-1] if self.scopes else self.last.outputs[0].name or ""

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """Those that scale the map."""
        return tuple(scaling.node for scaling in self.scalings)

    @property
    def halves(self) -> list[Group]:
        """Each of two scalings alone."""
        both = self.scalings if len(self.scalings) > 1 else ()
        return [Group((scaling,), scaling.node) for scaling in both]


def group_scalings(scalings: Sequence[Scaling]) -> list[Group]:
    """Group the scalings by gate.

    Two of different kinds are one gate where one scales the result of the other, or where an
    addition of their results is all that uses both.
    """
    by_output = {scaling.output: scaling for scaling in scalings}
    groups: dict[Scaling, Group] = {}
    alone: set[Scaling] = set()
    for scaling in scalings:
        before = by_output.get(scaling.x)
        if before not in alone or not _differ(before, scaling):
            before = _summand(scaling, by_output)
            if before not in alone or not _differ(before, scaling):
                alone.add(scaling)
                groups[scaling] = Group((scaling,), scaling.node)
                continue
            last = next(iter(scaling.output.consumers()))
        else:
            last = scaling.node
        assert before is not None
        alone.remove(before)
        groups[before] = Group((before, scaling), last)
    return list(groups.values())


def _differ(one: Scaling | None, other: Scaling) -> bool:
    return one is not None and None not in (one.kind, other.kind) and one.kind != other.kind


def _summand(scaling: Scaling, by_output: dict[ir.Value, Scaling]) -> Scaling | None:
    """The scaling of the same map to whose result that of `scaling` is added."""
    users = list(scaling.output.consumers())
    if len(users) != 1 or not is_op(users[0].outputs[0], "Add"):
        return None
    for value in users[0].inputs:
        other = by_output.get(behind_copies(value)) if value is not None else None
        if other is not None and other is not scaling and other.x is scaling.x:
            return other
    return None


def _common_scopes(nodes: Sequence[ir.Node]) -> tuple[str, ...]:
    """Modules that all `nodes` are in, outermost first."""
    paths = [scopes_of(node) for node in nodes]
    common = []
    for level in zip(*paths, strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return tuple(name for name in common if name)
