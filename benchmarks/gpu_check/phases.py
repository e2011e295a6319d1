"""Part: the fused kernel without one of its phases, to see what each takes; results mean nothing.

What is left out is neither computed nor, but for the output, no longer read: data moves as before,
and blocks wait for one another as before. Phases overlap, so that they do not add up to the whole.
"""

from __future__ import annotations

import torch

from benchmarks.gpu_check.contenders import device_weights, kernels, seconds_each
from benchmarks.gpu_check.correctness import limits
from benchmarks.gpu_check.gate_cases import GateCase, large_cases
from benchmarks.gpu_check.job import Job
from benchmarks.gpu_check.plans import described
from benchmarks.gpu_check.timing import Timer
from cbam_deploy.plugins.cuda_launch import compile_plan, load
from cbam_deploy.plugins.geometry import DeviceLimits, plan
from cbam_deploy.plugins.launches import LaunchPlan

PHASES = ("channel_statistics", "mlp", "position_statistics", "convolution", "output")
"""``Phase`` of ``cbam_deploy/plugins/kernels/gate.cuh``."""

DEVICE = "cuda"


@torch.no_grad()
def run(job: Job) -> None:
    """Time the kernel of each map whole and without each phase, in turns."""
    device = limits(job.dry)
    timer = None if job.dry else Timer()
    for case in job.in_time(job.each(large_cases())):
        one = plan_of(case, device)
        row = {**case.names(), "plan": described(one)}
        if timer is None:
            for phase in PHASES:
                compile_plan(one, device.capability, phase)
            job.row(**row)
        else:
            job.row(**row, **measure(case, one, timer))


def plan_of(case: GateCase, device: DeviceLimits) -> LaunchPlan:
    """The fused kernel for a case."""
    return plan(case.gate, device, batch=case.batch, strategy="fused")


def measure(case: GateCase, one: LaunchPlan, timer: Timer) -> dict[str, float]:
    """Durations in microseconds."""
    weights = device_weights(case, DEVICE)
    contenders = {phase: kernels(load(one, 0, phase), case, weights) for phase in ("", *PHASES)}
    seconds = seconds_each(timer, case, contenders, DEVICE)
    return {f"without_{phase}_us" if phase else "whole_us": s * 1e6 for phase, s in seconds.items()}
