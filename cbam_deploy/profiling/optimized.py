"""From the nodes of a graph that ONNX Runtime has rewritten back to those of the file.

It puts functions in place of their calls, fuses nodes, gives others their own layout, and keeps
names as far as it likes. What it keeps are names of values: a node stands for all nodes of the file
between the values that it reads and those that it makes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import onnx
import onnx_ir as ir

from cbam_deploy.graphs.names import Names

_CALL = "profiled"
_INLINED = re.compile(rf"_inlfunc_({_CALL}\d+)_")
_BLOCKED = "_nchwc"
_BEFORE = "InsertedPrecisionFreeCast_"
_BEHIND = re.compile(r"(/duplicated|_token_\d+|_quant)+(/duplicated)?(_token_\d+)?$")
_REORDERS = ("ReorderInput", "ReorderOutput")
_LARGEST = 10_000  # Nodes that one rewritten node is asked to stand for.


def with_own_names(model: ir.Model) -> ir.Model:
    """A copy of `model` in which each node has a name, and each call a function, of its own.

    ONNX Runtime names what it makes of a function's body after the function.
    """
    copy = model.clone()
    names = Names(copy.graph)
    seen: set[str | None] = {None, ""}
    for number, node in enumerate(copy.graph):
        if node.name in seen:
            node.name = names.node(node.outputs[0].name or node.op_type)
        seen.add(node.name)
        function = copy.functions.get(node.op_identifier())
        if function is not None and not function.attributes:
            own = function.clone()
            own.name = node.op_type = f"{_CALL}{number}"
            for inner in own:
                inner.name = inner.name or inner.outputs[0].name
            copy.functions[own.identifier()] = own
    return copy


class OptimizedGraph:
    """The graph that ONNX Runtime runs, beside the one that it was given.

    Args:
        model: as it was given, of `with_own_names`.
        graph: as it is run; None where that is not known, so that only names are compared.

    Attributes:
        moves: names of nodes that were put in to give values another layout.
    """

    def __init__(self, model: ir.Model, graph: onnx.ModelProto | None) -> None:
        self._nodes = {node.name: node for node in model.graph}
        self._makers = {value.name: node for node in model.graph for value in node.outputs}
        self._calls = {n.op_type: n for n in model.graph if n.op_type.startswith(_CALL)}
        self._known: dict[str, str] = {}
        self._covered: dict[str, tuple[str, ...]] = {}
        self.moves: set[str] = set()
        if graph is not None:
            self._follow(graph.graph)

    def nodes_of(self, name: str) -> tuple[str, ...]:
        """Names of the nodes of the file that the node `name` stands for; empty if unknown."""
        covered = self._covered.get(name, ())
        if covered:
            return covered
        node = self._by_name(name)
        return () if node is None else (node.name or "",)

    def _follow(self, graph: onnx.GraphProto) -> None:
        """Find for each node the values of the file that it makes, then what lies behind them."""
        moves = [node for node in graph.node if self._is_move(node)]
        self.moves = {node.name for node in moves}
        for node in moves:
            before, behind = node.input[0], node.output[0]
            if self._maker(behind) is not None and self._maker(before) is None:
                self._known[before] = behind
        for node in graph.node:
            for value in node.output:
                known = self._known.get(value) or self._value(value, node)
                if known is not None:
                    self._known[value] = known
        ends = set(self._known.values())
        for node in graph.node:
            if not node.name:
                continue
            if node.name in self.moves:
                moved = self._maker(self._known.get(node.input[0], node.input[0]))
                self._covered[node.name] = () if moved is None else (moved.name or "",)
                continue
            own = {self._known[value] for value in node.output if value in self._known}
            nodes = dict.fromkeys(n.name or "" for n in self._behind(own, ends - own))
            self._covered[node.name] = tuple(reversed(nodes))

    def _is_move(self, node: onnx.NodeProto) -> bool:
        if node.op_type != "Transpose":
            return node.op_type in _REORDERS
        made = self._makers.get(node.output[0])
        return made is None or made.op_type != "Transpose"

    def _value(self, value: str, node: onnx.NodeProto) -> str | None:
        """The value of the file, or of an inlined body, that `value` of the new graph is."""
        if self._maker(value) is not None:
            return value
        if node.name in self.moves:
            moved: str = node.input[0]
            return self._known.get(moved, moved)
        made: str = node.name.removesuffix(_BLOCKED)
        if made in self._nodes:
            made = self._nodes[made].outputs[0].name or made
        return made if self._maker(made) is not None else None

    def _maker(self, value: str) -> ir.Node | None:
        found = self._makers.get(value)
        if found is None and (inlined := _INLINED.match(value)):
            return self._calls.get(inlined[1])
        return found

    def _behind(self, values: set[str], ends: set[str]) -> Iterator[ir.Node]:
        """The nodes that make `values`, back to `ends`."""
        waiting, seen = list(values), set(values)
        count = 0
        while waiting and count < _LARGEST:
            value = waiting.pop()
            node = self._maker(value)
            # What a body makes has nodes of its own, whose last may have lost the body's value.
            inner = node is not None and node.op_type in self._calls
            if node is None or node.op_type == "Constant" or (inner and value not in values):
                continue
            count += 1
            yield node
            if inner:
                continue
            for source in node.inputs:
                name = source.name if source is not None else None
                if name and name not in ends and name not in seen:
                    seen.add(name)
                    waiting.append(name)

    def _by_name(self, name: str) -> ir.Node | None:
        """The node whose name, or value, ONNX Runtime made `name` of."""
        for candidate in (name, _BEHIND.sub("", name)):
            made = candidate.removesuffix(_BLOCKED).removeprefix(_BEFORE)
            node = self._nodes.get(made) or self._maker(made)
            if node is not None:
                return node
        return None
