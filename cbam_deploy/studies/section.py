"""A study of the gate's variants as a page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cbam_deploy.report.content import Figure, Section, Table
from cbam_deploy.report.environment_section import environment_section
from cbam_deploy.report.html import render_page
from cbam_deploy.report.plots import Spread, spread_plot
from cbam_deploy.report.units import milliseconds

if TYPE_CHECKING:
    from cbam_deploy.studies.result import AblationReport, VariantResult


def ablation_page(report: AblationReport) -> None:
    """Write `report` to its page, with a plot of errors and one of latencies.

    Raises:
        BadInput: the page cannot be written.
        MissingCapability: matplotlib is not installed.
    """
    from cbam_deploy.studies.result import COLUMNS

    rows = tuple(row.cells_of_row() for row in report.rows)
    failed = tuple(f"Failed: {failure}" for failure in report.failures)
    section = Section(
        title="Variants of the gate",
        intro=f"{report.epochs} epochs each, seeds {', '.join(map(str, report.seeds))}.",
        passed=None if report.passed else False,
        figures=tuple(_figures(report)),
        tables=(Table(columns=COLUMNS, rows=rows, text_columns=2),),
        notes=(*report.notes, *failed),
    )
    render_page(
        "Ablation",
        [section, environment_section(report.environment)],
        path=report.page,
        subtitle=f"{report.model} on {report.data}",
    )


def _figures(report: AblationReport) -> list[Figure]:
    """All variants on one axis, coloured by study."""
    studies = list(dict.fromkeys(row.study for row in report.rows))
    numbered = [(row, studies.index(row.study)) for row in report.rows]
    errors = [_error(row, number) for row, number in numbered if any(row.errors)]
    latencies = [_latency(row, number) for row, number in numbered if row.latencies]
    figures = []
    if errors:
        figures.append(
            Figure(
                spread_plot({"Accuracy": errors}, "top-1 error in %"),
                f"Dots: mean over seeds; ticks: each seed. Colours: {', '.join(studies)}.",
                "Top-1 error by variant.",
            )
        )
    if latencies:
        figures.append(
            Figure(
                spread_plot({"ONNX Runtime": latencies}, "latency in ms, batch 1"),
                "Dots: median; bars: to p90 and p99; ticks: rounds.",
                "Latency by variant in ONNX Runtime.",
            )
        )
    return figures


def _error(row: VariantResult, number: int) -> Spread:
    mean = sum(row.errors) / len(row.errors)
    return Spread(row.label, f"{mean:.2f}%", number, mean, mean, mean, row.errors)


def _latency(row: VariantResult, number: int) -> Spread:
    first = row.latencies[0]
    return Spread(
        label=row.label,
        value=f"{milliseconds(first.median_seconds)} ms",
        series=number,
        median=1e3 * first.median_seconds,
        p90=1e3 * first.p90_seconds,
        p99=1e3 * first.p99_seconds,
        samples=[1e3 * seconds for seconds in first.round_seconds],
    )
