"""A study of the gate's variants, as content."""

from __future__ import annotations

from functools import partial

from cbam_deploy.report.content import Figure, Section, Table
from cbam_deploy.report.environment_section import environment_section
from cbam_deploy.report.plots import Spread, spread_plot
from cbam_deploy.report.units import milliseconds
from cbam_deploy.studies.result import COLUMNS, AblationReport, VariantResult


def ablation_sections(report: AblationReport) -> tuple[Section, Section]:
    """What the variants came to, and the machine that latencies were measured on."""
    table = Table(
        columns=COLUMNS,
        rows=tuple(row.table_row() for row in report.rows),
        caption="Top-1 error in %; parameters in thousands and multiply-adds in millions; engine"
        " in kB; median latency at batch 1 in ONNX Runtime (ORT) and TensorRT in ms.",
        text_columns=2,
        spare=("study", "engine", "TensorRT"),
    )
    variants = Section(
        title="Variants of the gate",
        intro=f"{report.epochs} epochs each, seeds {', '.join(map(str, report.seeds))}.",
        passed=None if report.passed else False,
        figures=tuple(_figures(report)),
        tables=(table,),
        failures=tuple(f"Failed: {failure}" for failure in report.failures),
        notes=report.notes,
    )
    return variants, environment_section(report.environment)


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
                partial(spread_plot, {"Accuracy": errors}, "top-1 error in %"),
                f"Dots: mean over seeds; ticks: each seed. Colours: {', '.join(studies)}.",
                "Top-1 error by variant.",
            )
        )
    if latencies:
        figures.append(
            Figure(
                partial(spread_plot, {"ONNX Runtime": latencies}, "latency in ms, batch 1"),
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
