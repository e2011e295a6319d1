"""The names that a graph's values and nodes bear, and new ones that none bears."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator

import onnx_ir as ir


class Names:
    """What is taken in a graph and all its subgraphs, whose nodes see the values around them."""

    def __init__(self, graph: ir.Graph) -> None:
        self._values: set[str | None] = set()
        self._nodes: set[str | None] = set()
        self._numbers: defaultdict[str, Iterator[int]] = defaultdict(lambda: itertools.count(1))
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
        return self._free(wanted, self._values)

    def node(self, wanted: str) -> str:
        """`wanted`, or it with a number where a node bears it; taken from now on."""
        return self._free(wanted, self._nodes)

    def _free(self, wanted: str, taken: set[str | None]) -> str:
        name = wanted
        while name in taken:
            name = f"{wanted}_{next(self._numbers[wanted])}"
        taken.add(name)
        return name
