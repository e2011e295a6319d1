"""What a kernel takes in a run, from many runs on a machine that others use too."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def typical(seconds: NDArray[np.float64]) -> float:
    """The mean of the middle half of `seconds`, shape [runs].

    Whoever interrupts a run hits one kernel of it, so each kernel is judged by its own runs. A
    median would do that too, but clocks of whole microseconds are too coarse for it.
    """
    ordered = np.sort(seconds)
    quarter = len(ordered) // 4
    return float(ordered[quarter : len(ordered) - quarter].mean())
