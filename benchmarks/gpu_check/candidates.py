"""Part: every plan of the timed gates, beside what the cost model predicts of it.

So that the constants of ``cbam_deploy/plugins/cost_model.py`` can be corrected by what is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from benchmarks.gpu_check.contenders import device_weights, kernels, seconds_each
from benchmarks.gpu_check.correctness import limits
from benchmarks.gpu_check.gate_cases import GateCase, gate_cases
from benchmarks.gpu_check.job import Job
from benchmarks.gpu_check.plans import described, predicted
from benchmarks.gpu_check.timing import Timer
from cbam_deploy.plugins.cost_model import Chip
from cbam_deploy.plugins.cuda_launch import NoRoom, load
from cbam_deploy.plugins.geometry import DeviceLimits, ranked_plans

DEVICE = "cuda"
BATCHES = (32, 1, 64)
FORMATS = (("float16", "nhwc"), ("int8", "nhwc"))


@torch.no_grad()
def run(job: Job) -> None:
    """Time all plans of each gate in turns."""
    device = limits(job.dry)
    if job.dry:
        for case in job.in_time(job.each(candidate_cases())):
            rehearse(job, case, device)
        return
    timer = Timer()
    copy = timer.copy_bytes_per_second()
    on = replace(device.chip, memory_bytes_per_s=copy)
    job.note(
        f"Predicted for {copy / 1e9:.0f} GB/s, as a copy has them here; plans are chosen for "
        f"{device.chip.memory_bytes_per_s / 1e9:.0f} GB/s, those of the datasheet."
    )
    for case in job.in_time(job.each(candidate_cases())):
        measure(job, case, device, on, timer)


def candidate_cases() -> list[GateCase]:
    """The gates of ResNet-50, those of FP16 first."""
    every = {case.gate: None for case in gate_cases()}
    gates = [gate for one in FORMATS for gate in every if (gate.dtype, gate.layout) == one]
    cases = [GateCase(gate, batch) for batch in BATCHES for gate in gates]
    return sorted(cases, key=lambda case: case.gate.dtype != "float16")


def rehearse(job: Job, case: GateCase, device: DeviceLimits) -> None:
    """A row for each plan, without its figures."""
    for one in ranked_plans(case.gate, device, batch=case.batch):
        predicted(one, case.batch, device.chip)
        job.row(**case.names(), plan=described(one))


def measure(job: Job, case: GateCase, device: DeviceLimits, on: Chip, timer: Timer) -> None:
    """A row for each plan, the predicted fastest first; `on` is what predictions are for."""
    loaded, rows = {}, {}
    for number, one in enumerate(ranked_plans(case.gate, device, batch=case.batch)):
        row: dict[str, Any] = {**case.names(), "plan": described(one)}
        row |= predicted(one, case.batch, on)
        try:
            found = load(one, 0)
        except NoRoom:
            job.row(**row, problem="no room for its cluster")
            continue
        if found.active_clusters[0] is not None:
            row["active_clusters"] = found.active_clusters[0]
        name = str(number)
        loaded[name], rows[name] = found, row
    weights = device_weights(case, DEVICE)
    contenders = {name: kernels(one, case, weights) for name, one in loaded.items()}
    seconds = seconds_each(timer, case, contenders, DEVICE)
    for name, row in rows.items():
        us = seconds[name] * 1e6
        job.row(
            **row,
            measured_us=us,
            measured_over_predicted=us / row["predicted_us"],
            fastest="yes" if seconds[name] == min(seconds.values()) else "",
        )
