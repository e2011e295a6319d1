"""Tensors by name: what a network takes and gives, and the arrays it is fed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[np.generic]]
Feeds = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape (a string where the size is free, such as ``batch``) and numpy dtype name."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str


def batch_range(inputs: Sequence[TensorSpec]) -> tuple[int, int | None]:
    """Smallest and largest batch that the first of `inputs` allows; None for no upper end."""
    size = inputs[0].shape[0] if inputs and inputs[0].shape else ""
    return (1, None) if isinstance(size, str) else (size, size)
