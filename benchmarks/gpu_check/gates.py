"""Part: how fast a gate is next to `torch.add(x, r, out=y)` of the same maps in the same run.

Both run under CUDA graphs with a cold L2, in turns. What a launch costs that does nothing is timed
too: at batch 1 it is subtracted from both.
"""

from __future__ import annotations

import torch

from benchmarks.gpu_check.contenders import (
    addition,
    device_weights,
    draw_maps,
    kernels,
    planned,
    repeated,
    seconds_each,
)
from benchmarks.gpu_check.correctness import limits
from benchmarks.gpu_check.gate_cases import GateCase, gate_cases
from benchmarks.gpu_check.job import Job
from benchmarks.gpu_check.plans import described
from benchmarks.gpu_check.timing import Timer, described_clocks
from cbam_deploy.errors import DeployError
from cbam_deploy.plugins.geometry import plan

DEVICE = "cuda"


@torch.no_grad()
def run(job: Job) -> None:
    """Time every case, what the targets speak of first."""
    cases = job.each(gate_cases())
    if job.dry:
        for case in job.in_time(cases):
            _rehearse(case)
            job.row(**case.names())
        return
    timer = Timer()
    job.note(
        f"Copy bandwidth: {timer.copy_bytes_per_second() / 1e9:.0f} GB/s, bytes read and written."
    )
    empty = timer.empty_launch_seconds()
    job.note(f"An empty launch in a CUDA graph takes {empty * 1e6:.2f} us.")
    problems = 0
    for case in job.in_time(cases):
        try:
            job.row(**case.names(), **measure(case, timer, empty))
        except (RuntimeError, DeployError) as error:
            problems += 1
            job.row(**case.names(), problem=f"{type(error).__name__}: {error}")
    job.note(f"Clocks after these: {described_clocks()}.")
    if problems:
        raise RuntimeError(f"{problems} of {len(cases)} cases could not be timed; see their rows")


def measure(case: GateCase, timer: Timer, empty: float) -> dict[str, object]:
    """Durations of the gate and of the addition, and what the targets ask of them."""
    loaded = planned(case)
    contenders = {
        "gate": kernels(loaded, case, device_weights(case, DEVICE)),
        "add": addition,
    }
    seconds = seconds_each(timer, case, contenders, DEVICE)
    gate, add = seconds["gate"], seconds["add"]
    figures: dict[str, object] = {
        "plan": described(loaded.plan),
        "gate_us": gate * 1e6,
        "add_us": add * 1e6,
        "gb_s": case.moved_bytes / gate / 1e9,
        "percent_of_add": 100 * add / gate,
    }
    if case.batch == 1 and add > empty:
        figures["empty_us"] = empty * 1e6
        figures["over_add_less_empty"] = (gate - empty) / (add - empty)
    return figures


def _rehearse(case: GateCase) -> None:
    """Plan for the batch, and add one image's maps on the CPU."""
    plan(case.gate, limits(dry=True), batch=case.batch)
    one = GateCase(case.gate, 1)
    maps = draw_maps(one, "cpu")
    (y,) = repeated(addition, [maps])()
    assert y is maps.y
    assert set(device_weights(one, "cpu")) == {"w0", "b0", "w1", "b1", "ws", "bs"}
