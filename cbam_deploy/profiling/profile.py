"""`profile`: what each layer of an artefact takes, beside what `bench` would measure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from cbam_deploy.artefacts import OnnxFile
from cbam_deploy.benchmarking.benchmark import Contender, prepare
from cbam_deploy.benchmarking.interleaving import measure_in_rounds, plan_turns
from cbam_deploy.benchmarking.sources import PyTorchSource, list_sources
from cbam_deploy.benchmarking.statistics import Samples, paired_ratio, quantile
from cbam_deploy.benchmarking.warm_up import warm_up
from cbam_deploy.errors import BadInput
from cbam_deploy.library_errors import said_of_the_file
from cbam_deploy.machine import clocks, environment
from cbam_deploy.profiling.kernels import LayerTimer
from cbam_deploy.profiling.layers import layers_of
from cbam_deploy.profiling.origins import Origins
from cbam_deploy.profiling.result import NetworkProfile, ProfileReport
from cbam_deploy.profiling.timers import open_timer
from cbam_deploy.progress import progress
from cbam_deploy.runtimes.base import Execution

MOST_ARTEFACTS = 2
_COLD_RUNS = 5  # With the profiler on, before they take turns.
_MOST_RUNS = 400  # With the profiler on.


@said_of_the_file
def profile(
    artefacts: Sequence[str | Path] | str | Path,
    *,
    pytorch: bool = False,
    reference: str | None = None,
    weights: str | Path | None = None,
    batch_size: int = 1,
    sizes: Sequence[str] = (),
    seconds: float = 3.0,
    runtime: str | Sequence[str] | None = None,
    device: str | None = None,
    threads: int | None = None,
    seed: int = 0,
    top: int = 20,
) -> ProfileReport:
    """Time each layer of an artefact, by the names of its file and its PyTorch modules.

    Runs with the runtime's profiler on and runs as `bench` makes them take turns, on the same
    seeded noise: what the layers add up to stands beside what the network takes without a profiler.

    Args:
        artefacts: an ``.onnx`` or ``.engine`` file, or two to set side by side.
        pytorch: profile the PyTorch model behind the first as well, module by module.
        reference: that model as a MODEL string, like the next one implying `pytorch`; a factory
            must be named here (`models.recorded`).
        weights: its checkpoint, which must be named here if it has one.
        batch_size: images per run.
        sizes: of free axes, such as ``H=640``, in every file that has them.
        seconds: timed duration of each way to run each artefact.
        runtime: overrides the runtime that follows from the file; of several, each runs the file.
        device: ``cpu`` or ``cuda``.
        threads: CPU threads for runtimes that take a number.
        seed: of inputs, order and bootstrap.
        top: layers to show; all of them are in the result.

    Raises:
        BadInput: a file or option that cannot work, or a batch outside an artefact's range.
        MissingCapability: this machine cannot run an artefact.
    """
    paths = [artefacts] if isinstance(artefacts, str | Path) else list(artefacts)
    _check_options(paths, batch_size, seconds, top)
    sources, _ = list_sources(
        paths,
        pytorch=pytorch or (reference, weights) != (None, None),
        reference=reference,
        weights=weights,
        relative_to=None,
        runtimes=(runtime,) if isinstance(runtime, str) else tuple(runtime or ()),
        device=device,
        threads=threads,
    )
    with ExitStack() as stack:
        contenders = prepare(stack, sources, (batch_size,), sizes, seed)
        timers = [stack.enter_context(open_timer(contender)) for contender in contenders]
        clocks_before = clocks()
        rounds = _measure(contenders, timers, seconds, seed)
        clocks_after = clocks()
        networks = [
            _network(contender, timer, plain, profiled)
            for contender, timer, plain, profiled in zip(
                contenders, timers, rounds[::2], rounds[1::2], strict=True
            )
        ]
    return ProfileReport(
        networks=tuple(_relative(networks, seed)),
        settings={
            "batch": batch_size,
            "seconds": seconds,
            "threads": threads,
            "seed": seed,
            "input": f"noise, seed {seed}",
        },
        environment=environment(),
        clocks_before=clocks_before,
        clocks_after=clocks_after,
        top=top,
    )


def _check_options(paths: Sequence[str | Path], batch: int, seconds: float, top: int) -> None:
    if len(paths) > MOST_ARTEFACTS:
        raise BadInput(
            f"{len(paths)} artefacts cannot be profiled side by side", "name one, or two"
        )
    if batch < 1 or top < 1:
        raise BadInput(f"a batch of {batch} and {top} layers to show", "give 1 or more of each")
    if not (math.isfinite(seconds) and seconds > 0):
        raise BadInput(f"{seconds} seconds cannot be measured", "give a positive duration")


def _measure(
    contenders: Sequence[Contender], timers: Sequence[LayerTimer], seconds: float, seed: int
) -> list[list[Samples]]:
    """Rounds of each contender: as `bench` runs it, then with the profiler on, and so on."""
    with progress() as bar:
        task = bar.add_task("warming up", total=len(contenders))
        executions: list[Execution] = []
        taken: list[float] = []
        for contender, timer in zip(contenders, timers, strict=True):
            executions += [contender.execution, timer.execution]
            taken.append(warm_up(contender.execution, seconds).run_seconds)
            taken.append(float(np.median(timer.execution.measure(_COLD_RUNS))))
            bar.advance(task)
        plans = plan_turns(executions, [1] * len(executions), taken, seconds)
        # Their times are kept, node by node: of a quick network they would fill the memory.
        plans[1::2] = [
            replace(plan, runs=min(plan.runs, math.ceil(_MOST_RUNS / plan.rounds)))
            for plan in plans[1::2]
        ]
        task = bar.add_task("profiling", total=sum(plan.rounds for plan in plans))
        return measure_in_rounds(plans, seed, lambda: bar.advance(task))


def _network(
    contender: Contender,
    timer: LayerTimer,
    plain: Sequence[Samples],
    profiled: Sequence[Samples],
) -> NetworkProfile:
    file, source = contender.file, contender.source
    origins = Origins(file.model) if isinstance(file, OnnxFile) else None
    module = isinstance(source, PyTorchSource)
    return NetworkProfile(
        artefact=source.name,
        runtime=contender.runner.name,
        batch=contender.batch,
        sha256=source.sha256,
        precision="fp32" if module else file.precision,
        layers=layers_of(timer.kernels(), None if module else origins),
        run_seconds=quantile(np.concatenate(plain), 0.5),
        profiled_seconds=quantile(np.concatenate(profiled), 0.5),
        round_seconds=tuple(float(np.median(durations)) for durations in plain),
    )


def _relative(networks: Sequence[NetworkProfile], seed: int) -> list[NetworkProfile]:
    """The networks, all but the first with their time relative to it."""
    first = np.array(networks[0].round_seconds)
    return [
        network
        if network is networks[0]
        else replace(network, relative=paired_ratio(np.array(network.round_seconds), first, seed))
        for network in networks
    ]
