"""A `BenchReport` on the terminal, in 80 columns."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD

from cbam_deploy.benchmarking.result import BenchReport, Comparison, Entry, Verdict
from cbam_deploy.report.tables import Group, RenderableType, Table, Text
from cbam_deploy.report.units import Estimate, digits, half_width, interval, milliseconds, size

_STYLES = {"held": "green", "slower": "bold red", "in doubt": "yellow", "not judged": "dim"}


def render(report: BenchReport) -> RenderableType:
    """Latency and throughput per artefact and batch, ratios if any, and what to mind."""
    parts: list[RenderableType] = [_figures(report)]
    if report.relative_to is not None and not report.judged_by_baseline:
        parts.append(_relative(report))
    notes = list(report.notes)
    if report.comparison is not None:
        parts.append(_verdicts(report.comparison))
        notes += report.comparison.notes
    parts += [Text(f"note: {note}", style="yellow") for note in notes]
    return Group(*parts)


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("artefact", overflow="fold", min_width=16)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _figures(report: BenchReport) -> Table:
    table = _table(
        "latency in ms; throughput with its 95% interval",
        *("batch", "median", "p90", "p95", "p99", "images/s", "memory"),
    )
    previous = None
    for entry in report.entries:
        who = (entry.artefact, entry.runtime)
        if previous is not None and who != previous:
            table.add_row()
        rate = entry.images_per_second
        table.add_row(
            _who(entry) if who != previous else "",
            str(entry.batch),
            milliseconds(entry.median_seconds),
            milliseconds(entry.p90_seconds),
            milliseconds(entry.p95_seconds),
            milliseconds(entry.p99_seconds),
            Text.assemble(digits(rate.value), (f" {half_width(rate)}", "dim")),
            size(entry.peak_memory_bytes),
        )
        previous = who
    return table


def _relative(report: BenchReport) -> Table:
    table = _table(f"time relative to {report.relative_to}", "batch", "ratio", "95% interval")
    for entry in report.entries:
        if entry.relative is not None:
            table.add_row(_who(entry), str(entry.batch), *_ratio(entry.relative))
    return table


def _verdicts(comparison: Comparison) -> Table:
    bound = comparison.max_slowdown
    allowed = "" if bound is None else f" (allowed: {1 + bound:.3f})"
    table = _table(
        f"time relative to {comparison.with_what}{allowed}",
        *("batch", "ratio", "95% interval", "verdict"),
    )
    for verdict in comparison.verdicts:
        outcome = comparison.outcome(verdict)
        table.add_row(
            _who(verdict),
            str(verdict.batch),
            *_ratio(verdict.ratio),
            Text(outcome, style=_STYLES[outcome]),
        )
    return table


def _who(entry: Entry | Verdict) -> Text:
    return Text.assemble(entry.artefact, "\n", (entry.runtime, "dim"))


def _ratio(ratio: Estimate) -> tuple[str, str]:
    return f"{ratio.value:.3f}", interval(ratio)
