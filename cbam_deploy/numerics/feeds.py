"""Checking what a caller feeds to a network, the same way for every runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbam_deploy.errors import BadInput
from cbam_deploy.numerics.tensors import Arrays, Feeds, TensorSpec


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


def infer_in_range(
    infer: Callable[[Feeds], Arrays], feeds: Feeds, batch_range: tuple[int, int | None], title: str
) -> dict[str, NDArray[Any]]:
    """Outputs [N, ...] for `feeds`, in as many runs as a network's batch range needs.

    Args:
        infer: runs the network called `title`.
        feeds: arrays [N, ...] by input name; where a run takes more they are repeated.
        batch_range: smallest and largest batch, None for no upper end.
        title: for messages.

    Raises:
        BadInput: an output is not [batch, ...].
    """
    count = len(next(iter(feeds.values())))
    smallest, largest = batch_range
    pieces = []
    for start in range(0, count, largest or count):
        given = {name: array[start : start + (largest or count)] for name, array in feeds.items()}
        wanted = len(next(iter(given.values())))
        padded = max(smallest, wanted)
        filled = {
            name: np.take(array, range(padded), axis=0, mode="wrap")
            for name, array in given.items()
        }
        outputs = infer(filled)
        for name, output in outputs.items():
            if output.shape[:1] != (padded,):
                raise BadInput(
                    f"{title}: output {name} is {list(output.shape)} for {padded} pictures",
                    "take networks whose outputs are [batch, ...]",
                )
        pieces.append({name: output[:wanted] for name, output in outputs.items()})
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


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
