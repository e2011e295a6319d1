"""What kernels take in a run, from many runs on a machine that others use too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def typical(seconds: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """What each kernel takes of the median run: shape [kernels], of `seconds` [kernels, runs].

    Whoever interrupts a run hits one kernel of it, so their shares follow from the middle half of
    the runs of each kernel by itself, in the mean: clocks of whole microseconds are too coarse for
    medians. All of them are scaled by one factor, so that they add up to the median run.
    """
    taken = np.array(seconds)
    quarter = taken.shape[1] // 4
    middle = np.sort(taken, axis=1)[:, quarter : taken.shape[1] - quarter].mean(axis=1)
    median = np.median(taken.sum(axis=0))
    return np.asarray(middle * (median / middle.sum()) if middle.any() else middle)
