"""Batches as a network takes them: normalized, or levels of 0 to 255 where it takes integers.

A network of integer inputs normalizes inside: it is given the picture's own levels, 0 to 255.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cbam_deploy.errors import BadInput
from cbam_deploy.numerics.tensors import Feeds, TensorSpec
from cbam_deploy.preprocessing import Preprocessing

if TYPE_CHECKING:
    from cbam_deploy.data.source import ImageSource


def network_feeds(
    inputs: Mapping[str, NDArray[Any]], source: ImageSource, specs: Sequence[TensorSpec]
) -> Feeds:
    """A batch of `source` as the network takes it, by the names of its inputs.

    Args:
        inputs: `Batch.inputs`.
        source: where they come from.
        specs: inputs of the network.

    Raises:
        BadInput: the network has other inputs, or of types that cannot hold what is given.
    """
    if not source.ready:
        if len(specs) != 1 or len(specs[0].shape) != 4:
            names = ", ".join(spec.name for spec in specs)
            raise BadInput(
                f"the network does not take one picture but {names}, which {source.name} cannot"
                " feed",
                "leave --data out for noise, give an .npz file of tensors, or a function of your"
                " own with --preprocess",
            )
        spec = specs[0]
        images = network_input(inputs[""], source.preprocessing, spec.dtype, spec.name)
        return {spec.name: images}
    given = {specs[0].name: inputs[""]} if len(specs) == 1 and set(inputs) == {""} else inputs
    if {*given} != {spec.name for spec in specs}:
        raise BadInput(
            f"{source.name}: gives {', '.join(map(repr, given))}, and the network takes"
            f" {', '.join(repr(spec.name) for spec in specs)}",
            "name the tensors like the inputs",
        )
    return {spec.name: _as_taken(given[spec.name], spec, source.name) for spec in specs}


def levels(images: NDArray[np.float32], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Normalized pictures [..., C, H, W] as they were before, 0 to 255."""
    mean, std = (np.array(v)[:, None, None] for v in (preprocessing.mean, preprocessing.std))
    scaled = (images * std + mean) * preprocessing.scale
    return np.asarray(np.rint(np.clip(scaled, 0, 255)), np.uint8)


def is_levels(dtype: str) -> bool:
    """Whether an input of `dtype` takes levels of 0 to 255, not normalized values."""
    return _integer(dtype) is not None


def network_input(
    images: NDArray[np.float32], preprocessing: Preprocessing, dtype: str, name: str
) -> NDArray[Any]:
    """`images` as the input `name` of a network takes them.

    Args:
        images: [N, C, H, W], normalized as `preprocessing` says.
        preprocessing: of the pictures; its layout is that of the result.
        dtype: numpy's name of the input's type.
        name: of the input, for the message.

    Raises:
        BadInput: no picture can be given in that type without a change of its values.
    """
    if dtype in ("float16", "float32", "float64"):
        made = images.astype(dtype)
    else:
        integer = _integer(dtype)
        if integer is None:
            raise BadInput(
                f"input {name} takes {dtype}, which cannot hold pictures of levels 0 to 255",
                "export the network with an input of float32, or of uint8",
            )
        made = levels(images, preprocessing).astype(integer)
    if preprocessing.layout == "nhwc":
        made = np.ascontiguousarray(made.transpose(0, 2, 3, 1))
    return made


_NO_NUMBERS = "USOcmM"  # Kinds of NumPy's types: text, objects, complex numbers and times.


def _as_taken(array: NDArray[Any], spec: TensorSpec, source: str) -> NDArray[Any]:
    """A tensor in the type of the input, where that holds its values."""
    try:
        wanted = np.dtype(spec.dtype)
    except TypeError:  # Such as bfloat16.
        wanted = array.dtype
    if array.dtype.kind in _NO_NUMBERS:
        raise BadInput(
            f"{source}: has {array.dtype} values for input {spec.name}", "give real numbers"
        )
    kept = array.astype(wanted)
    floats = np.issubdtype(wanted, np.floating)
    if not floats and not np.array_equal(kept, array):
        raise BadInput(
            f"{source}: has {array.dtype} values for input {spec.name}, which takes {spec.dtype}",
            "store them in that type",
        )
    return kept


def _integer(dtype: str) -> np.dtype[Any] | None:
    try:
        found = np.dtype(dtype)
    except TypeError:  # Such as bfloat16.
        return None
    holds = np.issubdtype(found, np.integer) and np.iinfo(found).max >= 255
    return found if holds else None
