"""How far one tensor lies from its reference, accumulated batch by batch in float64.

With r the reference, a the artefact's tensor and e = a - r, over all finite elements added:

- maximum absolute error: max |e|
- maximum relative error: max |e| / max |r|. Relative to the largest reference value, not element
  by element: an element near zero is a difference of large terms, so its own relative error says
  nothing about the computation that made it.
- cosine: r.a / (|r| |a|)
- signal-to-noise ratio: 10 log10(sum r^2 / sum e^2), in dB
- top-1 agreement, for tensors [N, classes]: share of rows with the same largest element
- channel signal-to-noise ratio: the least one of a channel by itself (`numerics.channels`)

Elements that are NaN or infinite on either side are counted and left out of the other figures;
in a row with such an element, top-1 does not agree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbam_deploy.numerics.channels import ChannelNoise, ChannelSums, WorstChannel, channel_sums


@dataclass(frozen=True)
class TensorError:
    """The error of one tensor against its reference; the module's docstring defines the figures.

    Attributes:
        name: the tensor's name in the artefact.
        elements: number of elements compared, over all batches.
        reference_max: max |r|.
        max_abs: maximum absolute error, in the tensor's own unit.
        max_relative: maximum absolute error over `reference_max`; infinite where only r is zero.
        cosine: 1 where both are zero, 0 where one is.
        snr_db: infinite where there is no error at all, minus infinity where only r is zero.
        top1_agreement: between 0 and 1; None for tensors that are not [N, classes].
        nonfinite: NaN and infinite elements of the artefact's tensor.
        reference_nonfinite: NaN and infinite elements of the reference.
        channel_snr_db: signal-to-noise ratio of the worst channel, minus infinity where r is zero
            there; None where no channel has more noise than expected, or none was asked for.
        channel: which one that is.
    """

    name: str
    elements: int
    reference_max: float
    max_abs: float
    max_relative: float
    cosine: float
    snr_db: float
    top1_agreement: float | None
    nonfinite: int
    reference_nonfinite: int
    channel_snr_db: float | None = None
    channel: str | None = None


class ErrorAccumulator:
    """Adds up the error of one tensor over any number of batches; keeps sums, never the tensors."""

    def __init__(self, name: str, channels: ChannelNoise | None = None) -> None:
        """Begin with no elements.

        Args:
            name: the tensor's name.
            channels: noise to expect in any channel; None leaves channels out.
        """
        self.name = name
        self._channel_noise = channels
        self._channels: list[ChannelSums] | None = None
        self._elements = 0
        self._reference_max = 0.0
        self._max_abs = 0.0
        self._reference_squares = 0.0
        self._actual_squares = 0.0
        self._products = 0.0
        self._error_squares = 0.0
        self._rows = 0
        self._rows_agreeing = 0
        self._nonfinite = 0
        self._reference_nonfinite = 0

    def add(self, reference: NDArray[Any], actual: NDArray[Any]) -> None:
        """Add one batch.

        Args:
            reference: any shape, any real dtype.
            actual: of the same shape.

        Raises:
            ValueError: the shapes differ.
        """
        if reference.shape != actual.shape:
            raise ValueError(f"{self.name}: {actual.shape} against reference {reference.shape}")
        r, a = reference.astype(np.float64), actual.astype(np.float64)
        r_finite, a_finite = np.isfinite(r), np.isfinite(a)
        finite = r_finite & a_finite
        self._elements += r.size
        self._reference_nonfinite += int(r.size - np.count_nonzero(r_finite))
        self._nonfinite += int(a.size - np.count_nonzero(a_finite))
        if r.ndim == 2 and r.shape[1] > 1:
            agreeing = (r.argmax(axis=1) == a.argmax(axis=1)) & finite.all(axis=1)
            self._rows += len(agreeing)
            self._rows_agreeing += int(np.count_nonzero(agreeing))
        if self._channel_noise is not None and r.size:
            self._add_channels(reference, np.where(finite, r, 0), np.where(finite, a - r, 0))
        if finite.all():
            self._add_finite(r.ravel(), a.ravel())
        elif finite.any():
            self._add_finite(r[finite], a[finite])

    def _add_channels(
        self, reference: NDArray[Any], r: NDArray[np.float64], e: NDArray[np.float64]
    ) -> None:
        if self._channels is None:
            self._channels = channel_sums(reference)
        # A size that depends on the data is no number of channels.
        self._channels = [
            sums
            for sums in self._channels
            if sums.axis < r.ndim and r.shape[sums.axis] == sums.size
        ]
        for sums in self._channels:
            sums.add(r, e)

    def _add_finite(self, r: NDArray[np.float64], a: NDArray[np.float64]) -> None:
        self._reference_squares += float(r @ r)
        self._actual_squares += float(a @ a)
        self._products += float(r @ a)
        self._reference_max = max(self._reference_max, _max_abs(r))
        e = np.subtract(a, r, out=a)
        self._error_squares += float(e @ e)
        self._max_abs = max(self._max_abs, _max_abs(e))

    def result(self) -> TensorError:
        """The error over everything added so far."""
        channel = self._worst_channel()
        return TensorError(
            name=self.name,
            elements=self._elements,
            reference_max=self._reference_max,
            max_abs=self._max_abs,
            max_relative=_ratio(self._max_abs, self._reference_max),
            cosine=self._cosine(),
            snr_db=self._snr_db(),
            top1_agreement=self._rows_agreeing / self._rows if self._rows else None,
            nonfinite=self._nonfinite,
            reference_nonfinite=self._reference_nonfinite,
            channel_snr_db=channel.snr_db if channel else None,
            channel=channel.name if channel else None,
        )

    def _worst_channel(self) -> WorstChannel | None:
        if self._channel_noise is None:
            return None
        worst = [sums.worst(self._channel_noise) for sums in self._channels or ()]
        return min((w for w in worst if w is not None), key=lambda w: w.snr_db, default=None)

    def _cosine(self) -> float:
        # Two roots, not the root of the product, which would underflow for tiny tensors.
        norms = math.sqrt(self._reference_squares) * math.sqrt(self._actual_squares)
        if norms == 0:
            return 1.0 if self._reference_squares == self._actual_squares else 0.0
        return min(1.0, max(-1.0, self._products / norms))

    def _snr_db(self) -> float:
        if self._error_squares == 0:
            return math.inf
        if self._reference_squares == 0:
            return -math.inf
        return 10 * (math.log10(self._reference_squares) - math.log10(self._error_squares))


def tensor_error(
    name: str,
    reference: NDArray[Any],
    actual: NDArray[Any],
    channels: ChannelNoise | None = None,
) -> TensorError:
    """The error of one tensor that comes in one piece; arguments as of `ErrorAccumulator`."""
    accumulator = ErrorAccumulator(name, channels)
    accumulator.add(reference, actual)
    return accumulator.result()


def _max_abs(values: NDArray[np.float64]) -> float:
    return max(float(values.max()), -float(values.min())) if values.size else 0.0


def _ratio(error: float, reference: float) -> float:
    if error == 0:
        return 0.0
    return error / reference if reference else math.inf
