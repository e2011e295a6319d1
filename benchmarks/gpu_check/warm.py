"""Part: how fast a gate is right after x was written, as inside a network, where L2 may hold it.

What writes x is timed alone and with the gate after it; the difference is the gate's.
"""

from __future__ import annotations

import torch

from benchmarks.gpu_check.contenders import (
    Contender,
    Maps,
    device_weights,
    draw_maps,
    kernels,
    planned,
    seconds_each,
)
from benchmarks.gpu_check.gate_cases import GateCase, gate_cases
from benchmarks.gpu_check.job import Job
from benchmarks.gpu_check.timing import Timer

DEVICE = "cuda"


@torch.no_grad()
def run(job: Job) -> None:
    """Time the gates of ResNet-50 in FP16, channels last."""
    timer = None if job.dry else Timer()
    for case in job.in_time(job.each(warm_cases())):
        if timer is None:
            write_x(draw_maps(GateCase(case.gate, 1), "cpu"))
            job.row(**case.names())
        else:
            job.row(**case.names(), **measure(case, timer))


def warm_cases() -> list[GateCase]:
    """All batches of one type and layout."""
    return [
        case for case in gate_cases() if (case.gate.dtype, case.gate.layout) == ("float16", "nhwc")
    ]


def measure(case: GateCase, timer: Timer) -> dict[str, float]:
    """Durations of the gate with x from device memory and with x just written."""
    gate = kernels(planned(case), case, device_weights(case, DEVICE))
    contenders = {"cold": gate, "written": write_x, "both": after_writing(gate)}
    seconds = seconds_each(timer, case, contenders, DEVICE)
    return {
        "cold_us": seconds["cold"] * 1e6,
        "warm_us": (seconds["both"] - seconds["written"]) * 1e6,
    }


def write_x(maps: Maps) -> object:
    """Read x and write it as it was."""
    return maps.x.mul_(1)


def after_writing(gate: Contender) -> Contender:
    """`gate` right after `write_x`."""

    def run_both(maps: Maps) -> object:
        write_x(maps)
        return gate(maps)

    return run_both
