"""The result of a parity check: figures for each output and batch size, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cbam_deploy.comparison.layer_report import (
    ERROR_COLUMNS,
    LayerReport,
    allowed_cells,
    decibels,
    error_cells,
)
from cbam_deploy.numerics.metrics import TensorError
from cbam_deploy.numerics.tolerances import Tolerance
from cbam_deploy.report.content import KeyFigure, Section, Table
from cbam_deploy.report.json_file import data_of, fields_of
from cbam_deploy.report.result import Result
from cbam_deploy.report.units import percent, scientific

if TYPE_CHECKING:
    from cbam_deploy.report.junit import Case


@dataclass(frozen=True)
class OutputParity:
    """The error of one output, and a sentence for each figure that leaves tolerance.

    Attributes:
        error: against the reference.
        failures: the sentences.
        allowed: bound on the maximum relative error that followed from the reference's own error in
            FP32, where that is more than the report's tolerance.
        alike: its error against PyTorch rounded the same way, where that was computed.
        own: the error of PyTorch rounded that way against FP32.
        spread: that of PyTorch rounded that way with sums in FP64, against the same in FP32.
    """

    error: TensorError
    failures: tuple[str, ...]
    allowed: float | None = None
    alike: TensorError | None = None
    own: TensorError | None = None
    spread: TensorError | None = None


@dataclass(frozen=True)
class BatchParity:
    """All outputs at one batch size.

    Attributes:
        batch: batch size.
        samples: number of inputs compared: a multiple of `batch`.
        seconds: time for both sides together.
        outputs: in the artefact's order.
    """

    batch: int
    samples: int
    seconds: float
    outputs: tuple[OutputParity, ...]


@dataclass(frozen=True)
class ParityReport(Result):
    """Whether an artefact computes what PyTorch computes.

    Attributes:
        artefact: path as given.
        runtime: name of the runner, such as ``onnxruntime-cpu``.
        reference: the PyTorch model, or the ONNX file.
        precision: one of `provenance.PRECISIONS`; decides `tolerance`.
        inputs: what both sides were fed.
        tolerance: of each output.
        batches: one entry for each batch size.
        layers: comparison of values inside, if asked for.
        environment: the machine and the versions (`machine.environment`).
        reference_kind: ``PyTorch``, or ``ONNX Runtime`` for a file.
        remark: in what PyTorch was not rounded like the file, where it should be.
    """

    title: ClassVar[str] = "Parity"
    schema: ClassVar[str] = "cbam_deploy.parity"

    artefact: str
    runtime: str
    reference: str
    precision: str
    inputs: str
    tolerance: Tolerance
    batches: tuple[BatchParity, ...]
    layers: LayerReport | None
    environment: dict[str, Any]
    reference_kind: str = "PyTorch"
    remark: str = ""

    @property
    def passed(self) -> bool:
        """Whether every output, and every layer compared, is within tolerance."""
        return not self.failures

    @property
    def failures(self) -> tuple[str, ...]:
        """A sentence for everything that is not within tolerance; the first fault of layers."""
        found = [
            f"batch {batch.batch}, {output.error.name}: {sentence}"
            for batch, output in self._outputs()
            for sentence in output.failures
        ]
        if self.layers is not None:
            found.extend(self.layers.failures or self._worst_place(found))
        return tuple(found)

    def _worst_place(self, found: Sequence[str]) -> tuple[str, ...]:
        """Where outputs fail and no value inside leaves its own bound: the worst of these."""
        assert self.layers is not None
        worst = self.layers.worst(but={output.error.name for _, output in self._outputs()})
        if not found or worst is None:
            return ()
        return (
            f"no value inside leaves its own bound; the worst is at {worst.place}:"
            f" maximum error {worst.error.max_relative:.2e} of its largest value",
        )

    def failure(self) -> tuple[str, str]:
        """What to tell a person when the check did not hold: a message and a hint."""
        first, *others = self.failures
        place = self.failures[-1] if self.layers is not None and len(self.failures) > 1 else first
        fault = self.layers.failures[0] if self.layers and self.layers.failures else place
        message = f"{self.artefact}: parity does not hold: {fault}"
        if others:
            message += f" (and {len(others)} more)"
        if self.layers is None and Path(self.artefact).suffix == ".engine":
            return message, "validate the ONNX file that it was built from, with --layers"
        if self.layers is None:
            return message, "find the place in the ONNX file with --layers"
        return message, "the report lists every value that was compared"

    @property
    def subtitle(self) -> str:
        """The file, and what it is held against."""
        return f"{self.artefact} against {self.reference}"

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready data."""
        batches = [
            {
                **fields_of(batch),
                "outputs": [
                    {
                        **fields_of(output.error),
                        "failures": list(output.failures),
                        "allowed_relative_error": output.allowed,
                        "rounded_alike_snr_db": {
                            name: error.snr_db
                            for name, error in vars(output).items()
                            if name in ("alike", "own", "spread") and error is not None
                        },
                    }
                    for output in batch.outputs
                ],
            }
            for batch in self.batches
        ]
        failures = data_of(self.failures)
        return {**super().to_json(), "failures": failures, "batches": batches}

    def junit_cases(self) -> list[Case]:
        """One case for each output at each batch size, and one for the layers."""
        from cbam_deploy.report.junit import Case

        name = Path(self.artefact).name
        cases = [
            Case(
                f"{name} batch {batch.batch} {output.error.name}",
                passed=not output.failures,
                message="\n".join(output.failures),
                seconds=batch.seconds / len(batch.outputs),
            )
            for batch, output in self._outputs()
        ]
        if self.layers is not None:
            cases.append(
                Case(
                    f"{name} layers ({self.layers.layers})",
                    passed=self.layers.passed,
                    message="\n".join(self.layers.failures),
                    seconds=self.layers.seconds,
                )
            )
        return cases

    def sections(self) -> tuple[Section, ...]:
        """The worst figures, every output at every batch size, and the layers if compared."""
        layers = self.layers
        return (
            Section(
                title=f"Parity with {self._other}",
                intro=(
                    f"{self.artefact} ({self.precision}, {self.runtime}) against"
                    f" {self.reference_kind} {self.reference}, on {self.inputs}."
                ),
                passed=self.passed,
                key_figures=self._key_figures(),
                tables=(
                    self._table(),
                    *self._rounded_table(),
                    *(() if layers is None else (layers.table(),)),
                ),
                failures=self.failures,
                notes=self._notes(),
            ),
        )

    def _notes(self) -> tuple[str, ...]:
        relaxed = (
            f"batch {batch.batch}, {output.error.name}: {output.allowed:.1e} of the largest"
            " value is allowed, as PyTorch itself is that far from FP64"
            for batch, output in self._outputs()
            if output.allowed is not None
        )
        return (*([self.remark] if self.remark else ()), *relaxed)

    @property
    def _other(self) -> str:
        return "PyTorch" if self.reference_kind == "PyTorch" else self.reference

    def _key_figures(self) -> tuple[KeyFigure, ...]:
        errors = [output.error for _, output in self._outputs()]
        allowed = self.tolerance.max_relative
        figures = [
            KeyFigure(
                "Largest error",
                scientific(max(error.max_relative for error in errors)),
                "of the largest reference value"
                + ("" if allowed is None else f"; {scientific(allowed)} allowed"),
            )
        ]
        agreements = [e.top1_agreement for e in errors if e.top1_agreement is not None]
        if agreements:
            samples = sum(batch.samples for batch in self.batches)
            note = f"same class first, over {samples:,} inputs"
            figures.append(KeyFigure("Lowest top-1 agreement", percent(min(agreements)), note))
        ratio = min(error.snr_db for error in errors)
        if math.isfinite(ratio):
            figures.append(KeyFigure("Lowest signal-to-noise ratio", f"{ratio:.1f} dB"))
        return tuple(figures)

    def _table(self) -> Table:
        rows = list(self._outputs())
        by_channel = any(output.error.channel for _, output in rows)
        top1, channel = self.tolerance.min_top1, self.tolerance.min_channel_snr_db
        allowed = (
            *("allowed", "", "", *allowed_cells(self.tolerance)),
            "" if top1 is None else f"≥{percent(top1)}",
            "0",
            *(("" if channel is None else f"≥{decibels(channel)}",) if by_channel else ()),
        )
        return Table(
            columns=(
                *("output", "batch", "samples", *ERROR_COLUMNS, "top-1", "NaN"),
                *(("worst channel",) if by_channel else ()),
            ),
            rows=(
                *(
                    (
                        output.error.name,
                        str(batch.batch),
                        str(batch.samples),
                        *error_cells(output.error),
                        percent(output.error.top1_agreement),
                        str(output.error.nonfinite),
                        *((decibels(output.error.channel_snr_db),) if by_channel else ()),
                    )
                    for batch, output in rows
                ),
                allowed,
            ),
            caption="Max rel: largest error over the largest reference value. NaN: or infinite.",
            emphasized=tuple(i for i, (_, output) in enumerate(rows) if output.failures),
            spare=("samples", "max abs", "top-1"),
        )

    def _rounded_table(self) -> tuple[Table, ...]:
        rows = tuple(
            (
                *(output.error.name, str(batch.batch)),
                *(decibels(error.snr_db) for error in (output.own, output.spread, output.alike)),
            )
            for batch, output in self._outputs()
            if output.own is not None and output.spread is not None and output.alike is not None
        )
        caption = (
            f"PyTorch rounded to {self.precision.upper()} wherever the file is: its"
            " signal-to-noise ratio in dB to FP32, to itself with sums in FP64, to the file."
        )
        columns = ("output", "batch", "to FP32", "sums in FP64", "to the file")
        return (Table(columns, rows, caption=caption),) if rows else ()

    def _outputs(self) -> Iterator[tuple[BatchParity, OutputParity]]:
        return ((batch, output) for batch in self.batches for output in batch.outputs)
