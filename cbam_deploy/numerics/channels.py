"""The error of each channel of a tensor by itself, so that small channels count beside large ones.

A detector returns boxes (0 to 640) and scores (0 to 1) in one tensor. Over the whole tensor,
scores that are all zero are an error of a thousandth. So each channel's noise is held against the
channel's own signal, where it stands out of the noise that its part of the tensor has in that
precision.

**Channels** are the slices along axis 1 ([N, C, ...]) and along the last axis ([..., C]); a tensor
does not say which it has, so both are looked at. A slice of fewer than `FEWEST` values is none: a
single logit near zero may be all rounding error.

**Parts** are channels of like size. Channels are sorted by their largest |reference|; where one is
`GAP` times larger than the next, another part begins. Ordinary feature maps are a continuum and one
part. A slice of fewer than `FEWEST_IN_PART` values begins none, nor does one of which the
reference is mostly zeros, such as a channel that a ReLU hardly ever lets through: these belong to
the largest part. Where the reference is nothing but zeros, the size is that of the other side, if
that is not mostly zeros and no rounding of a cancellation, 1e-4 of the tensor or less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEWEST = 8
FEWEST_IN_PART = 64
GAP = 30.0
# Share of a channel's values that are not zero, where they are to tell its size.
_FILLED = 0.5
_SMALLEST_ALONE = 1e-4

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class ChannelNoise:
    """Noise that a precision may make in any channel; `numerics.tolerances` derives the numbers.

    Attributes:
        noise: root mean square error over the root mean square of the channel's part.
        smallest: a smaller part than the largest has no bound if its values are all below this.
    """

    noise: float
    smallest: float


@dataclass(frozen=True)
class WorstChannel:
    """The channel of the least signal-to-noise ratio, of those with more than the part's noise."""

    name: str
    snr_db: float


class ChannelSums:
    """Sums over each channel of one axis, over any number of batches."""

    def __init__(self, axis: int, size: int) -> None:
        """Begin at zero.

        Args:
            axis: 1, or -1 for the last.
            size: number of channels.
        """
        self.axis, self.size = axis, size
        self._values = 0
        self._reference, self._error = _Sums(size), _Sums(size)

    def add(self, reference: Floats, error: Floats) -> None:
        """Add one batch, without NaN or infinity, of this axis's size."""
        axes = tuple(axis for axis in range(reference.ndim) if axis != self.axis % reference.ndim)
        self._values += reference.size // self.size
        self._reference.add(np.abs(reference), axes)
        self._error.add(np.abs(error), axes)

    def worst(self, expected: ChannelNoise) -> WorstChannel | None:
        """The worst channel of those with more noise than `expected`; None without any."""
        if self._values < FEWEST:
            return None
        # Sums of squares stand for their means: all channels have equally many values.
        signal, noise = self._reference.squares, self._error.squares
        alone = (
            (self._reference.filled == 0)
            & (self._error.filled >= _FILLED * self._values)
            & (self._error.largest > _SMALLEST_ALONE * self._reference.largest.max())
        )
        sizes = np.where(alone, self._error.largest, self._reference.largest)
        levels = np.where(alone, noise, signal)
        judged = np.zeros(self.size, bool)
        for part in self._parts(sizes, alone):
            largest = sizes[part].max()
            if largest >= min(expected.smallest, sizes.max()):
                level = levels[part & (sizes > 0)].mean()
                judged |= part & (noise > expected.noise**2 * level)
        if not judged.any():
            return None
        with np.errstate(divide="ignore", invalid="ignore"):
            snr = 10 * (np.log10(signal) - np.log10(noise))
        index = int(np.where(judged, snr, np.inf).argmin())
        return WorstChannel(f"channel {index} of axis {self.axis}", float(snr[index]))

    def _parts(self, sizes: Floats, alone: Mask) -> list[Mask]:
        """Each part as a mask over the channels, the largest first; none if all is zero."""
        if not sizes.any():
            return []
        own = alone | (self._reference.filled >= _FILLED * self._values)
        if self._values < FEWEST_IN_PART or not own.any():
            return [np.ones(self.size, bool)]
        order = np.flatnonzero(own)[np.argsort(-sizes[own])]
        gaps = 1 + np.flatnonzero(sizes[order[:-1]] >= GAP * sizes[order[1:]])
        parts = [np.isin(np.arange(self.size), group) for group in np.split(order, gaps)]
        parts[0] |= ~own
        return parts


class _Sums:
    """Of the magnitudes in each channel: how many are not zero, the largest, the squares' sum."""

    def __init__(self, size: int) -> None:
        self.filled, self.largest, self.squares = (np.zeros(size) for _ in range(3))

    def add(self, magnitudes: Floats, axes: tuple[int, ...]) -> None:
        self.filled += np.count_nonzero(magnitudes, axis=axes)
        self.largest = np.maximum(self.largest, magnitudes.max(axis=axes))
        self.squares += np.square(magnitudes).sum(axis=axes)


def channel_sums(reference: NDArray[Any]) -> list[ChannelSums]:
    """For each axis that may hold the channels of tensors of this shape."""
    if reference.ndim < 2 or not np.issubdtype(reference.dtype, np.floating):
        return []
    axes = (1,) if reference.ndim == 2 else (1, -1)
    return [ChannelSums(axis, reference.shape[axis]) for axis in axes if reference.shape[axis] > 1]
