"""What `convert` made, as data, JSON and a table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cbam_deploy.exporters.half.conversion import HalfReport
from cbam_deploy.exporters.half.rules import KeptNode
from cbam_deploy.provenance import Provenance

if TYPE_CHECKING:
    from cbam_deploy.exporters.int8.budget import BudgetReport
    from cbam_deploy.exporters.int8.quantization import QuantizationReport
    from cbam_deploy.report.tables import RenderableType

Precision = Literal["fp16", "int8", "int8+fp32"]
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class ConvertResult:
    """A finished conversion.

    Attributes:
        path: the file.
        sha256: hash of its bytes.
        bytes: its size.
        source_bytes: size of the file it was made from.
        precision: as asked for: ``fp16``, ``int8`` or ``int8+fp32``.
        half: what became FP16; None for ``int8+fp32``.
        quantization: what became INT8; None for ``fp16``.
        budget: how the accuracy budget was met, where there was one.
        calibration: source, images, seed and method; empty where there was no source.
        skipped: name and reason of each picture that could not be read.
        cosine: smallest cosine of an output to that of the FP32 file, on a few pictures or noise.
        seconds: duration of the conversion.
        provenance: as recorded in the file.
    """

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

    @property
    def kept_fp32(self) -> tuple[KeptNode, ...]:
        """Nodes in FP32 because FP16 could not hold what they compute, with the reasons."""
        return self.half.kept if self.half else ()

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready data."""
        return {
            "schema": "cbam_deploy.conversion",
            "schema_version": SCHEMA_VERSION,
            "path": str(self.path),
            "sha256": self.sha256,
            "bytes": self.bytes,
            "source_bytes": self.source_bytes,
            "precision": self.precision,
            "half": self.half.to_json() if self.half else None,
            "quantization": self.quantization.to_json() if self.quantization else None,
            "budget": self.budget.to_json() if self.budget else None,
            "calibration": self.calibration,
            "skipped": [{"picture": name, "reason": reason} for name, reason in self.skipped],
            "cosine": self.cosine,
            "seconds": self.seconds,
            "provenance": self.provenance.to_json(),
        }

    def __rich__(self) -> RenderableType:
        from cbam_deploy.report.tables import Group, Table

        table = Table(show_header=False, title=str(self.path), title_justify="left")
        share = self.bytes / self.source_bytes
        table.add_row("precision", self.precision)
        table.add_row("size", f"{self.bytes / 1e6:.1f} MB, {share:.2f} of the FP32 file")
        table.add_row("sha256", self.sha256)
        for name, value in self.calibration.items():
            table.add_row(f"calibration {name}", str(value))
        for name, reason in self.skipped:
            table.add_row("skipped", f"{name}: {reason}")
        table.add_row("cosine to FP32", f"{self.cosine:.6f}")
        table.add_row("took", f"{self.seconds:.1f} s")
        reports = (self.quantization, self.half, self.budget)
        return Group(table, *(report for report in reports if report is not None))
