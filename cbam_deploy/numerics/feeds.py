"""Checking what a caller feeds to a network, the same way for every runtime."""

from __future__ import annotations

from collections.abc import Mapping

from cbam_deploy.errors import BadInput
from cbam_deploy.numerics.tensors import Arrays, TensorSpec


def check_feeds(
    feeds: Arrays, inputs: tuple[TensorSpec, ...], batch_range: tuple[int, int | None]
) -> None:
    """Check that `feeds` fit `inputs`.

    Raises:
        BadInput: a name is unknown or missing, a dtype or shape is another, inputs disagree about
            a free size, or the batch lies outside `batch_range`. The message names the input.
    """
    names = {spec.name for spec in inputs}
    for name in feeds:
        if name not in names:
            raise _refusal(name, "the network has no such input", inputs)
    sizes: dict[str, int] = {}
    for spec in inputs:
        if spec.name not in feeds:
            raise _refusal(spec.name, "it is not given", inputs)
        _check_array(feeds[spec.name], spec, sizes, inputs)
    batch = int(feeds[inputs[0].name].shape[0])
    check_batch(batch, batch_range, "the network", "feed another batch, or build for this one")


def check_batch(batch: int, batch_range: tuple[int, int | None], title: str, hint: str) -> None:
    """Raise `BadInput`, with this `hint`, where what is called `title` takes no such batch."""
    low, high = batch_range
    if batch < low or (high is not None and batch > high):
        ends = f"from {low}" if high is None else f"{low} to {high}"
        takes = f"{low} only" if low == high else ends
        raise BadInput(f"{title}: batch {batch} is outside its range ({takes})", hint)


def check_ranges(
    feeds: Arrays, ranges: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
) -> None:
    """Raise `BadInput` where a size lies outside what an engine was built for.

    Args:
        feeds: arrays by input name.
        ranges: smallest and largest shape by input name.
    """
    for name, (low, high) in ranges.items():
        shape = feeds[name].shape
        if not all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True)):
            raise BadInput(
                f"input {name}: its shape {list(shape)} is outside {list(low)} to {list(high)}",
                "feed another size, or build for this one with --size",
            )


def _check_array(
    array: object, spec: TensorSpec, sizes: dict[str, int], inputs: tuple[TensorSpec, ...]
) -> None:
    shape = tuple(getattr(array, "shape", ()))
    dtype = str(getattr(array, "dtype", type(array).__name__))
    if dtype != spec.dtype:
        raise _refusal(spec.name, f"its dtype is {dtype}", inputs)
    if len(shape) != len(spec.shape):
        raise _refusal(spec.name, f"its shape is {list(shape)}", inputs)
    for given, wanted in zip(shape, spec.shape, strict=True):
        size = sizes.setdefault(wanted, given) if isinstance(wanted, str) else wanted
        if given != size:
            raise _refusal(spec.name, f"its shape is {list(shape)}", inputs)


def _refusal(name: str, reason: str, inputs: tuple[TensorSpec, ...]) -> BadInput:
    wanted = "; ".join(f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in inputs)
    return BadInput(f"input {name}: {reason}", f"the network takes {wanted}")
