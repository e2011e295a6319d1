"""Pictures in the type that a network takes: normalized where it computes, as they are in integers.

A network of integer inputs normalizes inside: it is given the picture's own levels, 0 to 255.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbam_deploy.errors import BadInput
from cbam_deploy.preprocessing import Preprocessing


def levels(images: NDArray[np.float32], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Normalized pictures [..., 3, H, W] as they were before, 0 to 255."""
    mean, std = (np.array(v)[:, None, None] for v in (preprocessing.mean, preprocessing.std))
    return np.asarray(np.rint(255 * np.clip(images * std + mean, 0, 1)), np.uint8)


def is_levels(dtype: str) -> bool:
    """Whether an input of `dtype` takes levels of 0 to 255, not normalized values."""
    return _integer(dtype) is not None


def network_input(
    images: NDArray[np.float32], preprocessing: Preprocessing, dtype: str, name: str
) -> NDArray[Any]:
    """`images` as the input `name` of a network takes them.

    Args:
        images: [N, 3, H, W], normalized as `preprocessing` says.
        preprocessing: of the pictures.
        dtype: numpy's name of the input's type.
        name: of the input, for the message.

    Raises:
        BadInput: no picture can be given in that type without a change of its values.
    """
    if dtype in ("float16", "float32", "float64"):
        return images.astype(dtype)
    integer = _integer(dtype)
    if integer is None:
        raise BadInput(
            f"input {name} takes {dtype}, which cannot hold pictures of levels 0 to 255",
            "export the network with an input of float32, or of uint8",
        )
    return levels(images, preprocessing).astype(integer)


def _integer(dtype: str) -> np.dtype[Any] | None:
    try:
        found = np.dtype(dtype)
    except TypeError:  # Such as bfloat16.
        return None
    holds = np.issubdtype(found, np.integer) and np.iinfo(found).max >= 255
    return found if holds else None
