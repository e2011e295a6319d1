"""Write gates as the standard operators they stand for, for tools that know no functions.

OpenVINO and others refuse operators of an unknown domain even where their meaning lies beside them.
The inlined file computes the same; `fuse` makes its gates nodes again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from cbam_deploy.command_files import check_apart
from cbam_deploy.exporters.conversion_check import check_conversion
from cbam_deploy.graphs.function_inlining import inline_functions
from cbam_deploy.graphs.onnx_file import read_model, read_provenance, set_provenance, write_model
from cbam_deploy.graphs.weights import check_weights
from cbam_deploy.library_errors import said_of_the_file
from cbam_deploy.outputs import check_place
from cbam_deploy.report.content import Section, Table
from cbam_deploy.report.result import Result


@dataclass(frozen=True)
class InlinedGates(Result):
    """What became of a file's gates.

    Attributes:
        gates: name and operator of each.
        cosine: the smallest one, over the outputs, between both files on seeded noise.
    """

    schema: ClassVar[str] = "cbam_deploy.inline"

    gates: tuple[tuple[str, str], ...]
    cosine: float

    def sections(self) -> tuple[Section, ...]:
        """Each gate, and how alike the outputs are."""
        tables = [Table.facts([("cosine", f"{self.cosine:.6f}")])]
        if self.gates:
            tables.append(Table(("gate", "operator"), self.gates, text_columns=2))
        title = f"{len(self.gates)} attention gates written as standard operators"
        return (Section(title, tables=tuple(tables)),)


@said_of_the_file
def inline(source: str | Path, output: str | Path) -> InlinedGates:
    """Write the ONNX file `source` without functions: gates become standard operators.

    Raises:
        BadInput: `source` is no valid ONNX file, or `output` cannot be written.
        CheckFailed: ONNX Runtime does not run the inlined file, or gets something else from it.
    """
    source, output = Path(source), Path(output)
    check_place(output, artefact=True)
    check_apart(output, source=source)
    model = read_model(source)
    check_weights(model, source)
    provenance = read_provenance(model)
    gates = inline_functions(model)
    if provenance is not None:
        set_provenance(model, replace(provenance, gates={}))
    cosines: list[float] = []

    def verify(path: Path) -> None:
        cosines.append(check_conversion(source, path, "inlined", None, 0))

    write_model(model, output, verify)
    return InlinedGates(gates, cosines[0])
