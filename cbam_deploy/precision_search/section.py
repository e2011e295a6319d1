"""What a precision search found, as content."""

from __future__ import annotations

import math
from functools import partial

from cbam_deploy.exporters.mixed_precision import QUANTIZED
from cbam_deploy.exporters.node_counts import counts_table
from cbam_deploy.precision_search.evaluation import FIDELITY
from cbam_deploy.precision_search.result import (
    Candidate,
    KeptGroup,
    SearchResult,
    Sensitivity,
    cost,
)
from cbam_deploy.report.content import Figure, KeyFigure, Section, Table
from cbam_deploy.report.environment_section import environment_section
from cbam_deploy.report.plots import Bar, Point, points_plot, stacked_bars_plot
from cbam_deploy.report.units import MISSING, duration, interval, milliseconds, size

_SHOWN = 15  # Groups and choices that a table or plot has room for.
_SILENT_DB = 100.0  # What counts as no noise at all, where a bar needs a length.


def search_sections(result: SearchResult) -> tuple[Section, ...]:
    """The file, what is kept, sensitivities, choices, and the machine."""
    sections = [_overview(result), _kept(result)]
    if result.sensitivities:
        sections.append(_sensitivities(result))
    if result.candidates:
        sections.append(_choices(result))
    return (*sections, environment_section(result.environment, {}, {}))


def snr(noise: float) -> str:
    """Noise as a signal-to-noise ratio: 23.0 dB."""
    if noise >= 1:
        return "no signal"
    return f"{-10 * math.log10(noise):.1f} dB" if noise > 0 else "no noise"


def _overview(result: SearchResult) -> Section:
    conversion, unit = result.conversion, result.unit
    judged = f"{unit.label} on {result.images} pictures of {result.data}"
    if result.metric == FIDELITY:
        judged += ": 1 - error energy / energy of the outputs, against the original"
    facts = (
        ("file", str(conversion.path)),
        ("size", f"{size(conversion.bytes)}, {conversion.bytes / conversion.source_bytes:.2f} of"
         " the FP32 file"),
        ("judged by", judged),
        ("original", unit.text(result.baseline)),
        ("this file", f"{unit.text(result.value)}, SNR of the outputs {snr(result.noise)}"),
        ("allowed", f"a fall by {unit.points(result.max_drop)}"),
        ("timed in", result.runtime or ""),
        ("trials", f"{result.measured} measured, {result.remembered} from an earlier search"),
        ("took", duration(result.seconds)),
    )  # fmt: skip
    notes = list(result.notes)
    if not result.complete:
        notes.append(
            "The time limit ended the search: the file holds the metric, but may keep more than it"
            " must. The same command goes on from here."
        )
    return Section(
        title="Precision search",
        passed=result.passed,
        key_figures=(
            KeyFigure(f"{unit.label} of this file", unit.text(result.value),
                      f"original {unit.text(result.baseline)}"),
            KeyFigure("Operations kept higher", str(sum(len(one.nodes) for one in result.kept)),
                      f"in {len({one.group for one in result.kept})} groups"),
        ),
        tables=(Table.facts(facts), counts_table(conversion.nodes)),
        notes=tuple(notes),
    )  # fmt: skip


def _kept(result: SearchResult) -> Section:
    if not result.kept:
        return Section("Kept in a higher precision", intro="Nothing.")
    rows = tuple(
        (
            f"{one.group} (gate)" if one.gate else one.group,
            one.precision.upper(),
            ", ".join(one.nodes),
            "; ".join((*(_effect(result, found) for found in one.sensitivities), *_ruled(one))),
        )
        for one in result.kept
    )
    return Section(
        "Kept in a higher precision",
        tables=(
            Table(
                ("module or scope", "computes in", "nodes", "because"),
                rows,
                caption="Groups with operations that could be in a lower precision.",
                text_columns=4,
            ),
        ),
    )


def _ruled(kept: KeptGroup) -> tuple[str, ...]:
    half = next((step for step in kept.steps if step not in QUANTIZED), "")
    return (f"in {half.upper()}, {kept.reason}",) if kept.reason else ()


def _effect(result: SearchResult, found: Sensitivity) -> str:
    fall = f"falls by {result.unit.points(found.drop)}"
    if found.drop <= 0:
        fall = "holds"
    return f"alone in {found.step.upper()}, {result.unit.label} {fall}, SNR {snr(found.noise)}"


def _sensitivities(result: SearchResult) -> Section:
    kept = {(step, one.group, one.gate) for one in result.kept for step in one.steps}
    found = sorted(result.sensitivities, key=lambda one: (-one.drop, -one.noise))
    ranked, more = found[:_SHOWN], len(found) - _SHOWN
    rows = [
        (
            f"{one.group} (gate)" if one.gate else one.group,
            one.step.upper(),
            "kept higher" if (one.step, one.group, one.gate) in kept else "",
            str(len(one.nodes)),
            result.unit.signed(-one.drop),
            snr(one.noise),
        )
        for one in ranked
    ]
    if more > 0:
        rows.append((f"({more} more)", "", "", "", "", ""))
    bars = [
        Bar(
            " · ".join((row[0], row[1])),
            row[5],
            {row[2] or "lowered": _decibels(one.noise)},
        )
        for row, one in zip(rows, ranked, strict=False)
    ]
    return Section(
        "How sensitive groups are",
        intro="Each group by itself in the lower precision, everything else in the one before.",
        figures=(
            Figure(
                partial(stacked_bars_plot, bars, ("kept higher", "lowered"), "dB"),
                "SNR of the outputs with that group alone in the lower precision, in dB: short bars"
                " are sensitive groups.",
                f"{len(bars)} groups by what they do to the outputs.",
            ),
        ),
        tables=(
            Table(
                ("module or scope", "in", "", "nodes", result.unit.label, "SNR"),
                tuple(rows),
                caption=f"Change of the metric, and SNR of the outputs, by group; the most"
                f" sensitive first, of {len(result.sensitivities)}.",
                text_columns=3,
            ),
        ),
    )


def _decibels(noise: float) -> float:
    return min(_SILENT_DB, -10 * math.log10(noise)) if noise > 0 else _SILENT_DB


def _choices(result: SearchResult) -> Section:
    shown = result.undominated
    timed = any(one.trial.relative is not None for one in result.candidates)
    axis = f"time relative to the original, in {result.runtime}" if timed else "operations kept"
    points = tuple(
        Point(cost(one), _value(result, one), _kind(one, shown, result))
        for one in result.candidates
    )
    rows = tuple(
        (
            "this file" if _is_written(one, result) else "" if one.holds else "falls too far",
            *(str(len(one.choice.above(step))) for step in _steps(result)),
            result.unit.text(one.trial.value),
            snr(one.trial.noise),
            MISSING if one.trial.seconds is None else milliseconds(one.trial.seconds),
            MISSING if one.trial.relative is None else f"{one.trial.relative.value:.3f}",
            MISSING if one.trial.relative is None else interval(one.trial.relative),
        )[: None if timed else -3]
        for one in shown
    )
    columns = ("", *(f"above {step.upper()}" for step in _steps(result)), result.unit.label, "SNR")
    if timed:
        columns = (*columns, "ms", "relative", "95% interval")
    return Section(
        "Choices that none beats",
        intro=f"Of {len(result.candidates)} whole choices that were tried, those that no other"
        f" beats in both {result.unit.label} and "
        + ("time." if timed else "the number of operations kept in a higher precision."),
        figures=(
            Figure(
                partial(points_plot, points, ("this file", *_KINDS), xlabel=axis,
                        unit=f"{result.unit.label}{', %' if result.unit.share else ''}"),
                f"Choices by {result.unit.label} and {axis}.",
                f"{len(points)} choices; {len(shown)} are beaten by none.",
            ),
        ),
        tables=(
            Table(
                columns,
                rows,
                caption="Nodes that do not take a precision, and what that comes to.",
                spare=("95% interval", "SNR"),
            ),
        ),
    )  # fmt: skip


_KINDS = ("beaten by none", "other choices")


def _kind(one: Candidate, undominated: tuple[Candidate, ...], result: SearchResult) -> str:
    if _is_written(one, result):
        return "this file"
    return _KINDS[0] if one in undominated else _KINDS[1]


def _is_written(one: Candidate, result: SearchResult) -> bool:
    return one.choice == result.choice


def _value(result: SearchResult, one: Candidate) -> float:
    return one.trial.value * (100 if result.unit.share else 1)


def _steps(result: SearchResult) -> tuple[str, ...]:
    return tuple(dict.fromkeys(step for one in result.candidates for step in one.choice.kept))
