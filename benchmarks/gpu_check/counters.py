"""Part: hardware counters of four kernels, where Nsight Compute runs.

``ncu`` runs this package's own `counted`, which launches the planned kernel of each map once.
"""

from __future__ import annotations

import csv
import subprocess
import tempfile
from pathlib import Path

from benchmarks.gpu_check.buffers import held_buffers
from benchmarks.gpu_check.cases import Case, draw
from benchmarks.gpu_check.correctness import limits, put_inputs
from benchmarks.gpu_check.gate_cases import large_cases
from benchmarks.gpu_check.job import Job, Skipped
from benchmarks.gpu_check.process import command_of, find_program
from cbam_deploy.plugins.cuda_launch import call, current_device, load
from cbam_deploy.plugins.geometry import plan

METRICS = {
    "gpu__time_duration.sum": "ns",
    "dram__bytes_read.sum": "memory_bytes_read",
    "dram__bytes_write.sum": "memory_bytes_written",
    "lts__t_bytes.sum": "l2_bytes",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "memory_percent",
    "sm__inst_executed.sum": "instructions",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "warps_active_percent",
    "l1tex__data_bank_conflicts_pipe_lsu.sum": "bank_conflicts",
    "launch__registers_per_thread": "registers",
}
"""Of ncu, and what the table calls them."""


def run(job: Job) -> None:
    """Run ncu, and read what it counted."""
    program = find_program("ncu")
    if job.dry:
        command("ncu", job.file, job)
        for case in counted_cases(dry=True):
            job.row(case=str(case))
        return
    if program is None:
        raise Skipped("ncu is not installed")
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            command(program, Path(folder) / "rows", job),
            capture_output=True,
            text=True,
            timeout=max(1.0, job.seconds_left),
            check=False,
        )
    rows = counted_rows(done.stdout)
    if not rows:
        words = (done.stdout + done.stderr).strip().splitlines() or ["nothing was said"]
        raise Skipped(f"ncu counted nothing: {words[-1]}")
    for row in rows:
        job.row(**row)


def command(program: str, file: Path, job: Job) -> list[str]:
    """The command that counts; clocks stay as they are."""
    inner = command_of("counted kernels", file, job.options, job.seconds)
    options = ["--csv", "--page", "raw", "--print-units", "base", "--clock-control", "none"]
    return [program, *options, "--metrics", ",".join(METRICS), *inner]


def counted_rows(text: str) -> list[dict[str, object]]:
    """What ncu printed as a table: one line per kernel, after one of names and one of units."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    found = []
    for line in csv.DictReader(lines):
        if not line.get("Kernel Name"):
            continue  # the units
        row: dict[str, object] = {"kernel": line["Kernel Name"].partition("(")[0]}
        for metric, name in METRICS.items():
            number = (line.get(metric) or "").replace(",", "")
            if number:
                row[name] = float(number)
        found.append(row)
    return found


def counted_cases(dry: bool) -> list[Case]:
    """The planned gates of ResNet-50 in FP16, channels last, at the first batch."""
    device = limits(dry)
    return [Case(plan(one.gate, device, batch=one.batch), one.batch) for one in large_cases()]


def counted(job: Job) -> None:
    """Launch each kernel once; run under ncu."""
    for case in counted_cases(job.dry):
        with current_device(0), held_buffers() as buffers:
            put_inputs(case, draw(case), buffers)
            load(case.plan, 0).launch(buffers.addresses, case.batch, 0)
            call("cuCtxSynchronize")
