"""Which of many runs count."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def middle_runs(totals: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which runs are neither among the quickest nor among the slowest quarter, shape [runs].

    Means over them add up, as medians do not, and a disturbed run does not move them.

    Args:
        totals: duration of each run, shape [runs].
    """
    low, high = np.quantile(totals, [0.25, 0.75])
    return np.asarray((totals >= low) & (totals <= high))
