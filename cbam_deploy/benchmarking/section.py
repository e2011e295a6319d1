"""What `bench` found, as content."""

from __future__ import annotations

from functools import partial

from cbam_deploy.benchmarking.result import BenchReport, Comparison, Entry
from cbam_deploy.benchmarking.sources import PYTORCH
from cbam_deploy.report.content import Figure, KeyFigure, Section, Table
from cbam_deploy.report.environment_section import environment_section
from cbam_deploy.report.plots import Spread, bars_plot, spread_plot
from cbam_deploy.report.units import digits, half_width, interval, milliseconds, size


def bench_sections(report: BenchReport) -> tuple[Section, Section]:
    """Figures, plots and comparison; and where it was measured, with the clocks."""
    tables = [_figures_table(report)]
    notes = list(report.notes)
    if report.relative_to is not None and not report.judged_by_baseline:
        tables.append(_relative_table(report))
    if report.comparison is not None:
        tables.append(_verdicts_table(report.comparison))
        notes += report.comparison.notes
    memory = {entry.peak_memory_of for entry in report.entries}
    if "process" in memory:
        notes.append(
            "Memory on the CPU is the peak of a process that runs nothing but this artefact at "
            "this batch size, less what that process had before it loaded the artefact."
        )
    judged = report.comparison is not None
    figures = Section(
        title="Latency and throughput",
        intro=_intro(report),
        passed=report.passed if judged else None,
        key_figures=_key_figures(report),
        figures=(_latency_figure(report), _throughput_figure(report)),
        tables=tuple(tables),
        notes=tuple(notes),
    )
    return figures, environment_section(
        report.environment, report.clocks_before, report.clocks_after
    )


def _intro(report: BenchReport) -> str:
    rounds = [len(entry.round_seconds) for entry in report.entries]
    span = f"{min(rounds)}" if min(rounds) == max(rounds) else f"{min(rounds)} to {max(rounds)}"
    return (
        f"Contenders took turns in {span} rounds, in shuffled order, on the same "
        f"{report.settings['input']}. Intervals are 95%, bootstrapped over rounds."
    )


def _key_figures(report: BenchReport) -> tuple[KeyFigure, ...]:
    fastest = min(report.entries, key=lambda entry: entry.median_seconds)
    widest = max(report.entries, key=lambda entry: entry.images_per_second.value)
    figures = [
        KeyFigure(
            "Lowest median latency", f"{milliseconds(fastest.median_seconds)} ms", fastest.label
        ),
        KeyFigure(
            "Highest throughput", f"{digits(widest.images_per_second.value)} images/s", widest.label
        ),
    ]
    compared = [e for e in report.entries if e.relative is not None and e.artefact != PYTORCH]
    for entry in compared[:2]:
        assert entry.relative is not None
        figures.append(
            KeyFigure(
                f"Time relative to {report.baseline_label}",
                f"{entry.relative.value:.3f}",
                f"{interval(entry.relative)} · {entry.label}",
            )
        )
    return tuple(figures)


def _names(report: BenchReport) -> list[tuple[str, str]]:
    """Artefact and runtime of each contender, in order."""
    return list(dict.fromkeys((entry.artefact, entry.runtime) for entry in report.entries))


def _batches(report: BenchReport) -> list[int]:
    return sorted({entry.batch for entry in report.entries})


def _latency_figure(report: BenchReport) -> Figure:
    names = _names(report)
    panels = {
        f"batch {batch}": [
            _spread(entry, names.index((entry.artefact, entry.runtime)))
            for entry in report.entries
            if entry.batch == batch
        ]
        for batch in _batches(report)
    }
    slowest = max(report.entries, key=lambda entry: entry.median_seconds)
    return Figure(
        partial(spread_plot, panels, "ms"),
        "Latency in ms. Dot: median of all runs. Thick bar: to p90. Thin line: to p99. "
        "Small ticks: the median of each round. Axes do not begin at zero.",
        f"Latency of {len(report.entries)} entries; the slowest is {slowest.label}.",
    )


def _spread(entry: Entry, series: int) -> Spread:
    return Spread(
        label=f"{entry.artefact} · {entry.runtime}",
        value=f"{milliseconds(entry.median_seconds)} ms",
        series=series,
        median=entry.median_seconds * 1e3,
        p90=entry.p90_seconds * 1e3,
        p99=entry.p99_seconds * 1e3,
        samples=[seconds * 1e3 for seconds in entry.round_seconds],
    )


def _throughput_figure(report: BenchReport) -> Figure:
    batches = _batches(report)
    found = {entry.key: entry.images_per_second for entry in report.entries}
    series = {
        f"{artefact} · {runtime}": [found.get((artefact, runtime, batch)) for batch in batches]
        for artefact, runtime in _names(report)
    }
    best = max(report.entries, key=lambda entry: entry.images_per_second.value)
    return Figure(
        partial(bars_plot, list(map(str, batches)), series, xlabel="batch", unit="images/s"),
        "Throughput by batch size, with 95% intervals.",
        f"Throughput of {len(report.entries)} entries; the highest is {best.label}.",
    )


def _figures_table(report: BenchReport) -> Table:
    quantiles = ("median", "p90", "p95", "p99")
    return Table(
        columns=("artefact", "runtime", "batch", *quantiles, "images/s", "±", "memory", "runs"),
        rows=tuple(_row(entry) for entry in report.entries),
        caption="Latency in ms. With fewer than 100 runs, p99 is about the slowest of them.",
        text_columns=2,
        spare=("runs", "p95", "p90", "memory", "p99"),
    )


def _row(entry: Entry) -> tuple[str, ...]:
    quantiles = (entry.median_seconds, entry.p90_seconds, entry.p95_seconds, entry.p99_seconds)
    return (
        entry.artefact,
        entry.runtime,
        str(entry.batch),
        *(milliseconds(seconds) for seconds in quantiles),
        digits(entry.images_per_second.value),
        half_width(entry.images_per_second),
        size(entry.peak_memory_bytes),
        f"{entry.runs:,}",
    )


def _relative_table(report: BenchReport) -> Table:
    return Table(
        columns=("artefact", "runtime", "batch", "ratio", "95% interval"),
        rows=tuple(
            (e.artefact, e.runtime, str(e.batch), f"{e.relative.value:.3f}", interval(e.relative))
            for e in report.entries
            if e.relative is not None
        ),
        caption=f"Time relative to {report.baseline_label}, taken within each round.",
        text_columns=2,
    )


def _verdicts_table(comparison: Comparison) -> Table:
    bound = 1 + comparison.max_slowdown
    verdicts = comparison.verdicts
    return Table(
        columns=("artefact", "runtime", "verdict", "batch", "ratio", "95% interval"),
        rows=tuple(
            (
                verdict.artefact,
                verdict.runtime,
                comparison.outcome(verdict),
                str(verdict.batch),
                f"{verdict.ratio.value:.3f}",
                interval(verdict.ratio),
            )
            for verdict in verdicts
        ),
        caption=f"Time relative to {comparison.with_what}."
        f" Fails where the whole interval is above {bound:.3f}.",
        text_columns=3,
        emphasized=tuple(index for index, verdict in enumerate(verdicts) if not verdict.held),
    )
