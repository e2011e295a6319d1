"""The class of each pixel of a picture, from a PNG file whose levels are indices of classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cbam_deploy.errors import BadInput, in_one_line

IGNORED = 255
Mask = NDArray[np.uint8]
_MODES = ("L", "P", "1")


def read_mask(path: Path, picture: str, size: tuple[int, int]) -> Mask:
    """Classes uint8 [H, W]; `IGNORED` where a pixel counts for nothing.

    Args:
        path: the file, of grey levels or of a palette, whose colours mean nothing.
        picture: name of the picture it belongs to, for messages.
        size: width and height of that picture.

    Raises:
        BadInput: it is missing, damaged, of colours, or of another size than the picture.
    """
    from PIL import Image

    if not path.is_file():
        raise BadInput(
            f"{path}: no such mask, which {picture} needs", "add it, or leave the picture out"
        )
    try:
        with Image.open(path) as image:
            image.load()
            mode, found = image.mode, np.asarray(image)
    except Exception as error:  # Decoders answer damaged bytes with errors of any kind.
        raise BadInput(f"{path}: {in_one_line(error)}", "save the mask again as PNG") from error
    if mode not in _MODES:
        raise BadInput(
            f"{path}: has pixels of mode {mode}, not indices of classes",
            "save masks as PNG of 8 bits, grey or with a palette: level 3 is class 3, 255 ignored",
        )
    if found.shape != size[::-1]:
        height, width = found.shape
        raise BadInput(
            f"{path}: is {width}x{height}, its picture {picture} is {size[0]}x{size[1]}",
            "save the mask in the size of its picture",
        )
    return found.astype(np.uint8)
