"""The names that a graph's values and nodes bear, and new ones that none bears."""

from __future__ import annotations

import itertools

import onnx_ir as ir


class Names:
    """What is taken in a graph and all its subgraphs, whose nodes see the values around them."""

    def __init__(self, graph: ir.Graph) -> None:
        self._values: set[str | None] = set()
        self._nodes: set[str | None] = set()
        self._take(graph)
        for node in ir.traversal.RecursiveGraphIterator(graph, enter_graph=self._take):
            self._nodes.add(node.name)
            self._values.update(value.name for value in node.outputs)

    def _take(self, graph: ir.Graph | ir.Function | ir.GraphView) -> None:
        self._values.update(value.name for value in graph.inputs)
        if not isinstance(graph, ir.Function):
            self._values.update(graph.initializers)

    def value(self, wanted: str) -> str:
        """`wanted`, or it with a number where a value bears it; taken from now on."""
        return _free(wanted, self._values)

    def node(self, wanted: str) -> str:
        """`wanted`, or it with a number where a node bears it; taken from now on."""
        return _free(wanted, self._nodes)


def _free(wanted: str, taken: set[str | None]) -> str:
    numbered = (f"{wanted}_{number}" for number in itertools.count(1))
    name = next(name for name in itertools.chain([wanted], numbered) if name not in taken)
    taken.add(name)
    return name
