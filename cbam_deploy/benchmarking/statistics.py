"""Latency quantiles, throughput and speed ratios, with confidence intervals from rounds.

Runs of one round follow each other closely and share its disturbances, so they are not independent
samples; rounds are. Every interval here is therefore a bootstrap over whole rounds: rounds are
drawn with replacement, each with all its runs. Its percentiles are widened for few rounds
(Hesterberg, "What Teachers Should Know about the Bootstrap", 2014, arXiv:1411.5279, section 3.2),
without which a 95% interval of a mean over ten rounds covers the truth only 90% of the time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from cbam_deploy.report.units import Estimate

CONFIDENCE = 0.95
RESAMPLES = 2000

Samples = NDArray[np.float64]


def quantile(samples: Samples, probability: float) -> float:
    """The quantile of `samples`, interpolated linearly between the two neighbouring samples.

    With fewer than 100 runs, p99 lies between the two slowest: read it as "about the slowest".
    """
    return float(np.quantile(samples, probability))


def throughput(batch: int, rounds: list[Samples], seed: int) -> Estimate:
    """Images per second over all runs: images done divided by the seconds they took.

    Args:
        batch: images per run.
        rounds: durations of the runs of each round, in seconds.
        seed: of the bootstrap's draws.
    """
    totals = np.array([(len(runs), runs.sum()) for runs in rounds])

    def images_per_second(drawn: Samples) -> Samples:
        runs, seconds = drawn.sum(axis=1).T
        return np.asarray(batch * runs / seconds)

    return bootstrap(images_per_second, totals, seed=seed)


def paired_ratio(seconds: Samples, baseline_seconds: Samples, seed: int) -> Estimate:
    """How much longer than a baseline, from rounds in which both were measured side by side.

    The ratio is taken within each round, so that a machine that drifts between rounds cancels out;
    the estimate is the median of these ratios: 1.05 means 5% slower than the baseline.

    Args:
        seconds: one duration per round, such as the round's median, shape [rounds].
        baseline_seconds: the baseline's in the same rounds, shape [rounds].
        seed: of the bootstrap's draws.
    """
    return bootstrap(_medians, seconds / baseline_seconds, seed=seed)


def ratio_of_medians(new: Samples, old: Samples, seed: int) -> Estimate:
    """Median of `new` over median of `old`, where their rounds do not belong together.

    Args:
        new: one figure per round of the new run, shape [rounds].
        old: one figure per round of the old run, shape [any].
        seed: of the bootstrap's draws.
    """

    def ratios(drawn_new: Samples, drawn_old: Samples) -> Samples:
        return np.asarray(_medians(drawn_new) / _medians(drawn_old))

    return bootstrap(ratios, new, old, seed=seed)


def bootstrap(statistic: Callable[..., Samples], *samples: Samples, seed: int) -> Estimate:
    """A statistic of `samples` with its widened percentile interval at `CONFIDENCE`.

    Args:
        statistic: takes one array [draws, rounds, ...] for each of `samples` and returns its value
            for each draw, shape [draws].
        samples: arrays [rounds, ...] whose rounds are drawn, independently of the others'.
        seed: of the draws.

    Returns:
        The estimate; with a single round nothing is known about spread and the interval is
        unbounded, [0, inf].
    """
    value = float(statistic(*(sample[np.newaxis] for sample in samples))[0])
    rounds = min(len(sample) for sample in samples)
    if rounds < 2:
        return Estimate(value, 0.0, math.inf)
    random = np.random.default_rng(seed)
    drawn = (
        sample[random.integers(0, len(sample), (RESAMPLES, len(sample)))] for sample in samples
    )
    tail = tail_probability(rounds)
    low, high = np.quantile(statistic(*drawn), [tail, 1 - tail])
    return Estimate(value, float(low), float(high))


def tail_probability(rounds: int) -> float:
    """Mass to cut from each end of the bootstrap distribution of `rounds` >= 2 rounds.

    Less than (1 - CONFIDENCE) / 2, so that for symmetric data the interval of a mean matches
    Student's: z at the returned tail times sqrt((n - 1) / n) equals t with n - 1 degrees of
    freedom.
    """
    normal = NormalDist()
    t = _student_quantile(normal.inv_cdf((1 + CONFIDENCE) / 2), rounds - 1)
    return normal.cdf(-t * math.sqrt(rounds / (rounds - 1)))


def _student_quantile(z: float, freedom: int) -> float:
    """Student's t at the probability of the normal quantile `z`, by its expansion in 1/freedom.

    Source: Abramowitz and Stegun 26.7.5; within 0.1% for 95% intervals from 6 degrees of freedom.
    """
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )


def _medians(samples: Samples) -> Samples:
    return np.asarray(np.median(samples, axis=1))
