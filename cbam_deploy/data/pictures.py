"""From an encoded picture to a network input: decode, resize, centre crop, normalize.

The protocol is torchvision's for ImageNet: bilinear with antialiasing on 8-bit RGB, pictures as
they are stored (an EXIF orientation is not applied).
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cbam_deploy.errors import imports_for, in_one_line
from cbam_deploy.preprocessing import Preprocessing, Stretched

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


def decode(path: Path) -> Image:
    """The picture in RGB, 8 bits a channel; grey levels of 9 to 16 bits are scaled to 8.

    Transparency is left out: colours are those stored.

    Raises:
        UnreadablePicture: the file is damaged, no picture, larger than Pillow's limit against
            decompression bombs (about 179 million pixels), or has levels of 32 bits or floats,
            whose range nothing says.
    """
    from PIL import Image

    try:
        with Image.open(path) as picture:
            picture.load()
            if 0 in picture.size:
                raise UnreadablePicture("has no pixels")
            if picture.mode.startswith("I;16") or (picture.mode, picture.format) == ("I", "PPM"):
                return _grey(picture).convert("RGB")
            if picture.mode.startswith(("I", "F")):
                raise UnreadablePicture(f"mode {picture.mode} has levels of an unknown range")
            return picture if picture.mode == "RGB" else picture.convert("RGB")
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


def resize_and_crop(picture: Image, preprocessing: Preprocessing) -> Image:
    """Resize the shorter side to `preprocessing.resize`, then cut out the central square.

    With `Stretched`, resize to the frame instead.
    """
    from PIL.Image import Resampling

    if isinstance(preprocessing, Stretched):
        frame = (preprocessing.width, preprocessing.image_size)
        return picture.resize(frame, Resampling.BILINEAR)
    picture = _without_far_ends(picture)
    width, height = picture.size
    scale = preprocessing.resize / min(width, height)
    width, height = (max(int(side * scale), preprocessing.resize) for side in (width, height))
    picture = picture.resize((width, height), Resampling.BILINEAR)
    size = preprocessing.image_size
    left, top = round((width - size) / 2), round((height - size) / 2)
    return picture.crop((left, top, left + size, top + size))


def _without_far_ends(picture: Image) -> Image:
    """The middle of a picture so long that resizing it whole would take memory without bound."""
    width, height = picture.size
    cut = (max(width, height) - LONGEST * min(width, height)) // 2
    if cut <= 0:
        return picture
    left, top = (cut, 0) if width > height else (0, cut)
    return picture.crop((left, top, width - left, height - top))


def normalize(picture: Image, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """The RGB picture as float32 [3, H, W], scaled to 0..1, then (x - mean) / std per channel.

    Of one mean, its luminance [1, H, W] (ITU-R BT.601).
    """
    if len(preprocessing.mean) == 1:
        scaled = np.asarray(picture.convert("L"), np.float32)[None] / np.float32(255)
    else:
        scaled = np.asarray(picture, np.float32).transpose(2, 0, 1) / np.float32(255)
    mean = np.array(preprocessing.mean, np.float32)[:, None, None]
    std = np.array(preprocessing.std, np.float32)[:, None, None]
    return (scaled - mean) / std
