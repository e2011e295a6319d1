"""Are these numbers weights? One judgement of values, wherever a file or a module keeps them."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

# What a tensor must hold, the stricter the later: numbers or infinities, numbers, numbers from 0.
Demand = Literal["no NaN", "finite", "finite, not negative"]
DEMANDS: tuple[Demand, ...] = get_args(Demand)
# Values judged at a time, so that a large tensor costs no memory of its size.
_CHUNK = 1 << 20


def fault(values: NDArray[Any], demand: Demand = "finite") -> str | None:
    """What is wrong with `values`, such as ``1 of 432 values is NaN``; None where nothing is.

    Args:
        values: of any shape and type; what has no floating-point values is never at fault.
        demand: what they must hold.
    """
    if not _is_float(values.dtype):
        return None
    found = {"NaN": 0, "infinite": 0, "negative": 0}
    flat = values.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK]
        finite = np.isfinite(part)
        if not finite.all():
            nan = int(np.isnan(part).sum())
            found["NaN"] += nan
            found["infinite"] += int((~finite).sum()) - nan
        if demand == "finite, not negative":
            found["negative"] += int((part < 0).sum())
    if demand == "no NaN":
        found["infinite"] = 0
    for what, count in found.items():
        if count:
            return f"{count} of {flat.size} values {'is' if count == 1 else 'are'} {what}"
    return None


def _is_float(dtype: np.dtype[Any]) -> bool:
    """Also for the types of ml_dtypes, such as bfloat16, which NumPy does not know as such."""
    return dtype.kind in "fc" or "float" in dtype.name
