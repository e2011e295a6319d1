"""Part: the small cases of `correctness` under compute-sanitizer's tools."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from benchmarks.gpu_check.job import PASSED, Failed, Job, Skipped, read_outcome
from benchmarks.gpu_check.process import command_of, find_program, kill

TOOLS = ("memcheck", "racecheck", "synccheck")
_FOUND = 86


def run(job: Job) -> None:
    """Run the tools one after the other, each with its share of the time."""
    program = find_program("compute-sanitizer")
    if program is None and not job.dry:
        raise Skipped("compute-sanitizer is not installed")
    problems = []
    for number, tool in enumerate(TOOLS):
        seconds = job.seconds_left / (len(TOOLS) - number)
        if job.dry:
            sanitized(tool, program or "compute-sanitizer", job.file, job, seconds)
            job.row(tool=tool)
            continue
        problem = _check(tool, str(program), job, seconds)
        job.row(tool=tool, problem=problem)
        if problem:
            problems.append(f"{tool}: {problem}")
    if problems:
        raise Failed("; ".join(problems))


def sanitized(tool: str, program: str, file: Path, job: Job, seconds: float) -> list[str]:
    """The command that runs the small cases under `tool`."""
    inner = command_of("small cases", file, job.options, 0.8 * seconds)
    return [program, "--tool", tool, f"--error-exitcode={_FOUND}", "--print-limit=5", *inner]


def _check(tool: str, program: str, job: Job, seconds: float) -> str:
    """What `tool` finds; empty if nothing."""
    with tempfile.TemporaryDirectory() as folder:
        file, log = Path(folder) / "rows", Path(folder) / "log"
        command = sanitized(tool, program, file, job, seconds)
        with log.open("w") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                code = process.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                kill(process)
                job.note(f"{tool} was ended after {seconds:.0f} s, with nothing found until then.")
                code = 0
        text = log.read_text(errors="replace")
        inner = read_outcome("small cases", file, None, f"exit {code}")
    job.note(f"{tool}: {len(inner.rows)} cases, {_summary(text)}")
    if code == _FOUND:
        return _summary(text)
    if inner.status != PASSED and code:
        return f"the program under it ended with {inner.status}: {inner.reason}"
    return ""


def _summary(text: str) -> str:
    lines = [line.strip("= \n") for line in text.splitlines() if "SUMMARY" in line]
    return lines[-1] if lines else "no summary"
