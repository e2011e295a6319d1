"""Is it slower than before? Verdicts that hold on a noisy machine.

A verdict falls on the ratio of durations, new over old (or over the baseline). An entry fails only
when the whole 95% confidence interval of that ratio lies above 1 + max_slowdown: not merely slower
in this run, but slower beyond the doubt that the run itself shows.

Three comparisons are made, by what there is to compare with:

1. An earlier report and no baseline: median durations, now over then. Both runs' rounds are
   resampled. The interval knows the noise within each run, not what changed between them: use this
   on one quiet machine.
2. An earlier report, and a baseline in both runs: the duration relative to the baseline, now over
   then. A machine twice as fast leaves this alone: use it in CI.
3. A baseline and no earlier report: the duration relative to the baseline.

The PyTorch model is measured for orientation and never judged.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from cbam_deploy.benchmarking.result import BenchReport, Comparison, Entry, Verdict
from cbam_deploy.benchmarking.sources import PYTORCH
from cbam_deploy.benchmarking.statistics import Samples, ratio_of_medians
from cbam_deploy.errors import BadInput
from cbam_deploy.report.units import Estimate


def compare_with_baseline(report: BenchReport, max_slowdown: float) -> Comparison:
    """Judge the entries of `report` by their durations relative to the baseline's."""
    verdicts = [
        _verdict(entry, entry.relative, max_slowdown)
        for entry in report.entries
        if entry.relative is not None and entry.artefact != PYTORCH
    ]
    return Comparison(str(report.relative_to), max_slowdown, tuple(verdicts))


def compare_with_report(
    new: BenchReport, old: BenchReport, path: str | Path, max_slowdown: float, seed: int
) -> Comparison:
    """Judge the entries of `new` by those of `old`, matched by artefact, runtime and batch.

    Args:
        new: the report at hand.
        old: the earlier one, read from `path`.
        path: where `old` comes from, for messages.
        max_slowdown: allowed slowdown as a fraction.
        seed: of the bootstrap.

    Raises:
        BadInput: `new` has a baseline and `old` has not the same one, or no entry is in both.
    """
    check_baseline(new.relative_to, old, path)
    relative = new.relative_to is not None
    earlier = {entry.key: _figures(old, entry, relative) for entry in old.entries}
    verdicts = []
    for entry in new.entries:
        ours, theirs = _figures(new, entry, relative), earlier.get(entry.key)
        if entry.artefact != PYTORCH and ours is not None and theirs is not None:
            ratio = ratio_of_medians(ours, theirs, seed)
            verdicts.append(_verdict(entry, ratio, max_slowdown))
    if not verdicts:
        raise BadInput(
            f"{path}: has none of the entries measured now; it has "
            + (", ".join(entry.label for entry in old.entries) or "none at all"),
            "compare runs of the same artefacts, runtimes and batch sizes",
        )
    basis = f", each relative to {new.relative_to}" if new.relative_to else ""
    return Comparison(
        f"{path}{basis}", max_slowdown, tuple(verdicts), tuple(_notes(new, old, str(path)))
    )


def check_baseline(relative_to: str | None, old: BenchReport, path: str | Path) -> None:
    """Refuse to compare relative figures with absolute ones, or with those of another baseline.

    Raises:
        BadInput: `relative_to` names a baseline and `old`, read from `path`, has not the same.
    """
    if relative_to is not None and relative_to != old.relative_to:
        had = f"relative to {old.relative_to}" if old.relative_to else "without a baseline"
        raise BadInput(
            f"{path}: was measured {had}, not relative to {relative_to}",
            f"measure it again with --relative-to {relative_to}",
        )


def _figures(report: BenchReport, entry: Entry, relative: bool) -> Samples | None:
    """One figure per round: seconds, or the ratio to the baseline, which itself has none."""
    seconds: Samples = np.array(entry.round_seconds)
    if not relative:
        return seconds
    baseline = report.baseline_of(entry)
    if baseline is None or baseline is entry:
        return None
    if len(baseline.round_seconds) != len(entry.round_seconds):
        raise BadInput(
            f"{entry.label} has {len(entry.round_seconds)} rounds, "
            f"its baseline {len(baseline.round_seconds)}",
            "the report was altered; measure again",
        )
    ratios: Samples = seconds / np.array(baseline.round_seconds)
    return ratios


def _verdict(entry: Entry, ratio: Estimate, max_slowdown: float) -> Verdict:
    held = ratio.low <= 1 + max_slowdown
    return Verdict(entry.artefact, entry.runtime, entry.batch, ratio, held)


def _notes(new: BenchReport, old: BenchReport, path: str) -> list[str]:
    new_keys = {entry.key for entry in new.entries}
    old_keys = {entry.key for entry in old.entries}
    notes = [f"{e.label} is not in {path}" for e in new.entries if e.key not in old_keys]
    notes += [f"{e.label} of {path} was not measured" for e in old.entries if e.key not in new_keys]
    changed = _differences(new.environment, old.environment)
    if new.settings.get("threads") != old.settings.get("threads"):
        changed.append("--threads")
    if changed:
        caution = "" if new.relative_to else "; absolute times may not compare"
        notes.append(f"the environment differs in {', '.join(changed)}{caution}")
    if new.relative_to is not None and _baseline_hashes(new) != _baseline_hashes(old):
        notes.append(f"{new.relative_to} is not the same file as in {path}")
    return notes


def _baseline_hashes(report: BenchReport) -> set[str | None]:
    return {entry.sha256 for entry in report.entries if entry.artefact == report.relative_to}


def _differences(new: dict[str, Any], old: dict[str, Any]) -> list[str]:
    """Names under which the two differ once written as JSON, which knows no tuples."""
    return sorted(
        key
        for key in new.keys() | old.keys()
        if json.dumps(new.get(key), sort_keys=True) != json.dumps(old.get(key), sort_keys=True)
    )
