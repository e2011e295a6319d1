"""What is timed: the planned kernels, PyTorch's addition, `torch.compile`; and on what.

A contender takes a map, a residual and room for the result, and enqueues its work on the current
stream. What it returns is kept by the timer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu_check.cases import draw_weights
from benchmarks.gpu_check.gate_cases import GateCase
from benchmarks.gpu_check.timing import Timer
from cbam_deploy.gates.description import CBAM
from cbam_deploy.models.gate import AttentionGate
from cbam_deploy.plugins import torch_cuda
from cbam_deploy.plugins.cuda_launch import LoadedPlan


class Maps(NamedTuple):
    """x, the residual, and y, in a case's type and layout; those of int8 flat, as they lie."""

    x: Tensor
    r: Tensor
    y: Tensor


Contender = Callable[[Maps], object]


def draw_maps(case: GateCase, device: str) -> Maps:
    """Random numbers, and a result that holds none."""
    gate = case.gate
    if gate.dtype == "int8":
        size = (case.map_bytes,)
        x, r = (torch.randint(-128, 128, size, dtype=torch.int8, device=device) for _ in range(2))
    else:
        shape = (case.batch, gate.channels, gate.height, gate.width)
        memory = torch.channels_last if gate.layout == "nhwc" else torch.contiguous_format
        dtype = getattr(torch, gate.dtype)
        x, r = (
            torch.randn(shape, dtype=dtype, device=device).contiguous(memory_format=memory)
            for _ in range(2)
        )
    return Maps(x, r, torch.empty_like(x))


def device_weights(case: GateCase, device: str) -> dict[str, Tensor]:
    """The gate's weights by name, float32."""
    weights = vars(draw_weights(case.gate, np.random.default_rng(0)))
    return {
        name: torch.tensor(value, device=device)
        for name, value in weights.items()
        if value is not None
    }


def planned(case: GateCase) -> LoadedPlan:
    """The kernels that the PyTorch operator would take."""
    return torch_cuda.planned(case.gate, case.batch, 0)


def kernels(loaded: LoadedPlan, case: GateCase, weights: Mapping[str, Tensor]) -> Contender:
    """The launches of one plan."""

    def run(maps: Maps) -> None:
        tensors = {**weights, **maps._asdict()}
        torch_cuda.launch(loaded, tensors, case.batch, maps.x.device)

    return run


def addition(maps: Maps) -> Tensor:
    """Two reads and one write, as the gate cannot do with less: what it is held to."""
    return torch.add(maps.x, maps.r, out=maps.y)


def pytorch_gate(case: GateCase, device: str) -> AttentionGate:
    """`AttentionGate`, called with a map and a residual, in the case's type."""
    torch.manual_seed(0)
    gate = AttentionGate(case.gate.channels, CBAM).eval()
    return gate.to(device, getattr(torch, case.gate.dtype))


def compiled(case: GateCase, device: str, backend: str = "inductor") -> Contender:
    """`AttentionGate` through `torch.compile`, for the case's shape alone."""
    torch._dynamo.reset()
    gate = torch.compile(pytorch_gate(case, device), backend=backend, fullgraph=True, dynamic=False)
    return lambda maps: gate(maps.x, maps.r)


def seconds_each(
    timer: Timer, case: GateCase, contenders: Mapping[str, Contender], device: str
) -> dict[str, float]:
    """Of one run of each contender, by its name, under CUDA graphs and with a cold L2."""
    sets = [draw_maps(case, device) for _ in range(timer.sets(case.moved_bytes))]
    seconds = timer.seconds([repeated(one, sets) for one in contenders.values()])
    return {name: one / len(sets) for name, one in zip(contenders, seconds, strict=True)}


def repeated(contender: Contender, sets: Sequence[Maps]) -> Callable[[], list[object]]:
    """One run on each set of maps."""
    return lambda: [contender(maps) for maps in sets]
