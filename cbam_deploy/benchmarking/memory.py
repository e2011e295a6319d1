"""Peak memory of one artefact at one batch size, apart from everything else.

A GPU runtime counts its own device memory. On the CPU only whole processes have a peak, and the
benchmark's process holds all contenders at once; so a fresh process loads one artefact, runs it
`RUNS` times at one batch size, and reports its peak resident memory while running, less what it
had before loading. What the runtime's libraries take without any network is not counted, nor are
copies that only loading needs. Run as ``python -m`` with a task on its standard input, this module
is that process.
"""

from __future__ import annotations

import importlib
import pickle
import re
import subprocess
import sys
from pathlib import Path

from cbam_deploy.benchmarking.sources import Source
from cbam_deploy.runtimes import process_library

RUNS = 3
_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")  # "5" sets VmHWM back to VmRSS: proc(5)


def applies_to(runtime: str) -> bool:
    """Whether the memory of `runtime`, such as ``onnxruntime-cpu``, is that of its process."""
    return process_library(runtime) is not None and _STATUS.exists()


def process_growth_bytes(source: Source, batch: int, seed: int) -> int | None:
    """Peak growth of a process that only opens `source` and runs it at `batch`.

    None when that process failed, as for want of memory.
    """
    command = [sys.executable, "-m", "cbam_deploy.benchmarking.memory"]
    task = pickle.dumps((source, batch, seed))
    finished = subprocess.run(command, input=task, capture_output=True, check=False)
    if finished.returncode != 0:
        return None
    return int(finished.stdout.split()[-1])


def _own_growth_bytes(source: Source, batch: int, seed: int) -> int:
    runner = source.open()  # Without checking the file again, which takes memory too.
    importlib.import_module(str(process_library(runner.name)))
    before = _resident("VmRSS")
    with runner:
        execution = runner.prepare(source.feeds(runner, batch, seed))
        execution.measure(1)
        _RESET.write_text("5")
        execution.measure(RUNS)
        return _resident("VmHWM") - before


def _resident(field: str) -> int:
    """A field of this process's status in bytes; ``VmHWM`` is the peak of ``VmRSS``."""
    match = re.search(rf"^{field}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) * 1024


if __name__ == "__main__":
    sys.stdout.write(f"{_own_growth_bytes(*pickle.load(sys.stdin.buffer))}\n")
