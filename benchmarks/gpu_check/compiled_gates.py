"""The gate as PyTorch computes it, eagerly and by `torch.compile`; and a part that compiles it.

Compiling nearly a hundred gates one after the other takes longer than the whole check may. So a
few processes compile them beforehand, at the same time, into the cache that PyTorch keeps on disk.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.gpu_check.gate_cases import GateCase, gate_cases
from benchmarks.gpu_check.job import Job
from cbam_deploy.gates.description import CBAM
from cbam_deploy.models.gate import AttentionGate

_PROCESSES = 12
Gate = Callable[[Tensor, Tensor], Tensor]


def pytorch_gate(case: GateCase, device: str) -> AttentionGate:
    """`AttentionGate`, called with a map and a residual, in the case's type."""
    torch.manual_seed(0)
    gate = AttentionGate(case.gate.channels, CBAM).eval()
    return gate.to(device, getattr(torch, case.gate.dtype))


def compiled_gate(case: GateCase, device: str, backend: str = "inductor") -> Gate:
    """The same through `torch.compile`, for the case's shape alone."""
    torch._dynamo.reset()
    compiled: Gate = torch.compile(
        pytorch_gate(case, device), backend=backend, fullgraph=True, dynamic=False
    )
    return compiled


def draw_maps(case: GateCase, device: str) -> tuple[Tensor, Tensor]:
    """A map and a residual of random numbers, in the case's type and layout."""
    gate = case.gate
    shape = (case.batch, gate.channels, gate.height, gate.width)
    memory = torch.channels_last if gate.layout == "nhwc" else torch.contiguous_format
    maps = (torch.randn(shape, dtype=getattr(torch, gate.dtype), device=device) for _ in range(2))
    x, r = (one.contiguous(memory_format=memory) for one in maps)
    return x, r


def run(job: Job) -> None:
    """Compile every gate once; what is left out here is compiled when it is timed."""
    cases = job.each([case for case in gate_cases() if case.gate.dtype != "int8"])
    count = min(_PROCESSES, len(os.sched_getaffinity(0)))
    shares = [share for share in (cases[first::count] for first in range(count)) if share]
    if job.dry:
        job.note(f"{len(cases)} gates for {len(shares)} processes.")
        return
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    # Their own pool, not an executor: a process that hangs can be ended.
    pool = multiprocessing.get_context("spawn").Pool(len(shares))
    try:
        compiling = pool.map_async(_compile, shares, chunksize=1)
        ended = compiling.get(timeout=max(1.0, job.seconds_left))
        problems = [problem for share in ended for problem in share]
        compiled = len(cases) - len(problems)
        job.note(f"{compiled} of {len(cases)} gates compiled by {len(shares)} processes.")
        for names, problem in problems:
            job.row(**names, problem=problem)
    except multiprocessing.TimeoutError:
        job.note("Time ran out; what is missing is compiled when it is timed.")
    finally:
        pool.terminate()
        pool.join()


Problem = tuple[dict[str, object], str]


@torch.no_grad()
def _compile(cases: Sequence[GateCase]) -> list[Problem]:
    """Compile some cases one after the other; returns those that could not be, and why."""
    problems = []
    for case in cases:
        try:
            x, r = draw_maps(case, "cuda")
            compiled_gate(case, "cuda")(x, r)
            torch.cuda.synchronize()
        except Exception as error:
            problems.append((case.names(), f"{type(error).__name__}: {error}"))
    return problems
