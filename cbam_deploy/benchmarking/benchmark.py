"""Measure artefacts side by side: the function behind ``cbam-deploy bench``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cbam_deploy.artefacts import Artefact, open_artefacts
from cbam_deploy.benchmarking import memory
from cbam_deploy.benchmarking.comparison import (
    check_baseline,
    compare_with_baseline,
    compare_with_report,
)
from cbam_deploy.benchmarking.interleaving import measure_in_rounds, plan_turns
from cbam_deploy.benchmarking.result import BenchReport, Entry, read_report
from cbam_deploy.benchmarking.sources import PyTorchSource, Source, list_sources
from cbam_deploy.benchmarking.statistics import Samples, paired_ratio, quantile, throughput
from cbam_deploy.benchmarking.warm_up import WarmUp, warm_up
from cbam_deploy.errors import BadInput
from cbam_deploy.library_errors import said_of_the_file
from cbam_deploy.numerics.tensors import Arrays
from cbam_deploy.progress import progress
from cbam_deploy.runtimes.base import Execution, Runner

MAX_SLOWDOWN = 0.05  # What counts as slower than an earlier report.


@dataclass(frozen=True)
class Contender:
    """One source at one batch size, ready to run.

    Attributes:
        source: what is measured.
        batch: images per run.
        file: the artefact, opened; of a PyTorch model that which it was made from.
        runner: active.
        feeds: what it is run on.
        execution: runs it.
    """

    source: Source
    batch: int
    file: Artefact
    runner: Runner
    feeds: Arrays
    execution: Execution


@said_of_the_file
def bench(
    artefacts: str | Path | Sequence[str | Path],
    *,
    pytorch: bool = False,
    reference: str | None = None,
    weights: str | Path | None = None,
    batch_sizes: Sequence[int] = (1, 8),
    sizes: Sequence[str] = (),
    seconds: float = 3.0,
    relative_to: str | Path | None = None,
    against: str | Path | None = None,
    max_slowdown: float | None = None,
    runtime: str | Sequence[str] | None = None,
    device: str | None = None,
    threads: int | None = None,
    seed: int = 0,
) -> BenchReport:
    """Measure latency, throughput and memory of artefacts side by side, interleaved in rounds.

    Every artefact is run at every batch size on the same seeded noise, that of `validate`. After a
    warm-up until durations settle (`warm_up`), contenders take short turns in shuffled order
    (`rounds`); intervals are bootstrapped over rounds (`statistics`).

    Args:
        artefacts: one ``.onnx`` or ``.engine`` file, or several.
        pytorch: measure the PyTorch model behind the first artefact as well.
        reference: that model as a MODEL string, like the next one implying `pytorch`; a factory
            must be named here (`models.recorded`).
        weights: its checkpoint, which must be named here if it has one.
        batch_sizes: batch sizes, in images.
        sizes: of free axes, such as ``H=640``, in every file that has them.
        seconds: timed duration per artefact and batch size; slow ones take longer, for there are
            never fewer than ten rounds.
        relative_to: a baseline artefact, or ``"pytorch"``, measured in the same rounds; in the
            first of several runtimes.
        against: JSON of an earlier report to compare with (`comparison`).
        max_slowdown: fails the report when an entry is slower by more, beyond doubt: than in
            `against`, or without that than the baseline. None is 0.05, so 5%, for `against`, and no
            bound for a baseline, which may be another network.
        runtime: overrides the runtime that follows from the file. Of several, each file is measured
            in all that run it, in this order.
        device: ``cpu`` or ``cuda``.
        threads: CPU threads for runtimes that take a number.
        seed: of inputs, order and bootstrap.

    Raises:
        BadInput: a file or option that cannot work, or a batch outside an artefact's range.
        MissingCapability: this machine cannot run an artefact.
    """
    from cbam_deploy.machine import clocks, environment

    _check_options(batch_sizes, seconds, max_slowdown, against, relative_to)
    earlier = None if against is None else read_report(against)
    sources, baseline = list_sources(
        [artefacts] if isinstance(artefacts, str | Path) else list(artefacts),
        pytorch=pytorch or (reference, weights) != (None, None),
        reference=reference,
        weights=weights,
        relative_to=relative_to,
        runtimes=(runtime,) if isinstance(runtime, str) else tuple(runtime or ()),
        device=device,
        threads=threads,
    )
    if earlier is not None and against is not None:
        check_baseline(baseline, earlier, against)
    with ExitStack() as stack:
        contenders = prepare(stack, sources, batch_sizes, sizes, seed)
        clocks_before = clocks()
        warm, rounds = _measure(contenders, seconds, seed)
        clocks_after = clocks()
        device_bytes = [contender.execution.peak_memory_bytes() for contender in contenders]
    entries = _summarize(contenders, warm, rounds, seed)
    entries = _with_memory(entries, contenders, device_bytes, seed)
    report = BenchReport(
        entries=tuple(_relative(entries, baseline, seed)),
        settings={
            "batches": list(batch_sizes),
            **({"sizes": list(sizes)} if sizes else {}),
            "seconds": seconds,
            "threads": threads,
            "seed": seed,
            "input": f"noise, seed {seed}",
        },
        environment=environment(),
        clocks_before=clocks_before,
        clocks_after=clocks_after,
        relative_to=baseline,
        notes=tuple(
            f"{entry.label}: durations had not settled when measuring began"
            for entry in entries
            if not entry.settled
        ),
    )
    if earlier is not None and against is not None:
        bound = MAX_SLOWDOWN if max_slowdown is None else max_slowdown
        comparison = compare_with_report(report, earlier, against, bound, seed)
        return replace(report, comparison=comparison)
    if baseline is not None and max_slowdown is not None:
        return replace(report, comparison=compare_with_baseline(report, max_slowdown))
    return report


def _check_options(
    batch_sizes: Sequence[int],
    seconds: float,
    max_slowdown: float | None,
    against: str | Path | None,
    relative_to: str | Path | None,
) -> None:
    if not batch_sizes or min(batch_sizes) < 1 or len(set(batch_sizes)) != len(batch_sizes):
        raise BadInput(
            f"batch sizes {', '.join(map(str, batch_sizes)) or 'none'} cannot be measured",
            "give each batch size once, all of them 1 or more",
        )
    if not (math.isfinite(seconds) and seconds > 0):
        raise BadInput(f"{seconds} seconds cannot be measured", "give a positive duration")
    if max_slowdown is None:
        return
    if not (math.isfinite(max_slowdown) and max_slowdown >= 0):
        raise BadInput(f"a maximum slowdown of {max_slowdown}", "give one of 0 or more, such as 5%")
    if against is None and relative_to is None:
        raise BadInput(
            "a maximum slowdown is given and nothing to compare with",
            "add --against OLD.json or --relative-to BASE.onnx",
        )


def prepare(
    stack: ExitStack,
    sources: Sequence[Source],
    batch_sizes: Sequence[int],
    sizes: Sequence[str],
    seed: int,
) -> list[Contender]:
    """Open `sources`, until `stack` is left; raises like `bench`."""
    contenders = []
    paths = list(dict.fromkeys(source.artefact for source in sources))
    files = dict(zip(paths, open_artefacts(paths, sizes), strict=True))
    opened: dict[str, tuple[Runner, Arrays]] = {}
    for listed in sources:
        file = files[listed.artefact]
        source = listed.described_by(file)
        if isinstance(source, PyTorchSource):
            source = source.like(*opened[source.artefact])
        runner = source.open(file)
        # An engine's manifest tells its range, so a wrong batch is refused before a GPU is needed.
        if hasattr(runner, "inputs"):
            source.check_batches(runner, batch_sizes)
        stack.enter_context(runner)
        source.check_batches(runner, batch_sizes)
        for batch in batch_sizes:
            feeds = source.feeds(runner, batch, seed)
            execution = runner.prepare(feeds)
            contenders.append(Contender(source, batch, file, runner, feeds, execution))
        opened[source.artefact] = runner, feeds
    return contenders


def _measure(
    contenders: Sequence[Contender], seconds: float, seed: int
) -> tuple[list[WarmUp], list[list[Samples]]]:
    with progress() as bar:
        task = bar.add_task("warming up", total=len(contenders))
        warm = []
        for contender in contenders:
            warm.append(warm_up(contender.execution, seconds))
            bar.advance(task)
        plans = plan_turns(
            [contender.execution for contender in contenders],
            [contender.batch for contender in contenders],
            [state.run_seconds for state in warm],
            seconds,
        )
        task = bar.add_task("measuring", total=sum(plan.rounds for plan in plans))
        return warm, measure_in_rounds(plans, seed, lambda: bar.advance(task))


def _summarize(
    contenders: Sequence[Contender],
    warm: Sequence[WarmUp],
    rounds: Sequence[list[Samples]],
    seed: int,
) -> list[Entry]:
    entries = []
    for contender, state, durations in zip(contenders, warm, rounds, strict=True):
        runs = np.concatenate(durations)
        entries.append(
            Entry(
                artefact=contender.source.name,
                runtime=contender.runner.name,
                batch=contender.batch,
                sha256=contender.source.sha256,
                runs=len(runs),
                round_seconds=tuple(float(np.median(round_)) for round_ in durations),
                median_seconds=quantile(runs, 0.5),
                p90_seconds=quantile(runs, 0.9),
                p95_seconds=quantile(runs, 0.95),
                p99_seconds=quantile(runs, 0.99),
                images_per_second=throughput(contender.batch, durations, seed),
                settled=state.settled,
            )
        )
    return entries


def _with_memory(
    entries: Sequence[Entry],
    contenders: Sequence[Contender],
    device_bytes: Sequence[int | None],
    seed: int,
) -> list[Entry]:
    measured = []
    with progress() as bar:
        task = bar.add_task("measuring memory", total=len(contenders))
        for entry, contender, known in zip(entries, contenders, device_bytes, strict=True):
            if known is not None:
                entry = replace(entry, peak_memory_bytes=known, peak_memory_of="device")
            elif memory.applies_to(entry.runtime):
                grown = memory.process_growth_bytes(contender.source, contender.batch, seed)
                if grown is not None:
                    entry = replace(entry, peak_memory_bytes=grown, peak_memory_of="process")
            measured.append(entry)
            bar.advance(task)
    return measured


def _relative(entries: Sequence[Entry], baseline: str | None, seed: int) -> list[Entry]:
    against: dict[int, Entry] = {}
    for entry in entries:
        if entry.artefact == baseline:
            against.setdefault(entry.batch, entry)
    return [
        entry
        if against.get(entry.batch) in (None, entry)
        else replace(
            entry,
            relative=paired_ratio(
                np.array(entry.round_seconds),
                np.array(against[entry.batch].round_seconds),
                seed,
            ),
        )
        for entry in entries
    ]
