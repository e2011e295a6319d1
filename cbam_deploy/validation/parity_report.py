"""The result of a parity check: figures for each output and batch size, and the verdict."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cbam_deploy.comparison.layer_report import LayerReport
from cbam_deploy.numerics.metrics import TensorError
from cbam_deploy.numerics.tolerances import Tolerance

if TYPE_CHECKING:
    from cbam_deploy.report.junit import Case
    from cbam_deploy.report.tables import Group, Table


SCHEMA_VERSION = 1


@dataclass(frozen=True)
class OutputParity:
    """The error of one output, and a sentence for each figure that leaves tolerance.

    Attributes:
        error: against the reference.
        failures: the sentences.
        allowed: bound on the maximum relative error that followed from the reference's own error in
            FP32, where that is more than the report's tolerance.
    """

    error: TensorError
    failures: tuple[str, ...]
    allowed: float | None = None


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
class ParityReport:
    """Whether an artefact computes what PyTorch computes.

    Attributes:
        artefact: path as given.
        runtime: name of the runner, such as ``onnxruntime-cpu``.
        reference: the PyTorch model.
        precision: ``fp32``, ``fp16`` or ``int8``; decides `tolerance`.
        inputs: what both sides were fed.
        tolerance: of each output.
        batches: one entry for each batch size.
        layers: comparison of values inside, if asked for.
        environment: the machine and the versions (`machine.environment`).
    """

    artefact: str
    runtime: str
    reference: str
    precision: str
    inputs: str
    tolerance: Tolerance
    batches: tuple[BatchParity, ...]
    layers: LayerReport | None
    environment: dict[str, Any]

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
            found.extend(self.layers.failures)
        return tuple(found)

    def failure(self) -> tuple[str, str]:
        """What to tell a person when the check did not hold: a message and a hint."""
        first, *others = self.failures
        fault = self.layers.failures if self.layers else ()
        message = f"{self.artefact}: parity does not hold: {fault[0] if fault else first}"
        if others:
            message += f" (and {len(others)} more)"
        if self.layers is None and Path(self.artefact).suffix == ".engine":
            return message, "validate the ONNX file that it was built from, with --layers"
        if self.layers is None:
            return message, "find the place in the ONNX file with --layers"
        return message, "the report lists every value that was compared"

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready data."""
        return {
            "schema": "cbam_deploy.parity",
            "schema_version": SCHEMA_VERSION,
            "artefact": self.artefact,
            "passed": self.passed,
            "failures": list(self.failures),
            "runtime": self.runtime,
            "reference": self.reference,
            "precision": self.precision,
            "inputs": self.inputs,
            "tolerance": asdict(self.tolerance),
            "batches": [
                {
                    "batch": batch.batch,
                    "samples": batch.samples,
                    "seconds": batch.seconds,
                    "outputs": [
                        {
                            **output.error.to_json(),
                            "failures": list(output.failures),
                            "allowed_relative_error": output.allowed,
                        }
                        for output in batch.outputs
                    ],
                }
                for batch in self.batches
            ],
            "layers": self.layers.to_json() if self.layers else None,
            "environment": dict(self.environment),
        }

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

    def __rich__(self) -> Group:
        from cbam_deploy.report.tables import Group, Text, styled

        verdict = styled("holds", "green") if self.passed else styled("does not hold", "red")
        heading = Text.assemble(
            styled(self.artefact, "bold"),
            f" ({self.precision}, {self.runtime}) against PyTorch {self.reference}\n"
            f"on {self.inputs}: parity ",
            verdict,
        )
        parts: list[Any] = [
            heading,
            self._table(),
            *(
                f"batch {batch.batch}, {output.error.name}: {output.allowed:.1e} of the "
                "largest value is allowed, as PyTorch itself is that far from FP64"
                for batch, output in self._outputs()
                if output.allowed is not None
            ),
            *(styled(sentence, "red") for sentence in self.failures),
        ]
        if self.layers is not None:
            parts.append(self.layers)
        return Group(*parts)

    def _table(self) -> Table:
        from cbam_deploy.report.tables import Table

        table = Table("output", box=None, pad_edge=False)
        columns = ["batch", "samples", "max abs", "max rel", "cosine", "SNR", "top-1", "NaN"]
        if any(output.error.channel for _, output in self._outputs()):
            columns.append("worst channel")
        for heading in columns:
            table.add_column(heading, justify="right")
        for batch, output in self._outputs():
            error = output.error
            table.add_row(
                error.name,
                str(batch.batch),
                str(batch.samples),
                f"{error.max_abs:.1e}",
                f"{error.max_relative:.1e}",
                f"{error.cosine:.7f}",
                f"{error.snr_db:.1f} dB",
                "" if error.top1_agreement is None else f"{error.top1_agreement:.1%}",
                str(error.nonfinite),
                *([] if error.channel is None else [f"{error.channel_snr_db:.1f} dB"]),
                style="red" if output.failures else None,
            )
        return table

    def _outputs(self) -> Iterator[tuple[BatchParity, OutputParity]]:
        return ((batch, output) for batch in self.batches for output in batch.outputs)
