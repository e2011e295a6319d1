"""Run the parts one after the other, and put together what they found."""

from __future__ import annotations

import datetime
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.job import ERROR, FAILED, PASSED, Job, Options, Outcome, read_outcome
from benchmarks.gpu_check.parts import TOTAL_SECONDS, Part
from benchmarks.gpu_check.process import run_in_process
from benchmarks.gpu_check.table import markdown
from cbam_deploy.errors import MissingCapability
from cbam_deploy.machine import clocks, environment, gpus
from cbam_deploy.outputs import write_text
from cbam_deploy.report.json_file import write_json


def run_parts(
    parts: Sequence[Part], options: Options, total_seconds: float = TOTAL_SECONDS
) -> list[Outcome]:
    """Run `parts` within `total_seconds`, each in a process of its own.

    A dry run, in which no kernel can go astray, stays in this process.
    """
    ends = time.monotonic() + total_seconds
    outcomes = []
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
            outcome = run_in_process(part.name, options, seconds, left)
        took = "" if outcome.seconds is None else f" in {outcome.seconds:.0f} s"
        print(f"{part.name}: {outcome.status}{took} {outcome.reason}".rstrip(), file=sys.stderr)
        outcomes.append(outcome)
    return outcomes


def _run_here(part: Part, options: Options) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows"
        # A dry run is not timed, and takes the time it takes.
        Job(file, options, seconds=float("inf")).carry_out(part.run)
        return read_outcome(part.name, file, None, "it ended without a word")


def check(parts: Sequence[Part], options: Options, command: str) -> dict[str, Any]:
    """The whole check, as JSON-ready data.

    Raises:
        MissingCapability: there is no GPU, and this is no dry run.
    """
    if not options.dry and not gpus():
        raise MissingCapability(
            "this machine has no NVIDIA GPU", "--dry-run does all but launching and timing"
        )
    before = None if options.dry else clocks()
    outcomes = run_parts(parts, options)
    after = None if options.dry else clocks()
    return {
        "dry_run": options.dry,
        "gpu": None if options.dry else gpus()[0].name,
        "date": datetime.date.today().isoformat(),
        "command": command,
        "environment": environment(),
        "clocks_before": before,
        "clocks_after": after,
        "parts": [asdict(outcome) for outcome in outcomes],
    }


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
    machine = re.sub(r"[^a-z0-9]+", "-", (report["gpu"] or "dry-run").lower()).strip("-")
    name = f"{machine}-{report['date']}"
    files = folder / f"{name}.json", folder / f"{name}.md"
    write_json(files[0], report)
    write_text(files[1], markdown(report))
    return files
