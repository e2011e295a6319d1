"""Run a part of ``benchmarks.gpu_check`` in a test, and read what it found."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu_check.job import Job, Options, read_outcome  # noqa: E402


def job_in(folder, *, dry=False, seconds=100.0, every=1):
    return Job(folder / "rows", Options(dry=dry, every=every), seconds)


def outcome_of(run, folder, **options):
    job_in(folder, **options).carry_out(run)
    return read_outcome("part", folder / "rows", 1.0, "exit 0")
