"""Tensors by name: what a network takes and gives, and the arrays it is fed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape (a string where the size is free, such as ``batch``) and numpy dtype name."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str
