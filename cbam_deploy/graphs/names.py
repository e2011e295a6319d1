"""The names that a graph's values and nodes bear, and new ones that none bears."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import onnx_ir as ir

from cbam_deploy.errors import BadInput


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


def name_apart(nodes: Iterable[ir.Node]) -> None:
    """Give nodes that share a name, which ONNX allows, or have none, names of their own."""
    taken: set[str] = set()
    for node in nodes:
        name = first = node.name or node.outputs[0].name or ""
        for number in itertools.count(2):
            if name not in taken:
                break
            name = f"{first}.{number}"
        node.name = name
        taken.add(name)


def name_outputs(graph: ir.Graph, names: Sequence[str], label: str) -> None:
    """Give the outputs of the network `label` these names, in order and in place.

    Raises:
        BadInput: there are not as many outputs, a name is no name or given twice, or another value
            bears it.
    """
    outputs = list(graph.outputs)
    if len(names) != len(outputs):
        own = ", ".join(value.name or "" for value in outputs)
        raise BadInput(
            f"{label}: has {len(outputs)} outputs ({own}), and {len(names)} names were given",
            "give --output-name once for each, in order",
        )
    computed = (value for node in graph for value in node.outputs)
    others = {v.name for v in (*graph.inputs, *graph.initializers.values(), *computed)}
    others -= {value.name for value in outputs}
    for value, name in zip(outputs, names, strict=True):
        if not name or names.count(name) > 1 or name in others or outputs.count(value) > 1:
            raise BadInput(
                f"{label}: {name!r} cannot be the name of output {value.name}",
                "choose a name that no other value bears",
            )
    for value, name in zip(outputs, names, strict=True):
        value.name = name
