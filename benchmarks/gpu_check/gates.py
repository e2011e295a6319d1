"""Part: how fast a gate is, in GB/s of the bytes that have to move, and next to PyTorch's own.

What it is compared with is `AttentionGate` followed by addition and ReLU in the map's type, eagerly
and through `torch.compile`. All contenders run under CUDA graphs: what is compared is time on the
GPU, and PyTorch's launch overhead on the CPU, which would speak for the fused gate, is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu_check.cases import draw_weights
from benchmarks.gpu_check.compiled_gates import compiled_gate, precompile, pytorch_gate
from benchmarks.gpu_check.gate_cases import GateCase, gate_cases
from benchmarks.gpu_check.job import Job
from benchmarks.gpu_check.timing import Timer
from cbam_deploy.plugins import torch_cuda, torch_op
from cbam_deploy.plugins.geometry import KNOWN_DEVICES, plan

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
}
Contender = Callable[[], object]


@torch.no_grad()
def run(job: Job) -> None:
    """Time every case, as far as time allows."""
    cases = job.each(gate_cases())
    if job.dry:
        for case in job.in_time(cases):
            _rehearse(case)
            job.row(**case.names(), operator=case.gate.operator)
        return
    with suppress(TimeoutError):
        precompile([case for case in cases if case.gate.dtype != "int8"], job.seconds_left / 2)
    timer = Timer()
    copy = timer.copy_bytes_per_second()
    job.note(f"Copy bandwidth: {copy / 1e9:.0f} GB/s, bytes read and written.")
    for case in job.in_time(cases):
        job.row(**case.names(), **_measure(case, timer, copy))


def _measure(case: GateCase, timer: Timer, copy: float) -> dict[str, object]:
    sets = timer.sets(case.moved_bytes)
    maps = [_maps(case, "cuda") for _ in range(sets)]
    weights = _weights(case, "cuda")
    if case.gate.dtype == "int8":
        contenders = {"fused": _repeat(_int8(case, weights), maps)}
    else:
        contenders = {
            "fused": _repeat(_operator(weights), maps),
            "eager": _repeat(pytorch_gate(case, "cuda"), maps),
            "compiled": _repeat(compiled_gate(case, "cuda"), maps),
        }
    seconds = dict(zip(contenders, timer.seconds(list(contenders.values())), strict=True))
    one = {name: value / sets for name, value in seconds.items()}
    speed = case.moved_bytes / one["fused"]
    figures: dict[str, object] = {
        "fused_us": one["fused"] * 1e6,
        "gb_s": speed / 1e9,
        "percent_of_copy": 100 * speed / copy,
    }
    for name in ("eager", "compiled"):
        if name in one:
            figures[f"{name}_us"] = one[name] * 1e6
            figures[f"{name}_over_fused"] = one[name] / one["fused"]
    return figures


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


def _repeat(gate: Callable[[Tensor, Tensor], Tensor], maps: list[_Maps]) -> Callable[[], list]:
    return lambda: [gate(one.x, one.r) for one in maps]


@dataclass(frozen=True)
class _Maps:
    x: Tensor
    r: Tensor


def _maps(case: GateCase, device: str) -> _Maps:
    gate = case.gate
    shape = (case.batch, gate.channels, gate.height, gate.width)
    if gate.dtype == "int8":
        size = (case.map_bytes,)
        draws = (torch.randint(-128, 128, size, dtype=torch.int8, device=device) for _ in range(2))
        return _Maps(*draws)
    memory = torch.channels_last if gate.layout == "nhwc" else torch.contiguous_format
    dtype = DTYPES[gate.dtype]
    draws = (
        torch.randn(shape, dtype=dtype, device=device).contiguous(memory_format=memory)
        for _ in range(2)
    )
    return _Maps(*draws)


def _weights(case: GateCase, device: str) -> dict[str, Tensor]:
    weights = draw_weights(case.gate, np.random.default_rng(0))
    return {name: torch.tensor(value, device=device) for name, value in vars(weights).items()}


def _operator(weights: dict[str, Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    operator = getattr(torch.ops, torch_op.NAMESPACE).cbam_gate_add_relu
    return lambda x, r: operator(x, r, *weights.values())


def _int8(case: GateCase, weights: dict[str, Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    loaded = torch_cuda.planned(case.gate, case.batch, 0)

    def gate(x: Tensor, r: Tensor) -> Tensor:
        y = torch.empty_like(x)
        torch_cuda.launch(loaded, {**weights, "x": x, "r": r, "y": y}, case.batch, x.device)
        return y

    return gate
