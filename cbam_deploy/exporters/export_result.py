"""What `export_onnx` made, as data, JSON and a table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cbam_deploy.exporters.conversion_result import ConvertResult
from cbam_deploy.provenance import Provenance

if TYPE_CHECKING:
    from cbam_deploy.exporters.export_check import ExportError
    from cbam_deploy.report.tables import RenderableType


@dataclass(frozen=True)
class ExportResult:
    """A finished ONNX file.

    Attributes:
        path: where it is.
        sha256: hash of its bytes.
        bytes: its size.
        gates: number of fused gate nodes, by operator.
        refused: for each gate left as standard ops, where it is and why.
        error: largest difference between the FP32 file in ONNX Runtime and PyTorch, and its bound.
        seconds: duration of the export.
        provenance: as recorded in the file.
        conversion: how its precision was converted; None for FP32.
    """

    path: Path
    sha256: str
    bytes: int
    gates: dict[str, int]
    refused: tuple[tuple[str, str], ...]
    error: ExportError
    seconds: float
    provenance: Provenance
    conversion: ConvertResult | None = None

    @property
    def max_abs_error(self) -> float:
        """Largest difference between the FP32 file and PyTorch, in the outputs' unit."""
        return self.error.max_abs

    @property
    def max_relative_error(self) -> float:
        """That over the largest output."""
        return self.error.max_relative

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready data."""
        return {
            "path": str(self.path),
            "sha256": self.sha256,
            "bytes": self.bytes,
            "gates": self.gates,
            "refused": [{"where": where, "reason": reason} for where, reason in self.refused],
            "max_abs_error": self.error.max_abs,
            "max_relative_error": self.error.max_relative,
            "allowed_relative_error": self.error.allowed,
            "fp32_error_of_pytorch": self.error.rounding,
            "seconds": self.seconds,
            "provenance": self.provenance.to_json(),
            "conversion": self.conversion.to_json() if self.conversion else None,
        }

    def __rich__(self) -> RenderableType:
        from cbam_deploy.report.tables import Group, Table

        gates = ", ".join(f"{count} {op}" for op, count in self.gates.items()) or "none"
        title = str(self.path) if self.conversion is None else "exported in FP32"
        table = Table(show_header=False, title=title, title_justify="left")
        table.add_column()
        table.add_column(overflow="fold")
        if self.conversion is None:
            table.add_row("size", f"{self.bytes / 1e6:.1f} MB")
            table.add_row("sha256", self.sha256)
        if self.provenance.model is not None:
            table.add_row("weights", self.provenance.model.weights_origin)
        table.add_row("fused gates", gates)
        for where, reason in self.refused:
            table.add_row("not fused", f"{where}: {reason}")
        error = self.error
        table.add_row(
            "differs from PyTorch by",
            f"{error.max_abs:.1e}, {error.max_relative:.1e} of the largest output",
        )
        if self.provenance.tolerance is not None:
            table.add_row("allowed by --tolerance", f"{self.provenance.tolerance:.1e}")
        elif error.rounding is not None:
            why = f"PyTorch's own FP32 result is {error.rounding:.1e} from FP64"
            table.add_row("allowed", f"{error.allowed:.1e}: {why}")
        if self.conversion is not None:
            return Group(table, self.conversion)
        table.add_row("took", f"{self.seconds:.1f} s")
        return table
