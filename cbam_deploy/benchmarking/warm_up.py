"""Run until the durations have settled, so that start-up costs are not measured.

First runs are slower: memory is allocated, kernels are chosen or compiled, caches fill, clocks
rise. Warm-up goes in chunks of about `CHUNK_SECONDS`, for `MIN_SECONDS` at least, and is over when,
of the chunks so far, the median duration of the last third lies within `TOLERANCE` of that of the
middle third. A trend, up or down, keeps it going until it is flat on the scale of the warm-up
itself; noise or a disturbed chunk does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cbam_deploy.runtimes.base import Execution

CHUNK_SECONDS = 0.02
MIN_SECONDS = 0.5
MIN_CHUNKS = 6
TOLERANCE = 0.03


@dataclass(frozen=True)
class WarmUp:
    """How a warm-up ended.

    Attributes:
        run_seconds: median duration of one run at its end.
        settled: whether durations had settled, or the time for it had run out.
    """

    run_seconds: float
    settled: bool


def warm_up(execution: Execution, limit_seconds: float) -> WarmUp:
    """Run `execution` until its durations settle, or for `limit_seconds`.

    At least 1 + `MIN_CHUNKS` runs are made, however long they take: the very first run counts for
    nothing, and fewer could not tell.
    """
    first = float(execution.measure(1)[0])
    chunks: list[float] = []
    run_seconds = first
    spent = first
    while True:
        durations = execution.measure(runs_within(CHUNK_SECONDS, run_seconds))
        run_seconds = float(np.median(durations))
        spent += float(durations.sum())
        chunks.append(run_seconds)
        enough = len(chunks) >= MIN_CHUNKS and spent >= min(MIN_SECONDS, limit_seconds)
        if enough and (settled(chunks) or spent >= limit_seconds):
            return WarmUp(float(np.median(chunks[-(len(chunks) // 3) :])), settled(chunks))


def settled(chunks: Sequence[float]) -> bool:
    """Whether the durations, one per chunk in the order of time, meet the module's criterion."""
    if len(chunks) < MIN_CHUNKS:
        return False
    third = len(chunks) // 3
    middle = float(np.median(chunks[-2 * third : -third]))
    last = float(np.median(chunks[-third:]))
    return abs(last - middle) <= TOLERANCE * middle


def runs_within(seconds: float, run_seconds: float) -> int:
    """How many runs of `run_seconds` fill `seconds`; at least one, at most a million."""
    return max(1, min(1_000_000, round(seconds / max(run_seconds, 1e-9))))
