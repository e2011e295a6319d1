"""From an encoded picture to a network input: decode, fit into the input, normalize.

Resizing is bilinear with antialiasing on 8-bit levels, as in torchvision's protocol for ImageNet,
of pictures as they are stored (an EXIF orientation is not applied).
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from cbam_deploy.errors import imports_for, in_one_line
from cbam_deploy.preprocessing import Preprocessing

if TYPE_CHECKING:
    from PIL.Image import Image

EXTENSIONS = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
# Longer side over shorter, above which a picture's far ends are cut off before it is resized.
LONGEST = 16


class UnreadablePicture(Exception):
    """A picture that cannot be decoded; its text says why."""


def require_pillow() -> None:
    """Raise `MissingCapability` where Pillow is not installed; keep its remarks off the terminal.

    Pillow warns of palettes, EXIF data and large pictures, by warnings and by logging, and its TIFF
    library writes to standard error. What is wrong with a picture is said by `decode`.
    """
    with imports_for("reading pictures needs Pillow", "demo"):
        from PIL import _imaging
    # For good: filters are the process's, and threads that decode would undo each other's.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logger = logging.getLogger("PIL")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    with contextlib.suppress(OSError, AttributeError):  # Not every Pillow has that library.
        set_handler = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
        set_handler.argtypes = [ctypes.c_void_p]
        set_handler(None)


def decode(source: Path | BinaryIO, mode: str = "RGB") -> Image:
    """The picture in `mode`, 8 bits a channel; grey levels of 9 to 16 bits are scaled to 8.

    Colours are those stored: in RGB transparency is left out, in RGBA it is the fourth channel.

    Raises:
        UnreadablePicture: the file is damaged, no picture, larger than Pillow's limit against
            decompression bombs (about 179 million pixels), or has levels of 32 bits or floats,
            whose range nothing says.
    """
    from PIL import Image

    try:
        with Image.open(source) as picture:
            picture.load()
            if 0 in picture.size:
                raise UnreadablePicture("has no pixels")
            if picture.mode.startswith("I;16") or (picture.mode, picture.format) == ("I", "PPM"):
                return _grey(picture).convert(mode)
            if picture.mode.startswith(("I", "F")):
                raise UnreadablePicture(f"mode {picture.mode} has levels of an unknown range")
            return picture if picture.mode == mode else picture.convert(mode)
    except UnreadablePicture:
        raise
    except MemoryError as error:
        raise UnreadablePicture("does not fit into memory") from error
    except Exception as error:  # Decoders answer damaged bytes with errors of any kind.
        raise UnreadablePicture(in_one_line(error)) from error


def _grey(picture: Image) -> Image:
    """Levels of 9 to 16 bits, as TIFF's tags say them (BitsPerSample 258, WhiteIsZero 262)."""
    from PIL import Image

    tags = getattr(picture, "tag_v2", {})
    (bits, *_) = tags.get(258, (16,))
    levels = np.asarray(picture, np.float64) * (255 / (2**bits - 1))
    if tags.get(262) == 0:
        levels = 255 - levels
    return Image.fromarray(np.rint(np.clip(levels, 0, 255)).astype(np.uint8))


def fit(picture: Image, preprocessing: Preprocessing) -> Image:
    """The picture in the size of the network input, as `Preprocessing.fit` says.

    Raises:
        UnreadablePicture: it is to be kept as it is, and has another size; or the frame is larger
            than Pillow's limit.
    """
    from PIL.Image import DecompressionBombError, Resampling

    height, width = preprocessing.frame
    if preprocessing.fit == "letterbox":
        return _letterbox(picture, height, width, preprocessing.padding)
    if preprocessing.fit == "stretch":
        return picture.resize((width, height), Resampling.BILINEAR)
    if preprocessing.fit == "keep":
        if picture.size != (width, height):
            sizes = f"{picture.height}x{picture.width}, where the network takes {height}x{width}"
            raise UnreadablePicture(f"is {sizes}; letterbox, stretch or crop it")
        return picture
    picture = _without_far_ends(picture)
    scale = preprocessing.resize / min(picture.size)
    resized = [max(int(side * scale), preprocessing.resize) for side in picture.size]
    picture = picture.resize((resized[0], resized[1]), Resampling.BILINEAR)
    left, top = round((picture.width - width) / 2), round((picture.height - height) / 2)
    try:
        return picture.crop((left, top, left + width, top + height))
    except DecompressionBombError as error:
        raise UnreadablePicture(f"{height}x{width} is too large ({in_one_line(error)})") from error


def _letterbox(picture: Image, height: int, width: int, level: int) -> Image:
    """All of the picture in the middle of the frame, in its own proportions.

    Sides round to the nearest pixel, and of an odd rest the larger half is at the right and bottom,
    as detectors of the YOLO family do it.
    """
    from PIL import Image
    from PIL.Image import Resampling

    scale = min(width / picture.width, height / picture.height)
    inner = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    framed = Image.new(picture.mode, (width, height), (level,) * len(picture.getbands()))
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    framed.paste(picture.resize(inner, Resampling.BILINEAR), (left, top))
    return framed


def _without_far_ends(picture: Image) -> Image:
    """The middle of a picture so long that resizing it whole would take memory without bound."""
    width, height = picture.size
    cut = (max(width, height) - LONGEST * min(width, height)) // 2
    if cut <= 0:
        return picture
    left, top = (cut, 0) if width > height else (0, cut)
    return picture.crop((left, top, width - left, height - top))


def normalize(picture: Image, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """The picture as float32 [C, H, W], (level / scale - mean) / std for each channel.

    The channels are in the order of `Preprocessing.colour`.
    """
    if preprocessing.colour == "grey":
        levels = np.asarray(picture.convert("L"), np.float32)[None]
    else:
        levels = np.asarray(picture.convert(mode_of(preprocessing)), np.float32).transpose(2, 0, 1)
        if preprocessing.colour in ("bgr", "bgra"):
            levels = levels[[2, 1, 0, *range(3, len(levels))]]
    mean = np.array(preprocessing.mean, np.float32)[:, None, None]
    std = np.array(preprocessing.std, np.float32)[:, None, None]
    return (levels / np.float32(preprocessing.scale) - mean) / std


def mode_of(preprocessing: Preprocessing) -> str:
    """Pillow's mode of the pictures that it begins with."""
    return "RGBA" if preprocessing.colour in ("rgba", "bgra") else "RGB"
