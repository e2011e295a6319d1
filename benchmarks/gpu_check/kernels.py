"""Part: compile every kernel that the timing parts launch, on all processors; needs no GPU."""

from __future__ import annotations

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed

from benchmarks.gpu_check.candidates import candidate_cases
from benchmarks.gpu_check.correctness import limits
from benchmarks.gpu_check.gate_cases import gate_cases, large_cases
from benchmarks.gpu_check.job import Job
from benchmarks.gpu_check.phases import PHASES, plan_of
from cbam_deploy.plugins.cuda_launch import compile_plan
from cbam_deploy.plugins.geometry import plan, ranked_plans
from cbam_deploy.plugins.launches import LaunchPlan


def run(job: Job) -> None:
    """Fill the cache of compiled kernels; what is left out here is compiled when it is needed."""
    device = limits(job.dry)
    plans = [plan(case.gate, device, batch=case.batch) for case in gate_cases()]
    for case in candidate_cases():
        plans += ranked_plans(case.gate, device, batch=case.batch)
    wanted = [(one, "") for one in plans]
    wanted += [(plan_of(case, device), phase) for case in large_cases() for phase in PHASES]
    found = {
        (*(launch.kernel.name for launch in one.launches), phase): (one, phase)
        for one, phase in wanted
    }
    programs = dict(job.each(list(found.items())))
    # Spawned, since the driver that this process has loaded does not survive a fork.
    context = multiprocessing.get_context("spawn")
    processes = ProcessPoolExecutor(len(os.sched_getaffinity(0)), context)
    try:
        tasks = [
            processes.submit(_compile, *one, device.capability, time.time() + job.seconds_left)
            for one in programs.values()
        ]
        done = sum(task.result() for task in as_completed(tasks))
    finally:
        processes.shutdown(cancel_futures=True)
    kernels = {(name, phase) for *names, phase in programs for name in names}
    job.note(f"{len(kernels)} kernels in {len(programs)} programs for sm_{device.capability}.")
    if done < len(programs):
        job.note(f"Time ran out after {done} programs; the others are compiled when needed.")


def _compile(one: LaunchPlan, without: str, capability: int, until: float) -> bool:
    if time.time() > until:
        return False
    compile_plan(one, capability, without)
    return True
