"""From an encoded picture to a network input: decode, resize, centre crop, normalize.

The protocol is torchvision's for ImageNet: bilinear with antialiasing on 8-bit RGB, pictures as
they are stored (an EXIF orientation is not applied).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cbam_deploy.data.preprocessing import Preprocessing
from cbam_deploy.errors import MissingCapability

if TYPE_CHECKING:
    from PIL.Image import Image

EXTENSIONS = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)


class UnreadablePicture(Exception):
    """A picture that cannot be decoded; its text says why."""


def require_pillow() -> None:
    """Raise `MissingCapability` where Pillow is not installed."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise MissingCapability(
            "reading pictures needs Pillow", "pip install 'cbam-deploy[demo]'"
        ) from error


def decode(path: Path) -> Image:
    """The picture in RGB, 8 bits a channel.

    Raises:
        UnreadablePicture: the file is damaged, no picture, larger than Pillow's limit against
            decompression bombs, or of more than 8 bits a channel, which RGB would clip.
    """
    from PIL import Image

    try:
        with Image.open(path) as picture:
            if picture.mode.startswith(("I", "F")):
                raise UnreadablePicture(f"mode {picture.mode} is not 8 bits a channel")
            return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnreadablePicture(" ".join(str(error).split())) from error


def resize_and_crop(picture: Image, preprocessing: Preprocessing) -> Image:
    """Resize the shorter side to `preprocessing.resize`, then cut out the central square."""
    from PIL.Image import Resampling

    width, height = picture.size
    scale = preprocessing.resize / min(width, height)
    width, height = (max(int(side * scale), preprocessing.resize) for side in (width, height))
    picture = picture.resize((width, height), Resampling.BILINEAR)
    size = preprocessing.image_size
    left, top = round((width - size) / 2), round((height - size) / 2)
    return picture.crop((left, top, left + size, top + size))


def normalize(picture: Image, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """The RGB picture as float32 [3, H, W], scaled to 0..1, then (x - mean) / std per channel."""
    scaled = np.asarray(picture, np.float32).transpose(2, 0, 1) / np.float32(255)
    mean = np.array(preprocessing.mean, np.float32)[:, None, None]
    std = np.array(preprocessing.std, np.float32)[:, None, None]
    return (scaled - mean) / std
