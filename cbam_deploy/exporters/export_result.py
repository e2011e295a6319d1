"""What `export_onnx` made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cbam_deploy.exporters.conversion_result import ConvertResult
from cbam_deploy.provenance import Provenance
from cbam_deploy.report.content import KeyFigure, Section, Table
from cbam_deploy.report.result import Result
from cbam_deploy.report.units import duration, size

if TYPE_CHECKING:
    from cbam_deploy.exporters.export_check import ExportError


@dataclass(frozen=True)
class ExportResult(Result):
    """A finished ONNX file.

    Attributes:
        path: where it is.
        sha256: hash of its bytes.
        bytes: its size.
        gates: number of gates that were fused, by operator; a portable file has their operators.
        refused: for each gate left as standard ops, where it is and why.
        error: largest difference between the FP32 file in ONNX Runtime and PyTorch, and its bound.
        seconds: duration of the export.
        provenance: as recorded in the file.
        conversion: how its precision was converted; None for FP32.
    """

    title: ClassVar[str] = "Export"
    schema: ClassVar[str] = "cbam_deploy.export"

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

    @property
    def _fate(self) -> str:
        """What became of the gates."""
        return "inlined gates" if self.gates and not self.provenance.gates else "fused gates"

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready data."""
        found = super().to_json()
        del found["error"]
        return {
            **found,
            "refused": [{"where": where, "reason": reason} for where, reason in self.refused],
            "max_abs_error": self.error.max_abs,
            "max_relative_error": self.error.max_relative,
            "allowed_relative_error": self.error.allowed,
            "fp32_error_of_pytorch": self.error.rounding,
        }

    def sections(self) -> tuple[Section, ...]:
        """The file, how far it is from PyTorch, what was not fused; the history; a conversion."""
        error, final, model = self.error, self.conversion is None, self.provenance.model
        gates = ", ".join(f"{count} {op}" for op, count in self.gates.items())
        allowed = f"{error.allowed:.1e}"
        if self.provenance.tolerance is not None:
            allowed += " by --tolerance"
        elif error.rounding is not None:
            allowed += f": PyTorch's own FP32 result is {error.rounding:.1e} from FP64"
        facts = (
            ("file", str(self.path) if final else ""),
            ("size", size(self.bytes) if final else ""),
            ("sha256", self.sha256 if final else ""),
            ("weights", model.weights_origin if model else ""),
            (self._fate, gates or "none"),
            *(("not fused", f"{where}: {reason}") for where, reason in self.refused),
            (
                "error",
                f"{error.max_abs:.1e} from PyTorch, {error.max_relative:.1e} of the largest output",
            ),
            ("allowed", allowed),
            ("took", duration(self.seconds) if final else ""),
        )
        history = Table.facts([("precision", self.provenance.precision), *self.provenance.facts()])
        return (
            Section(
                title="ONNX file" if final else "Export in FP32",
                key_figures=(
                    KeyFigure("Size", size(self.bytes)),
                    KeyFigure(self._fate.capitalize(), str(sum(self.gates.values())), gates),
                ),
                tables=(Table.facts(facts),),
            ),
            Section("History of the file", tables=(history,), background=True),
            *(() if self.conversion is None else self.conversion.sections()),
        )
