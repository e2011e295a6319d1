"""Measure contenders in turn, round after round, so that a drifting machine favours none.

In a round every contender of a batch size gets one turn of about `ROUND_SECONDS`, in an order
shuffled anew for each round. A neighbour that wakes up or a clock that falls then slows all of
them alike, and what remains can be seen between rounds and within them (`statistics.py`). Each
turn opens with one run that does not count: it brings back the caches that the contender before
has taken.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from cbam_deploy.benchmarking.statistics import Samples
from cbam_deploy.benchmarking.warm_up import runs_within
from cbam_deploy.runtimes.base import Execution

ROUND_SECONDS = 0.075
MIN_ROUNDS = 10


@dataclass(frozen=True)
class Turns:
    """What one contender does: `runs` timed runs in each of `rounds` rounds."""

    execution: Execution
    runs: int
    rounds: int


def plan_turns(
    executions: Sequence[Execution],
    batches: Sequence[int],
    run_seconds: Sequence[float],
    seconds: float,
) -> list[Turns]:
    """Give each execution about `seconds` of timed runs, in at least `MIN_ROUNDS` rounds.

    Executions of the same batch size take part in the same rounds, with turns of about the same
    length: `ROUND_SECONDS`, or one run of the slowest where that takes longer.

    Args:
        executions: what to measure.
        batches: batch size of each.
        run_seconds: duration of one run of each, as found by the warm-up.
        seconds: timed duration wanted for each.
    """
    plans = []
    for execution, batch, duration in zip(executions, batches, run_seconds, strict=True):
        slowest = max(t for t, b in zip(run_seconds, batches, strict=True) if b == batch)
        turn_seconds = max(ROUND_SECONDS, slowest)
        rounds = max(MIN_ROUNDS, math.ceil(seconds / turn_seconds))
        plans.append(Turns(execution, runs_within(turn_seconds, duration), rounds))
    return plans


def measure_in_rounds(
    plans: Sequence[Turns], seed: int, turn_done: Callable[[], object] = lambda: None
) -> list[list[Samples]]:
    """Take all turns; return for each plan, round by round, the durations of its runs in seconds.

    Plans with fewer rounds than the longest sit out some, evenly spread over the whole time; plans
    with equally many rounds always meet in the same ones.

    Args:
        plans: what to measure.
        seed: of the order within each round.
        turn_done: called after each turn.
    """
    random = np.random.default_rng(seed)
    durations: list[list[Samples]] = [[] for _ in plans]
    total = max(plan.rounds for plan in plans)
    with _no_garbage_collection():
        for current in range(total):
            for index in random.permutation(len(plans)):
                plan = plans[index]
                if _takes_part(plan.rounds, current, total):
                    durations[index].append(plan.execution.measure(1 + plan.runs)[1:])
                    turn_done()
    return durations


def _takes_part(rounds: int, current: int, total: int) -> bool:
    return (current + 1) * rounds // total > current * rounds // total


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keep the collector from running within a turn, as `timeit` does."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
