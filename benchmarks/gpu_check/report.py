"""Run the parts one after the other, and put together what they found."""

from __future__ import annotations

import datetime
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.job import (
    ERROR,
    FAILED,
    PASSED,
    Job,
    Options,
    Outcome,
    read_outcome,
    together,
)
from benchmarks.gpu_check.parts import TOTAL_SECONDS, Part
from benchmarks.gpu_check.process import run_in_process
from benchmarks.gpu_check.table import markdown
from cbam_deploy.errors import MissingCapability
from cbam_deploy.machine import clocks, environment, gpus
from cbam_deploy.outputs import write_text
from cbam_deploy.report.json_file import write_json

Record = Callable[[Sequence[Outcome]], None]


def run_parts(
    parts: Sequence[Part],
    options: Options,
    total_seconds: float = TOTAL_SECONDS,
    record: Record | None = None,
) -> list[Outcome]:
    """Run `parts` within `total_seconds`, each in processes of its own.

    `record` is given what was found after each part, and now and then meanwhile. A dry run, in
    which no kernel can go astray, stays in this process.
    """
    ends = time.monotonic() + total_seconds
    outcomes: list[Outcome] = []
    later = sum(part.seconds for part in parts)
    for part in parts:
        left = ends - time.monotonic()
        later -= part.seconds
        if left < 1:
            outcome = Outcome(part.name, ERROR, "no time was left", None, (), ())
        elif options.dry:
            outcome = _run_here(part, options)
        else:
            seconds = max(min(part.seconds, left), left - later)
            outcome = _run_apart(part, options, seconds, left, outcomes, record)
        took = "" if outcome.seconds is None else f" in {outcome.seconds:.0f} s"
        print(f"{part.name}: {outcome.status}{took} {outcome.reason}".rstrip(), file=sys.stderr)
        outcomes.append(outcome)
        if record is not None:
            record(outcomes)
    return outcomes


def _run_apart(
    part: Part,
    options: Options,
    seconds: float,
    limit: float,
    before: Sequence[Outcome],
    record: Record | None,
) -> Outcome:
    """In as many processes as the part asks for; one alone is looked at meanwhile."""

    def look(found: Outcome) -> None:
        if record is not None:
            record([*before, found])

    if part.processes == 1:
        return run_in_process(part.name, options, seconds, limit, look)

    def run_share(number: int) -> Outcome:
        share = replace(options, share=(number, part.processes))
        return run_in_process(part.name, share, seconds, limit)

    with ThreadPoolExecutor(part.processes) as threads:
        return together(list(threads.map(run_share, range(part.processes))))


def _run_here(part: Part, options: Options) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows"
        # A dry run is not timed, and takes the time it takes.
        Job(file, options, seconds=float("inf")).carry_out(part.run)
        return read_outcome(part.name, file, None, "it ended without a word")


def check(
    parts: Sequence[Part], options: Options, command: str, folder: Path | None
) -> dict[str, Any]:
    """The whole check, as JSON-ready data, which is also kept in `folder` as it grows.

    Raises:
        MissingCapability: there is no GPU, and this is no dry run.
    """
    if not options.dry and not gpus():
        raise MissingCapability(
            "this machine has no NVIDIA GPU", "--dry-run does all but launching and timing"
        )
    report: dict[str, Any] = {
        "dry_run": options.dry,
        "gpu": None if options.dry else gpus()[0].name,
        "date": datetime.date.today().isoformat(),
        "command": command,
        "environment": environment(),
        "clocks_before": None if options.dry else clocks(),
        "clocks_after": None,
        "parts": [],
    }

    def record(outcomes: Sequence[Outcome]) -> None:
        report["parts"] = [asdict(outcome) for outcome in outcomes]
        if folder is not None:
            write(report, folder)

    outcomes = run_parts(parts, options, record=record)
    report["clocks_after"] = None if options.dry else clocks()
    record(outcomes)
    return report


def is_correct(report: dict[str, Any], parts: Sequence[Part]) -> bool:
    """Whether no check failed, and those that are needed were carried out.

    A dry run, which checks nothing on a GPU, is correct when every part could be rehearsed.
    """
    status = {part["name"]: part["status"] for part in report["parts"]}
    if report["dry_run"]:
        return not {FAILED, ERROR} & set(status.values())
    needed = all(status[part.name] == PASSED for part in parts if part.needed)
    return needed and FAILED not in status.values()


def write(report: dict[str, Any], folder: Path) -> tuple[Path, Path]:
    """Write the report as JSON and as Markdown to `folder`; returns both files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = files_in(folder, report)
    write_json(files[0], report)
    write_text(files[1], markdown(report))
    return files


def files_in(folder: Path, report: dict[str, Any]) -> tuple[Path, Path]:
    """Where `write` puts JSON and Markdown: such as ``gpu-h100-80gb-hbm3-2026-11-26.md``."""
    card = (report["gpu"] or "dry-run").lower().removeprefix("nvidia")
    name = f"gpu-{re.sub(r'[^a-z0-9]+', '-', card).strip('-')}-{report['date']}"
    return folder / f"{name}.json", folder / f"{name}.md"
