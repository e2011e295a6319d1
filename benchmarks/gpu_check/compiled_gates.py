"""Part: compile by `torch.compile` every gate that is timed through it.

One after the other they take longer than the whole check may. So a few processes compile them
beforehand, at the same time, into the cache that PyTorch keeps on disk.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence

import torch

from benchmarks.gpu_check.contenders import compiled, draw_maps
from benchmarks.gpu_check.gate_cases import GateCase, gate_cases
from benchmarks.gpu_check.job import Job

_PROCESSES = 12


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
        job.note(
            f"{len(cases) - len(problems)} of {len(cases)} gates compiled by "
            f"{len(shares)} processes."
        )
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
            compiled(case, "cuda")(draw_maps(case, "cuda"))
            torch.cuda.synchronize()
        except Exception as error:
            problems.append((case.names(), f"{type(error).__name__}: {error}"))
    return problems
