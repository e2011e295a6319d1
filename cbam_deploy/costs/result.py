"""Parameters and multiply-adds of a network and of its parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from cbam_deploy.report.content import Section, Table
from cbam_deploy.report.json_file import data_of
from cbam_deploy.report.result import Result

COUNTED = (
    "convolutions and linear layers, also those inside gates; not pooling, normalization, "
    "activations, elementwise products and sums"
)


@dataclass(frozen=True)
class Part:
    """A module of PyTorch or a node of a graph; an attention gate is one part, whole.

    Attributes:
        name: path of the module, or of the weights of the node.
        kind: class of the module, or operator of the node.
        parameters: number of weights, biases and normalization parameters.
        multiply_adds: for one picture.
        gate: whether it is an attention gate.
    """

    name: str
    kind: str
    parameters: int
    multiply_adds: int
    gate: bool = False


@dataclass(frozen=True)
class Complexity(Result):
    """What a network costs.

    A multiply-add is one product with its addition: a convolution has one per weight and position
    of its output, a linear layer one per weight. Biases, pooling, normalization, activations and
    elementwise products are not counted, as in the CBAM paper's tables.

    Attributes:
        subject: MODEL with its attention, or the file.
        counted_from: ``pytorch`` modules, or the nodes of an ``onnx`` graph.
        inputs: shape of each input for one picture.
        parts: what has parameters or multiply-adds, in order.
        uncounted: number of nodes by operator that multiply in their own way and are not counted.
        by_module: whether the parts are shown outside of JSON.
    """

    title: ClassVar[str] = "Complexity"
    schema: ClassVar[str] = "cbam_deploy.complexity"

    subject: str
    counted_from: Literal["pytorch", "onnx"]
    inputs: tuple[tuple[int, ...], ...]
    parts: tuple[Part, ...]
    uncounted: dict[str, int]
    by_module: bool = False

    @property
    def parameters(self) -> int:
        """Of the whole network."""
        return sum(part.parameters for part in self.parts)

    @property
    def multiply_adds(self) -> int:
        """Of the whole network, for one picture."""
        return sum(part.multiply_adds for part in self.parts)

    @property
    def gates(self) -> tuple[Part, ...]:
        """The attention gates: modules of this package, or fused nodes; others are not told."""
        return tuple(part for part in self.parts if part.gate)

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready data."""
        return {
            **self.heading(),
            "subject": self.subject,
            "counted_from": self.counted_from,
            "counted": COUNTED,
            "inputs": data_of(self.inputs),
            "parameters": self.parameters,
            "multiply_adds": self.multiply_adds,
            "gates": {
                "number": len(self.gates),
                "parameters": sum(part.parameters for part in self.gates),
                "multiply_adds": sum(part.multiply_adds for part in self.gates),
            },
            "uncounted": dict(self.uncounted),
            "parts": data_of(self.parts),
        }

    def sections(self) -> tuple[Section, ...]:
        """The sums, and the parts if they are to be shown."""
        source = {"pytorch": "PyTorch modules", "onnx": "the ONNX graph"}[self.counted_from]
        facts = (
            ("network", f"{self.subject}, from {source}"),
            ("input", "; ".join("x".join(map(str, shape)) for shape in self.inputs)),
            ("parameters", f"{self.parameters / 1e6:.2f} M ({self.parameters:,})"),
            ("multiply-adds", f"{self.multiply_adds / 1e9:.3f} G ({self.multiply_adds:,})"),
            ("of that, gates", self._of_gates()),
            ("counted", COUNTED),
            ("NOT COUNTED", ", ".join(f"{n} {op}" for op, n in self.uncounted.items())),
        )
        parts = (self._part_table(),) if self.by_module else ()
        return (Section("Parameters and multiply-adds", tables=(Table.facts(facts), *parts)),)

    def _of_gates(self) -> str:
        if not self.gates and self.counted_from == "onnx":
            return "none fused ('cbam-deploy fuse' finds those of plain operators)"
        if not self.gates:
            return "no modules of cbam_deploy's (gates of other code: count the exported file)"
        parameters = sum(part.parameters for part in self.gates)
        products = sum(part.multiply_adds for part in self.gates)
        share = 100 * products / max(self.multiply_adds, 1)
        return f"{len(self.gates)} with {parameters:,} parameters, {products:,} ({share:.2g}%)"

    def _part_table(self) -> Table:
        return Table(
            columns=("part", "kind", "parameters", "multiply-adds"),
            rows=tuple(
                (part.name, part.kind, f"{part.parameters:,}", f"{part.multiply_adds:,}")
                for part in self.parts
            ),
            text_columns=2,
        )
