"""The check's findings as Markdown."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu_check.targets import judged

Rows = list[dict[str, Any]]


def markdown(report: dict[str, Any]) -> str:
    """The whole report, as `report.check` makes it."""
    gpu = report["gpu"] or "no GPU"
    lines = [f"# GPU check: {gpu}, {report['date']}", ""]
    if report["dry_run"]:
        lines += ["**Dry run: no kernel was launched and nothing was timed.**", ""]
    environment = report["environment"]
    lines += [
        f"    {report['command']}",
        "",
        f"Machine: {environment['cpu']}, {environment['cores']} cores, {environment['os']}, "
        f"driver {environment['driver'] or 'none'}, Python {environment['python']}",
        f"Versions: {_versions(environment['packages'])}",
    ]
    if not report["dry_run"]:
        lines.append(f"GPU clocks: {_clocks(report)}")
    lines += ["", "| part | | |", "|---|---|---|"]
    lines += [
        f"| {part['name']} | {part['status']} | {_escaped(part['reason'])} |"
        for part in report["parts"]
    ]
    targets = judged(report)
    if targets:
        lines += ["", "## Targets, and the worst that was found", "", *_table(targets)]
    for part in report["parts"]:
        lines += _section(part)
    return "\n".join(lines) + "\n"


def _section(part: dict[str, Any]) -> list[str]:
    rows: Rows = part["rows"]
    if not rows and not part["notes"]:
        return []
    lines = ["", f"## {part['name'][0].upper()}{part['name'][1:]}", ""]
    for note in part["notes"]:
        lines += [note, ""]
    if rows and "case" in rows[0]:
        lines += [_summary(rows), ""]
        rows = [row for row in rows if row.get("problem") or row.get("note")]
    return [*lines, *_table(rows)]


def _summary(rows: Rows) -> str:
    """Of rows with one case each."""
    judged = [row for row in rows if "agrees" in row]
    if not judged:
        return f"{len(rows)} cases prepared."
    errors = [row["largest_error_over_bound"] for row in judged]
    worst = max((error for error in errors if error is not None), default=None)
    agreeing = sum(row["agrees"] for row in judged)
    text = f"{agreeing} of {len(judged)} cases agree with the float64 reference"
    return f"{text}; the largest error is {_cell(worst)} of its bound." if worst else f"{text}."


def _table(rows: Rows) -> list[str]:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if not columns:
        return []
    numeric = {
        column
        for column in columns
        if all(isinstance(row.get(column, 0), int | float) for row in rows)
    }
    ruler = ["--:" if column in numeric else "---" for column in columns]
    return [
        f"| {' | '.join(column.replace('_', ' ') for column in columns)} |",
        f"|{'|'.join(ruler)}|",
        *(f"| {' | '.join(_cell(row.get(column)) for column in columns)} |" for row in rows),
    ]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return _escaped(str(value))


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _versions(packages: dict[str, str]) -> str:
    shown = ("torch", "numpy", "cuda-bindings", "nvidia-cuda-nvrtc", "tensorrt-rtx-cu13")
    return ", ".join(f"{name} {packages[name]}" for name in shown if name in packages)


def _clocks(report: dict[str, Any]) -> str:
    def one(when: str) -> str:
        clocks = report[f"clocks_{when}"] or {}
        pairs = zip(clocks.get("gpu_sm_mhz", []), clocks.get("gpu_memory_mhz", []), strict=False)
        return ", ".join(f"SM {sm:.0f} and memory {memory:.0f} MHz" for sm, memory in pairs)

    return f"{one('before') or 'unknown'} before, {one('after') or 'unknown'} after"
