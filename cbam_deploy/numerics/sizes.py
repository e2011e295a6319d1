"""Sizes of free axes, as ``--size`` says them: ``H=640``, or ``H=320,640,1280`` for a range.

A range is smallest, most frequent and largest; where one size is needed, it is the middle one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

from cbam_deploy.errors import BadInput
from cbam_deploy.numerics.tensors import TensorSpec
from cbam_deploy.provenance import LARGEST

_FORM = re.compile(r"([^=]+)=(\d{1,9})(?:,(\d{1,9}),(\d{1,9}))?")


class SizeRange(NamedTuple):
    """Of one axis."""

    min: int
    opt: int
    max: int


def free_axes(inputs: Sequence[TensorSpec]) -> dict[str, None]:
    """Names of the free axes besides the batch, in order."""
    return {size: None for spec in inputs for size in spec.shape[1:] if isinstance(size, str)}


def parse_sizes(texts: Sequence[str], free: Collection[str], title: str) -> dict[str, SizeRange]:
    """What `texts` say of the axes `free` of what is called `title`.

    Raises:
        BadInput: a text is malformed, names another axis, or one that was given before.
    """
    ranges: dict[str, SizeRange] = {}
    for text in texts:
        found = _FORM.fullmatch(text)
        if found is None:
            raise BadInput(
                f"--size {text}: is not understood", "write it as H=640, or H=320,640,1280"
            )
        axis, only, middle, high = found.groups()
        sizes = SizeRange(int(only), int(middle or only), int(high or only))
        if not 1 <= sizes.min <= sizes.opt <= sizes.max:
            raise BadInput(f"--size {text}: sizes must be 1 <= min <= opt <= max", "change them")
        if sizes.max > LARGEST:  # No file could record it.
            raise BadInput(f"--size {text}: is larger than {LARGEST}", "give a smaller size")
        if axis not in free:
            raise BadInput(
                f"{title}: has no free axis {axis} besides its batch",
                f"its free axes are: {', '.join(sorted(free)) or 'none'}",
            )
        if axis in ranges:
            raise BadInput(f"--size {text}: {axis} is given twice", "give each axis once")
        ranges[axis] = sizes
    return ranges


def typical_sizes(texts: Sequence[str], free: Collection[str], title: str) -> dict[str, int]:
    """The one size of each axis that `texts` name; raises like `parse_sizes`."""
    return {axis: sizes.opt for axis, sizes in parse_sizes(texts, free, title).items()}
