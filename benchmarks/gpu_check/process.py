"""One process per part: a kernel that goes astray takes its CUDA context with it, and no more."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmarks.gpu_check.job import ERROR, RUNNING, Options, Outcome, read_outcome

ROOT = Path(__file__).parents[2]
GRACE_SECONDS = 8.0
LOOK_SECONDS = 5.0
_PLACES = (
    "/usr/local/cuda/bin",
    "/usr/local/cuda/compute-sanitizer",
    "/usr/local/cuda/nsight-compute",
    "/opt/nvidia/nsight-compute",
)


def find_program(name: str) -> str | None:
    """A tool of NVIDIA's, on the path or where the CUDA toolkit puts it."""
    found = shutil.which(name, path=os.pathsep.join([os.environ["PATH"], *_PLACES]))
    versions = sorted(Path("/opt/nvidia/nsight-compute").glob(f"*/{name}"))
    return found or (str(versions[-1]) if versions else None)


def command_of(part: str, file: Path, options: Options, seconds: float) -> list[str]:
    """The command that runs one part and writes what it finds to `file`."""
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--part", part, "--file", str(file)]
    command += ["--seconds", f"{seconds:.1f}", "--every", str(options.every)]
    command += ["--share", *map(str, options.share)]
    if options.engines is not None:
        command += ["--engines", str(options.engines)]
    return command + ["--dry-run"] * options.dry


def run_in_process(
    part: str,
    options: Options,
    seconds: float,
    limit: float,
    look: Callable[[Outcome], None] | None = None,
) -> Outcome:
    """Run a part in a process of its own, ended by force at the `limit` (seconds) at the latest.

    The part itself is to end after `seconds`. `look` is given every few seconds what it has found.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        file, log = Path(folder) / "rows", Path(folder) / "log"
        with log.open("w") as output:
            process = subprocess.Popen(
                command_of(part, file, options, seconds),
                cwd=ROOT,
                env={**os.environ, **({"OMP_NUM_THREADS": "1"} if options.share[1] > 1 else {})},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                ends = began + min(limit, seconds + GRACE_SECONDS)
                while (code := _code(process, min(ends - time.monotonic(), LOOK_SECONDS))) is None:
                    if time.monotonic() >= ends:
                        break
                    if look is not None:
                        found = read_outcome(part, file, time.monotonic() - began, "")
                        look(replace(found, status=RUNNING))
                if code is None:
                    kill(process)
                    ending = f"ended by force after {time.monotonic() - began:.0f} s"
                else:
                    ending = _described(code)
            except BaseException:
                kill(process)
                raise
        outcome = read_outcome(part, file, time.monotonic() - began, ending)
        if outcome.status == ERROR:
            print(log.read_text(errors="replace")[-4000:], file=sys.stderr)
        return outcome


def _code(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """Its exit code, if it ends within so many seconds."""
    try:
        return process.wait(max(0.0, seconds))
    except subprocess.TimeoutExpired:
        return None


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and those it started; it has a process group of its own."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _described(code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"its process ended with exit code {code} and no word"
