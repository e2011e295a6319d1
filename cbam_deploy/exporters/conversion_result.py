"""What `convert` made."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cbam_deploy.exporters.half.conversion import HalfReport
from cbam_deploy.exporters.half.rules import KeptNode
from cbam_deploy.exporters.node_counts import NodeCounts, counts_table
from cbam_deploy.provenance import Provenance
from cbam_deploy.report.content import KeyFigure, Section, Table
from cbam_deploy.report.result import Result
from cbam_deploy.report.units import duration, size

if TYPE_CHECKING:
    from cbam_deploy.exporters.int8.budget import BudgetReport
    from cbam_deploy.exporters.int8.quantization import QuantizationReport

Precision = Literal["fp16", "bf16", "int8", "int8+fp32", "fp8"]


@dataclass(frozen=True)
class ConvertResult(Result):
    """A finished conversion.

    Attributes:
        path: the file.
        sha256: hash of its bytes.
        bytes: its size.
        source_bytes: size of the file it was made from.
        precision: as asked for.
        half: what became FP16 or BF16; None for ``int8+fp32``.
        quantization: what became INT8 or FP8; None for ``fp16`` and ``bf16``.
        budget: how the accuracy budget was met, where there was one.
        calibration: source, images, seed and method; empty where there was no source.
        skipped: name and reason of each picture that could not be read.
        cosine: smallest cosine of an output to that of the FP32 file, on a few pictures or noise.
        seconds: duration of the conversion.
        nodes: number of the graph's nodes by what they compute in, and by operator; each counts
            once.
        provenance: as recorded in the file.
    """

    title: ClassVar[str] = "Conversion"
    schema: ClassVar[str] = "cbam_deploy.conversion"

    path: Path
    sha256: str
    bytes: int
    source_bytes: int
    precision: Precision
    half: HalfReport | None
    quantization: QuantizationReport | None
    budget: BudgetReport | None
    calibration: dict[str, Any]
    skipped: tuple[tuple[str, str], ...]
    cosine: float
    seconds: float
    provenance: Provenance
    nodes: NodeCounts = field(default_factory=dict)

    @property
    def kept_fp32(self) -> tuple[KeptNode, ...]:
        """Nodes in FP32 because 16 bits could not hold what they compute, with the reasons."""
        return self.half.kept if self.half else ()

    @property
    def subtitle(self) -> str:
        """The file and its precision."""
        return f"{self.path}, {self.precision}"

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready data."""
        skipped = [{"picture": name, "reason": reason} for name, reason in self.skipped]
        return {**super().to_json(), "skipped": skipped}

    def sections(self) -> tuple[Section, ...]:
        """The file, then what became 8 bits, what 16, and how a budget was met."""
        share = self.bytes / self.source_bytes
        facts = (
            ("file", str(self.path)),
            ("precision", self.precision),
            ("size", f"{size(self.bytes)}, {share:.2f} of the FP32 file"),
            ("sha256", self.sha256),
            ("calibration", ", ".join(f"{name} {v}" for name, v in self.calibration.items())),
            *(("skipped", f"{name}: {reason}") for name, reason in self.skipped),
            ("cosine to FP32", f"{self.cosine:.6f}"),
            ("took", duration(self.seconds)),
        )
        parts = (self.quantization, self.half, self.budget)
        return (
            Section(
                "Converted ONNX file",
                key_figures=(
                    KeyFigure("Size", size(self.bytes), f"{share:.2f} of the FP32 file"),
                    KeyFigure("Cosine to FP32", f"{self.cosine:.6f}", "the smallest of an output"),
                ),
                tables=(Table.facts(facts), counts_table(self.nodes)),
            ),
            *(section for part in parts if part is not None for section in part.sections()),
        )
