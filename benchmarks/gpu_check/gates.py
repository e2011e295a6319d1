"""Part: how fast a gate is, in GB/s of the bytes that have to move, and next to PyTorch's own.

What it is compared with is `AttentionGate` followed by addition and ReLU in the map's type, eagerly
and through `torch.compile`. All contenders run under CUDA graphs: what is compared is time on the
GPU, and PyTorch's launch overhead on the CPU, which would speak for the fused gate, is left out.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu_check.cases import draw_weights
from benchmarks.gpu_check.compiled_gates import (
    Gate,
    compiled_gate,
    draw_maps,
    pytorch_gate,
)
from benchmarks.gpu_check.gate_cases import GateCase, gate_cases
from benchmarks.gpu_check.job import Job
from benchmarks.gpu_check.timing import Timer, described_clocks
from cbam_deploy.errors import DeployError
from cbam_deploy.plugins import torch_cuda, torch_op
from cbam_deploy.plugins.geometry import KNOWN_DEVICES, plan

DEVICE = "cuda"


@torch.no_grad()
def run(job: Job) -> None:
    """Time every case next to eager PyTorch, then next to `torch.compile` as far as time allows."""
    cases = job.each(gate_cases())
    if job.dry:
        for case in job.in_time(cases):
            _rehearse(case)
            job.row(**case.names())
        return
    timer = Timer()
    copy = timer.copy_bytes_per_second()
    job.note(f"Copy bandwidth: {copy / 1e9:.0f} GB/s, bytes read and written.")
    rows: dict[GateCase, int] = {}
    problems = 0
    for case in job.in_time(cases):
        try:
            rows[case] = job.row(**case.names(), **measure(case, timer, copy))
        except (RuntimeError, DeployError) as error:
            problems += 1
            job.row(**case.names(), problem=f"{type(error).__name__}: {error}")
    job.note(f"Clocks after these: {described_clocks()}.")
    compiled = [case for case in rows if case.gate.dtype != "int8"]
    for case in job.in_time(compiled):
        try:
            job.extend(rows[case], **compare_with_compiled(case, timer))
        except Exception as error:
            problems += 1
            job.extend(rows[case], problem=f"torch.compile: {type(error).__name__}: {error}")
    if problems:
        raise RuntimeError(f"{problems} of {len(cases)} cases could not be timed; see their rows")


def measure(case: GateCase, timer: Timer, copy: float) -> dict[str, float]:
    """Duration and bandwidth of the fused gate, and how long eager PyTorch takes."""
    weights = _weights(case, DEVICE)
    if case.gate.dtype == "int8":
        contenders = {"fused": _int8(case, weights)}
    else:
        contenders = {"fused": _operator(weights), "eager": pytorch_gate(case, DEVICE)}
    seconds = _seconds(case, timer, contenders)
    speed = case.moved_bytes / seconds["fused"]
    figures = {
        "fused_us": seconds["fused"] * 1e6,
        "gb_s": speed / 1e9,
        "percent_of_copy": 100 * speed / copy,
    }
    if "eager" in seconds:
        figures["eager_us"] = seconds["eager"] * 1e6
        figures["eager_over_fused"] = seconds["eager"] / seconds["fused"]
    return figures


def compare_with_compiled(case: GateCase, timer: Timer) -> dict[str, float]:
    """How long `torch.compile` takes, and the fused gate in turns with it."""
    contenders = {
        "fused": _operator(_weights(case, DEVICE)),
        "compiled": compiled_gate(case, DEVICE),
    }
    seconds = _seconds(case, timer, contenders)
    return {
        "compiled_us": seconds["compiled"] * 1e6,
        "compiled_over_fused": seconds["compiled"] / seconds["fused"],
    }


def _seconds(case: GateCase, timer: Timer, contenders: dict[str, Gate]) -> dict[str, float]:
    """Of one run of each contender."""
    maps = [_maps(case, DEVICE) for _ in range(timer.sets(case.moved_bytes))]
    seconds = timer.seconds([_repeat(gate, maps) for gate in contenders.values()])
    return {name: one / len(maps) for name, one in zip(contenders, seconds, strict=True)}


def _rehearse(case: GateCase) -> None:
    """Run what can be run on a CPU: plan, buffers, and the contenders once on one image."""
    case = GateCase(case.gate, 1)
    plan(case.gate, KNOWN_DEVICES[90], batch=case.batch)
    maps, weights = [_maps(case, "cpu")], _weights(case, "cpu")
    if case.gate.dtype == "int8":
        return
    fused = _repeat(_operator(weights), maps)()
    eager = _repeat(pytorch_gate(case, "cpu"), maps)()
    compiled = _repeat(compiled_gate(case, "cpu", backend="eager"), maps)()
    for (one,), (other,) in ((fused, eager), (fused, compiled)):
        assert one.shape == other.shape
        assert one.stride() == other.stride()


def _repeat(gate: Gate, maps: list[tuple[Tensor, Tensor]]) -> Callable[[], list[Tensor]]:
    return lambda: [gate(x, r) for x, r in maps]


def _maps(case: GateCase, device: str) -> tuple[Tensor, Tensor]:
    """A map and a residual; those of int8 flat, as they are stored."""
    if case.gate.dtype != "int8":
        return draw_maps(case, device)
    size = (case.map_bytes,)
    x, r = (torch.randint(-128, 128, size, dtype=torch.int8, device=device) for _ in range(2))
    return x, r


def _weights(case: GateCase, device: str) -> dict[str, Tensor]:
    weights = draw_weights(case.gate, np.random.default_rng(0))
    return {
        name: torch.tensor(value, device=device)
        for name, value in vars(weights).items()
        if value is not None
    }


def _operator(weights: dict[str, Tensor]) -> Gate:
    operator = torch_op.NAMESPACE.cbam_gate_add_relu
    return lambda x, r: operator(x, r, *weights.values())


def _int8(case: GateCase, weights: dict[str, Tensor]) -> Gate:
    loaded = torch_cuda.planned(case.gate, case.batch, 0)

    def gate(x: Tensor, r: Tensor) -> Tensor:
        y = torch.empty_like(x)
        torch_cuda.launch(loaded, {**weights, "x": x, "r": r, "y": y}, case.batch, x.device)
        return y

    return gate
