"""Part: the PyTorch operators on this GPU, by the tests in tests/gpu."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys

from benchmarks.gpu_check.job import Failed, Job, Skipped
from benchmarks.gpu_check.process import ROOT

_NOTHING_FAILED, _SOMETHING_FAILED = 0, 1
_LONGEST_SECONDS = 300.0


def run(job: Job) -> None:
    """Run pytest on tests/gpu; in a dry run, collect the tests only."""
    if importlib.util.find_spec("pytest") is None:
        raise Skipped("pytest is not installed")
    environment = {"CUDA_VISIBLE_DEVICES": "0", **os.environ}
    if job.dry:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-p", "benchmarks.gpu_check", "tests/gpu"]
    done = subprocess.run(
        command + ["--collect-only"] * job.dry,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=min(max(1.0, job.seconds_left), _LONGEST_SECONDS),
        check=False,
    )
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()]
    for line in lines:
        failed = re.match(r"FAILED (\S+)(?: - (.*))?", line)
        if failed:
            job.row(test=failed[1], problem=failed[2] or "")
    if done.returncode == _SOMETHING_FAILED:
        raise Failed(lines[-1].strip("= "))
    if done.returncode != _NOTHING_FAILED:
        raise RuntimeError(f"pytest exits with {done.returncode}: {lines[-1]}")
    if not job.dry:
        job.note(f"pytest tests/gpu: {lines[-1].strip('= ')}.")
