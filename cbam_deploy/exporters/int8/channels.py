"""Channels of activations that never change on the calibration pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NAMED = 5  # Tensors, and channels of each, that a report names.


@dataclass(frozen=True)
class IdleChannels:
    """Channels of one activation, by their index.

    Attributes:
        dead: zero everywhere, as behind a ReLU that lets nothing pass.
        constant: of another value, the same everywhere.
    """

    dead: tuple[int, ...] = ()
    constant: tuple[int, ...] = ()


class ChannelExtremes:
    """The least and the greatest value of each channel, over batches [N, C, ...]."""

    def __init__(self) -> None:
        self._low: NDArray[Any] | None = None
        self._high: NDArray[Any] | None = None

    def add(self, values: NDArray[Any]) -> None:
        """Take note of `values`; those without an axis for channels are left out."""
        if values.ndim < 2:
            return
        axes = (0, *range(2, values.ndim))
        low, high = values.min(axis=axes), values.max(axis=axes)
        self._low = low if self._low is None else np.minimum(self._low, low)
        self._high = high if self._high is None else np.maximum(self._high, high)

    def idle(self) -> IdleChannels:
        """The channels that never changed."""
        if self._low is None or self._high is None:
            return IdleChannels()
        same = self._low == self._high
        dead, constant = (
            np.flatnonzero(same & (self._low == 0)),
            np.flatnonzero(same & (self._low != 0)),
        )
        return IdleChannels(tuple(map(int, dead)), tuple(map(int, constant)))


def named(channels: Mapping[str, tuple[int, ...]]) -> str:
    """Tensors and their channels in words, no more than a few; empty without any."""
    known = {tensor: found for tensor, found in channels.items() if found}
    words = [
        f"{tensor}: {', '.join(map(str, found[:_NAMED]))}"
        + (f" and {len(found) - _NAMED} more" if len(found) > _NAMED else "")
        for tensor, found in list(known.items())[:_NAMED]
    ]
    more = f"; {len(known) - _NAMED} more tensors" if len(known) > _NAMED else ""
    total = sum(map(len, known.values()))
    return f"{total} ({'; '.join(words)}{more})" if known else ""
