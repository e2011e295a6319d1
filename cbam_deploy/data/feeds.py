"""What both sides of a comparison are fed: pictures of a SOURCE, or seeded noise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cbam_deploy.data.network_input import is_levels, network_feeds
from cbam_deploy.errors import BadInput
from cbam_deploy.machine import check_memory
from cbam_deploy.numerics.tensors import Feeds, TensorSpec

if TYPE_CHECKING:
    from cbam_deploy.data import ImageSource


@dataclass(frozen=True)
class InputStream:
    """Batches of inputs for one network, the same ones each time they are asked for.

    Attributes:
        specs: inputs of the network.
        source: pictures to take; None for noise.
        seed: of the noise.
        limit: number of pictures, or one batch if that is more. Of noise there is one batch.
        image_size: for axes 2 and 3 of images, where they are free.
        sizes: of free axes, by name.
    """

    specs: Sequence[TensorSpec]
    source: ImageSource | None
    seed: int
    limit: int
    image_size: int | None
    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What the inputs are, for a report."""
        if self.source is None:
            return f"noise, seed {self.seed}"
        if self.source.ready:
            return f"samples of {self.source.name}"
        levels = ", as levels of 0 to 255" if any(is_levels(s.dtype) for s in self.specs) else ""
        return f"pictures of {self.source.name}{levels}"

    def batches(self, size: int) -> Iterator[Feeds]:
        """Batches of `size`; raises `BadInput` like `noise` and `pictures`."""
        if self.source is None:
            yield noise(
                self.specs, size, seed=self.seed, image_size=self.image_size, sizes=self.sizes
            )
        else:
            yield from pictures(self.source, self.specs, size, limit=self.limit)


def default_batches(smallest: int, largest: int | None, opt: int | None = None) -> tuple[int, ...]:
    """Batch sizes that exercise a dynamic batch: both ends, and one between.

    Args:
        smallest: smallest batch the network takes.
        largest: largest one; None for no upper end, which 8 stands for.
        opt: the batch it is optimized for; None for 2, where a mix-up of samples first shows.
    """
    end = max(8, smallest) if largest is None else largest
    middle = min(max(opt or 2, smallest), end)
    return tuple(sorted({smallest, middle, end}))


def noise(
    specs: Sequence[TensorSpec],
    batch: int,
    *,
    seed: int,
    image_size: int | None,
    sizes: Mapping[str, int] | None = None,
) -> Feeds:
    """One batch of standard normal noise, the same for the same seed.

    Pictures in integers (four axes) get the same noise as levels around 128, up to 0 and 255; other
    integer inputs get 0 or 1.

    Every channel of a picture (four axes) is shifted by a standard normal number of its own. White
    noise alone, pooled over its area, is the same for all pictures: it would show a channel gate
    and each of its few hidden units only one point.

    Args:
        specs: inputs of the network.
        batch: size of every free first axis.
        seed: with `batch`, decides the noise.
        image_size: for axes 2 and 3 of images, where they are free and have no size of their own.
        sizes: of free axes, by name.

    Raises:
        BadInput: another axis than the batch is free and nothing says its size.
    """
    generator = np.random.default_rng((seed, batch))
    return {spec.name: _noise(generator, spec, batch, image_size, sizes or {}) for spec in specs}


def _noise(
    generator: np.random.Generator,
    spec: TensorSpec,
    batch: int,
    image_size: int | None,
    sizes: Mapping[str, int],
) -> NDArray[Any]:
    shape = tuple(
        _size(spec, axis, batch=batch, image_size=image_size, sizes=sizes)
        for axis in range(len(spec.shape))
    )
    dtype = np.dtype(spec.dtype)
    check_memory(math.prod(shape) * (8 + dtype.itemsize), f"input {spec.name} {list(shape)}")
    levels = len(shape) == 4 and is_levels(spec.dtype)
    if levels or np.issubdtype(dtype, np.floating):
        values = generator.standard_normal(shape)
        if len(shape) == 4:
            values += generator.standard_normal((*shape[:2], 1, 1))
        if levels:
            values = np.clip(np.rint(128 + 48 * values), 0, 255)
        return values.astype(dtype)
    return generator.integers(0, 2, shape).astype(dtype)


def _size(
    spec: TensorSpec, axis: int, *, batch: int, image_size: int | None, sizes: Mapping[str, int]
) -> int:
    size = spec.shape[axis]
    if isinstance(size, int):
        return size
    if axis == 0:
        return batch
    if size in sizes:
        return sizes[size]
    if image_size is not None and len(spec.shape) == 4 and axis >= 2:
        return image_size
    raise BadInput(
        f"input {spec.name}: axis {axis} ({size}) is free and nothing says its size",
        f"say it: --size {size}=640",
    )


def pictures(
    source: ImageSource, specs: Sequence[TensorSpec], batch: int, *, limit: int
) -> Iterator[Feeds]:
    """The first pictures of `source` in batches of `batch`, as the network takes them.

    A network of integer inputs gets levels of 0 to 255 (`data.network_input`).

    Args:
        source: pictures or tensors.
        specs: inputs of the network.
        batch: size of every batch; the last one is filled by repeating its own samples.
        limit: number of samples, or one batch if that is more.

    Raises:
        BadInput: the network takes something else than `source` gives, or in a type that cannot
            hold it, or no picture can be read.
    """
    for read in source.batches(batch, limit=max(limit, batch)):
        filled = {
            name: np.take(array, range(batch), axis=0, mode="wrap")
            for name, array in read.inputs.items()
        }
        yield network_feeds(filled, source, specs)
