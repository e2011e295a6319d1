"""Which range each tensor of a network covers on real pictures: what INT8 scales are made from.

Three methods, by what they take as the largest magnitude t of a tensor (its scale is t / 127):

- ``minmax``: the largest magnitude seen. Nothing is clipped.
- ``percentile``: what 99.99% of the magnitudes stay below. The default: it clips single outliers
  only, and was never far from the best (``benchmarks/results``).
- ``entropy``: the t whose 128 levels keep most of the distribution, by the Kullback-Leibler
  divergence between the values clipped at t and the same in 128 levels (S. Migacz, "8-bit
  Inference with TensorRT", GTC 2017).

Memory does not grow with the number of pictures. It is bounded by the network, the watched tensors
of `CHUNK` pictures or one fixed batch, and `BINS` counters of 8 bytes for each watched tensor. That
is why ``onnxruntime.quantization.calibrate`` is not used: it keeps the tensors of every picture it
is given at once, its histograms get more bins whenever a picture exceeds the range so far, and with
its 128 bins the search for an entropy threshold has one candidate.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from cbam_deploy.data.network_input import network_feeds
from cbam_deploy.errors import BadInput
from cbam_deploy.exporters.int8.channels import ChannelExtremes, IdleChannels
from cbam_deploy.graphs.session import open_session
from cbam_deploy.graphs.signature import specs_of
from cbam_deploy.numerics.feeds import check_feeds
from cbam_deploy.numerics.tensors import Feeds, TensorSpec
from cbam_deploy.progress import progress

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

    from cbam_deploy.data.source import ImageSource

Method = Literal["minmax", "entropy", "percentile"]
# A batch as the network takes it: of its only input, or by the names of several.
Images = NDArray[Any] | Mapping[str, NDArray[Any]]

_TYPES = ("float32", "uint8", "int8", "uint16", "int16", "uint32", "int32", "int64", "bool")

# Pictures that go through the network together: they bound the memory, and change no result.
CHUNK = 4
# Counters of a histogram; between half of them and all are below the largest magnitude seen.
BINS = 2048
# Levels of a magnitude in INT8: 0 to 127.
LEVELS = 128
# Candidates for an entropy threshold lie that many bins apart, below 1% of the range.
CANDIDATE_STEP = 16
PERCENTILE = 99.99
# What an empty level counts, so that clipping values into it costs much but not everything.
TRACE = 1e-4


@dataclass(frozen=True)
class Calibration:
    """The ranges found.

    Attributes:
        method: ``minmax``, ``entropy`` or ``percentile``; ``trained`` where training with fake
            quantization found them.
        images: number of pictures they were found on; 0 for trained ones.
        ranges: least and greatest value by tensor; clipped to the threshold of the method.
        idle: channels that never changed, by tensor that has any.
    """

    method: Method | Literal["trained"]
    images: int
    ranges: Mapping[str, tuple[float, float]] = field(repr=False)
    idle: Mapping[str, IdleChannels] = field(default_factory=dict, repr=False)

    def magnitude(self, tensor: str) -> float:
        """The largest magnitude that `tensor` keeps."""
        low, high = self.ranges[tensor]
        return max(-low, high, 0.0)


class Extremes:
    """The least and the greatest value of one tensor, which it is shown piece by piece."""

    def __init__(self) -> None:
        self._low, self._high = np.inf, -np.inf

    def add(self, values: NDArray[np.float32]) -> None:
        """Take note of `values`, of any shape."""
        self._low = min(self._low, float(values.min()))
        self._high = max(self._high, float(values.max()))

    def range(self) -> tuple[float, float]:
        """Least and greatest value to keep."""
        return self._low, self._high


class Magnitudes(Extremes):
    """Counts magnitudes in `BINS` equal bins, and clips where a method says.

    A value above the last bin doubles the width of the bins as often as needed and adds up their
    counts in groups, so the number of bins never grows.
    """

    def __init__(self, method: Method) -> None:
        super().__init__()
        self._method = method
        self._counts = np.zeros(BINS, np.int64)
        self._limit = 0.0

    def add(self, values: NDArray[np.float32]) -> None:
        """Count `values`."""
        super().add(values)
        self._widen(max(-self._low, self._high))
        if self._limit == 0:
            self._counts[0] += values.size
            return
        flat = values.reshape(-1)
        for start in range(0, flat.size, 1 << 16):
            magnitudes = np.abs(flat[start : start + (1 << 16)])
            magnitudes *= BINS / self._limit
            bins = np.minimum(magnitudes.astype(np.intp), BINS - 1)
            self._counts += np.bincount(bins, minlength=BINS)

    def _widen(self, largest: float) -> None:
        if largest <= self._limit or not np.isfinite(largest):
            return
        if self._limit == 0:
            self._limit = largest
            return
        doublings = int(np.ceil(np.log2(largest / self._limit)))
        group = min(2**doublings, BINS)
        merged = self._counts.reshape(-1, group).sum(axis=1)
        self._counts = np.pad(merged, (0, BINS - merged.size))
        self._limit *= 2.0**doublings

    def range(self) -> tuple[float, float]:
        """The values seen, clipped at the method's threshold on both sides."""
        find = entropy_threshold if self._method == "entropy" else percentile_threshold
        threshold = find(self._counts) * self._limit / BINS
        return max(self._low, -threshold), min(self._high, threshold)


def percentile_threshold(counts: NDArray[np.int64]) -> int:
    """The number of bins, from zero on, that hold `PERCENTILE` percent of the values."""
    share = np.cumsum(counts) / counts.sum()
    return int(np.searchsorted(share, PERCENTILE / 100)) + 1


def entropy_threshold(counts: NDArray[np.int64]) -> int:
    """The number of bins, from zero on, whose 128 levels lose the least information.

    The bin of zero is left out (it counts like the one above it): INT8 has an exact zero, and half
    the values behind a ReLU are zero, which would outweigh how well the others are kept.
    """
    counts = counts.copy()
    counts[0] = counts[1]
    occupied = np.flatnonzero(counts)
    if occupied.size == 0 or occupied[-1] < LEVELS:
        return BINS
    used = int(occupied[-1]) + 1
    candidates = [*range(LEVELS, used, CANDIDATE_STEP), used]
    losses = [_divergence(counts, bins) for bins in candidates]
    return int(candidates[int(np.argmin(losses))])


def _divergence(counts: NDArray[np.int64], bins: int) -> float:
    """KL divergence between the values clipped into `bins` bins, and the same in 128 levels."""
    kept = counts[:bins]
    clipped = kept.astype(np.float64)
    clipped[-1] += counts[bins:].sum()
    present = clipped > 0
    level = np.arange(bins) * LEVELS // bins
    totals = np.bincount(level, weights=kept, minlength=LEVELS)
    sharers = np.bincount(level, weights=present, minlength=LEVELS)
    levelled = np.maximum((totals / np.maximum(sharers, 1))[level], TRACE)
    p = clipped[present] / clipped.sum()
    q = levelled[present] / levelled[present].sum()
    return float(np.sum(p * np.log(p / q)))


def calibration_batches(
    source: ImageSource, inputs: Sequence[TensorSpec], *, images: int, seed: int
) -> Iterator[Feeds]:
    """Samples to calibrate on: drawn from all of `source`, in an order that `seed` fixes.

    They are as `inputs` take them (`data.network_input`).

    Raises:
        BadInput: `images` is not positive, no picture can be read, or `inputs` take something else.
    """
    for batch in source.batches(CHUNK, limit=images, shuffle_seed=seed):
        yield network_feeds(batch.inputs, source, inputs)


def calibrate(
    model: ir.Model,
    tensors: Collection[str],
    batches: Iterable[Images],
    *,
    method: Method = "percentile",
    images: int | None = None,
) -> Calibration:
    """Find the range of each of `tensors` over `batches`, which are gone through once.

    Args:
        model: a float32 network with inputs of float32 or of integers.
        tensors: names of float32 tensors of the graph.
        batches: network inputs [N, ...], in their types.
        method: see the module's docstring.
        images: how many pictures there will be, for the progress bar.

    Raises:
        BadInput: there is no picture, one is of the wrong size, the method is unknown, or the
            network gives NaN or infinite values.
    """
    if method not in ("minmax", "entropy", "percentile"):
        raise BadInput(
            f"calibration method {method!r} is unknown", "use minmax, entropy or percentile"
        )
    observers = {name: Extremes() if method == "minmax" else Magnitudes(method) for name in tensors}
    channels = {name: ChannelExtremes() for name in tensors}
    seen = 0
    with progress() as bar:
        task = bar.add_task(f"calibrating ({method})", total=images)
        for values, count in watch(model, list(observers), batches):
            for name, value in values.items():
                _check_finite(name, value)
                observers[name].add(value)
                channels[name].add(value)
            seen += count
            bar.update(task, completed=seen)
    found = {name: one.idle() for name, one in channels.items()}
    idle = {name: one for name, one in found.items() if one != IdleChannels()}
    return Calibration(method, seen, {name: o.range() for name, o in observers.items()}, idle)


def _check_finite(name: str, values: NDArray[np.float32]) -> None:
    # A sum is NaN or infinite as soon as one element is; it may also overflow by itself.
    if not np.isfinite(values.sum()) and not np.isfinite(values).all():
        raise BadInput(
            f"tensor {name!r} has NaN or infinite values on the calibration pictures",
            "check the weights, and that the pictures are preprocessed as in training",
        )


def watch(
    model: ir.Model, tensors: Sequence[str], batches: Iterable[Images]
) -> Iterator[tuple[dict[str, NDArray[np.float32]], int]]:
    """Run the network; yield the value of each of `tensors`, and the number of pictures in it.

    Raises:
        BadInput: there is no picture, or one is of the wrong size or type.
    """
    inputs = calibration_inputs(model)
    # A graph's input cannot be its output too; what went in is at hand anyway.
    fetched = [name for name in tensors if name not in {spec.name for spec in inputs}]
    session = _session(model, fetched)
    empty = True
    for feeds, count in _groups(batches, inputs):
        empty = False
        # An empty list would fetch everything.
        results = session.run(fetched, feeds) if fetched else []
        found = feeds | dict(zip(fetched, results, strict=True))
        yield {name: found[name] for name in tensors}, count
    if empty:
        raise BadInput("there are no pictures to calibrate on", "give a SOURCE with pictures")


def _groups(
    batches: Iterable[Images], inputs: tuple[TensorSpec, ...]
) -> Iterator[tuple[Feeds, int]]:
    """The samples regrouped, with their number; a last group short of a fixed batch is filled up.

    It is filled with its own samples, which then count more than once.
    """
    batch = inputs[0].shape[0]
    fixed = batch if isinstance(batch, int) else None
    any_batch = tuple(replace(spec, shape=("batch", *spec.shape[1:])) for spec in inputs)
    samples = _samples(batches, any_batch)
    while group := list(itertools.islice(samples, fixed or CHUNK)):
        count = len(group)
        filled = list(itertools.islice(itertools.cycle(group), fixed or count))
        yield {spec.name: np.stack([one[spec.name] for one in filled]) for spec in inputs}, count


def _samples(batches: Iterable[Images], inputs: tuple[TensorSpec, ...]) -> Iterator[Feeds]:
    for images in batches:
        feeds = dict(images) if isinstance(images, Mapping) else {inputs[0].name: images}
        check_feeds(feeds, inputs, (1, None))
        for index in range(len(feeds[inputs[0].name])):
            yield {name: array[index] for name, array in feeds.items()}


def calibration_inputs(model: ir.Model) -> tuple[TensorSpec, ...]:
    """The network's inputs; raises `BadInput` where calibration cannot feed them."""
    inputs = specs_of(model.graph.inputs)
    if not inputs or any(spec.dtype not in _TYPES or not spec.shape for spec in inputs):
        names = ", ".join(f"{spec.name} {spec.dtype}" for spec in inputs) or "none"
        raise BadInput(
            f"the network's inputs are {names}; calibration needs batches of float32 or integers",
            "quantize a network before any other conversion",
        )
    return inputs


def _session(model: ir.Model, fetched: Sequence[str]) -> InferenceSession:
    import onnx

    proto = ir.to_proto(model)
    own = {value.name for value in proto.graph.output}
    proto.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in fetched
        if name not in own
    )
    # The arena would keep the largest size each buffer ever had.
    return open_session(proto.SerializeToString(), "the network", arena=False)
