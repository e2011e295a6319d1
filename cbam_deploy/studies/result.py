"""What a study found, as a table in the terminal, as JSON and as Markdown."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from cbam_deploy.report.result import Result

if TYPE_CHECKING:
    from cbam_deploy.report.content import Section

COLUMNS = ("study", "variant", "error", "params", "madds", "engine", "ORT", "of plain", "TensorRT")
DIGITS_NOTE = (
    "Digits are 8 x 8 pixels, 355 of them for testing: one picture is 0.28 points. Differences of"
    " less than about a point, or within the spread over seeds, say nothing. The table shows that"
    " every variant trains, what it costs and how fast it runs. Which one is the most accurate on"
    " natural pictures, digits cannot show: --data takes an ImageNet folder."
)


@dataclass(frozen=True)
class SeedResult:
    """One variant trained with one seed; exactly one of `accuracy` and `failure` is set.

    Attributes:
        seed: of everything random.
        accuracy: top-1 on the held-out pictures after the last epoch, so that no epoch is chosen
            by the pictures it is judged on.
        failure: why there is none.
    """

    seed: int
    accuracy: float | None
    failure: str = ""


@dataclass(frozen=True)
class Latency:
    """At batch 1: median and 99th percentile in seconds, and the ratio to the plain network."""

    runtime: str
    median_seconds: float
    p90_seconds: float
    p99_seconds: float
    round_seconds: tuple[float, ...]
    of_plain: float


@dataclass(frozen=True)
class VariantResult:
    """One row.

    Attributes:
        name: of the variant; `label` and `study` as there.
        cells: by seed.
        parameters: of the network.
        multiply_adds: for one picture.
        engine_bytes: size of the TensorRT engine of the first seed; None without TensorRT.
        latencies: of the first seed's file in ONNX Runtime and, with a GPU, of its engine.
    """

    name: str
    label: str
    study: str
    cells: tuple[SeedResult, ...]
    parameters: int
    multiply_adds: int
    engine_bytes: int | None
    latencies: tuple[Latency, ...]

    @property
    def errors(self) -> list[float]:
        """Top-1 errors in percent of the cells that have one."""
        return [100 * (1 - cell.accuracy) for cell in self.cells if cell.accuracy is not None]

    def table_row(self) -> tuple[str, ...]:
        """The row as texts, under `COLUMNS`."""
        onnx = next((x for x in self.latencies if x.runtime.startswith("onnx")), None)
        engine = next((x for x in self.latencies if x.runtime.startswith("tensorrt")), None)
        return (
            self.study,
            self.label,
            _mean_and_spread(self.errors, sum(bool(cell.failure) for cell in self.cells)),
            f"{self.parameters / 1e3:,.1f}",
            f"{self.multiply_adds / 1e6:,.2f}",
            "" if self.engine_bytes is None else f"{self.engine_bytes / 1e3:,.0f}",
            "" if onnx is None else f"{1e3 * onnx.median_seconds:.3f}",
            "" if onnx is None else f"{onnx.of_plain:.2f}",
            "" if engine is None else f"{1e3 * engine.median_seconds:.3f}",
        )


@dataclass(frozen=True)
class AblationReport(Result):
    """The table.

    Attributes:
        page: as HTML with plots.
        model: name in the zoo.
        data: SOURCE.
        epochs: of each cell.
        seeds: one cell each.
        rows: in the order of the paper's tables.
        settings: arguments of `train` that all cells share.
        environment: of the machine that measured latencies.
        notes: what a reader must know.
    """

    title: ClassVar[str] = "Ablation"
    schema: ClassVar[str] = "cbam_deploy.ablation"

    page: str
    model: str
    data: str
    epochs: int
    seeds: tuple[int, ...]
    rows: tuple[VariantResult, ...]
    settings: dict[str, Any]
    environment: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def failures(self) -> list[str]:
        """One sentence for each cell without an accuracy."""
        return [
            f"{row.name}, seed {cell.seed}: {cell.failure}"
            for row in self.rows
            for cell in row.cells
            if cell.failure
        ]

    @property
    def passed(self) -> bool:
        """Whether every cell was filled."""
        return not self.failures

    def failure(self) -> tuple[str, str]:
        """Message and hint when a cell is empty."""
        return "; ".join(self.failures), "the other cells are kept: run it again"

    @property
    def subtitle(self) -> str:
        """The network and its pictures."""
        return f"{self.model} on {self.data}"

    def sections(self) -> tuple[Section, ...]:
        """The table, with a plot of errors and one of latencies, and the machine."""
        from cbam_deploy.studies.section import ablation_sections

        return ablation_sections(self)


def _mean_and_spread(errors: list[float], failed: int) -> str:
    """Mean and standard deviation over seeds, and how many cells are empty."""
    shown = f"{statistics.fmean(errors):.2f}" if errors else "none"
    if len(errors) > 1:
        shown += f" ± {statistics.stdev(errors):.2f}"
    return f"{shown} ({failed} failed)" if failed else shown
