import math

import numpy as np
import pytest

from cbam_deploy.benchmarking.warm_up import (
    MIN_CHUNKS,
    MIN_SECONDS,
    TOLERANCE,
    runs_within,
    settled,
    warm_up,
)


def test_constant_durations_are_settled_once_there_are_enough():
    assert not settled([1.0] * (MIN_CHUNKS - 1))
    assert settled([1.0] * MIN_CHUNKS)


@pytest.mark.parametrize("growth", [0.97, 0.995, 1.005, 1.03])
def test_a_steady_trend_up_or_down_is_never_settled(growth):
    series = [growth**chunk for chunk in range(300)]
    assert not any(settled(series[:count]) for count in range(25, 300))


def test_one_disturbed_chunk_does_not_matter():
    for place in range(9):
        series = [1.0] * 9
        series[place] = 5.0
        assert settled(series)


def test_noise_settles():
    random = np.random.default_rng(0)
    tries = [list(np.exp(random.normal(0, 0.02, 30))) for _ in range(200)]
    assert sum(settled(series) for series in tries) > 190


@pytest.mark.parametrize("pace_seconds", [0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("start", [0.5, 1.5, 4.0])
def test_warm_up_lasts_until_durations_are_final(machine_of, pace_seconds, start):
    """From `start` times their final size, durations approach it exponentially."""
    machine = machine_of(lambda now: 1 + (start - 1) * math.exp(-now / pace_seconds))
    ended = warm_up(machine.execution(0.002), limit_seconds=60.0)
    assert ended.settled
    assert ended.run_seconds == pytest.approx(0.002, rel=TOLERANCE)
    assert machine.now < MIN_SECONDS + 12 * pace_seconds


def test_warm_up_gives_up_at_its_limit_and_says_so(machine_of):
    machine = machine_of(lambda now: 1 + now)
    ended = warm_up(machine.execution(0.002), limit_seconds=1.0)
    assert not ended.settled
    assert 1.0 <= machine.now < 1.2


def test_first_run_does_not_count(machine_of):
    machine = machine_of(lambda now: 1.0 if now else 1000.0)
    assert warm_up(machine.execution(0.002), limit_seconds=60.0).run_seconds == 0.002


def test_slow_networks_get_few_runs_and_fast_ones_many():
    assert runs_within(0.02, 1.0) == 1
    assert runs_within(0.02, 0.001) == 20
    assert runs_within(0.02, 0.0) == 1_000_000
