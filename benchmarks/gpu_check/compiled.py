"""Part: how fast a gate is next to `torch.compile` of the same gate, addition and ReLU."""

from __future__ import annotations

import torch

from benchmarks.gpu_check.contenders import (
    compiled,
    device_weights,
    draw_maps,
    kernels,
    planned,
    pytorch_gate,
    repeated,
    seconds_each,
)
from benchmarks.gpu_check.gate_cases import GateCase, gate_cases
from benchmarks.gpu_check.job import Job
from benchmarks.gpu_check.timing import Timer
from cbam_deploy.plugins import torch_op

DEVICE = "cuda"


@torch.no_grad()
def run(job: Job) -> None:
    """Time every case of floats, what the targets speak of first."""
    cases = job.each([case for case in gate_cases() if case.gate.dtype != "int8"])
    timer = None if job.dry else Timer()
    problems = 0
    for case in job.in_time(cases):
        if timer is None:
            _rehearse(case)
            job.row(**case.names())
            continue
        try:
            job.row(**case.names(), **measure(case, timer))
        except Exception as error:
            problems += 1
            job.row(**case.names(), problem=f"{type(error).__name__}: {error}")
    if problems:
        raise RuntimeError(f"{problems} of {len(cases)} cases could not be timed; see their rows")


def measure(case: GateCase, timer: Timer) -> dict[str, object]:
    """Durations of both, and whether a map fits in L2."""
    contenders = {
        "gate": kernels(planned(case), case, device_weights(case, DEVICE)),
        "compiled": compiled(case, DEVICE),
    }
    seconds = seconds_each(timer, case, contenders, DEVICE)
    return {
        "fits_l2": "yes" if case.map_bytes <= timer.l2_bytes else "no",
        "gate_us": seconds["gate"] * 1e6,
        "compiled_us": seconds["compiled"] * 1e6,
        "compiled_over_gate": seconds["compiled"] / seconds["gate"],
    }


def _rehearse(case: GateCase) -> None:
    """Run the operator, eager PyTorch and the compiled gate once on one image, on the CPU."""
    case = GateCase(case.gate, 1)
    maps, weights = draw_maps(case, "cpu"), device_weights(case, "cpu")
    fused = torch_op.NAMESPACE.cbam_gate_add_relu(maps.x, maps.r, *weights.values())
    eager = pytorch_gate(case, "cpu")(maps.x, maps.r)
    (other,) = repeated(compiled(case, "cpu", backend="eager"), [maps])()
    for one in (eager, other):
        assert (fused.shape, fused.stride()) == (one.shape, one.stride())
