"""Cut training examples out of pictures by chance."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from cbam_deploy.data.pictures import fit
from cbam_deploy.data.source import Augment
from cbam_deploy.preprocessing import Preprocessing
from cbam_deploy.training.settings import Augmentation

if TYPE_CHECKING:
    from PIL.Image import Image

_AREA = (0.08, 1.0)
_ASPECT = (3 / 4, 4 / 3)
_ATTEMPTS = 10


def augmentation_for(kind: Augmentation, source: str) -> Augment | None:
    """What `kind` means for the pictures of `source`; None for plain preprocessing."""
    if kind == "auto":
        kind = "shift" if source == "digits" else "crop-flip"
    choices = {"crop-flip": random_resized_crop_and_flip, "shift": random_shift}
    return choices.get(kind)


def random_resized_crop_and_flip(
    picture: Image, preprocessing: Preprocessing, chance: np.random.Generator
) -> Image:
    """A random part of the picture, resized to the input, mirrored half of the time.

    The part has 8% to 100% of the area and an aspect ratio of 3:4 to 4:3 (Szegedy et al.,
    "Going Deeper with Convolutions", CVPR 2015, section 6), or is the central square where ten
    draws do not fit into the picture.
    """
    from PIL import Image
    from PIL.Image import Resampling

    size = preprocessing.image_size
    box = _random_box(picture.size, chance)
    picture = picture.resize((size, size), Resampling.BILINEAR, box=box)
    flip = chance.random() < 0.5
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else picture


def random_shift(
    picture: Image, preprocessing: Preprocessing, chance: np.random.Generator
) -> Image:
    """The preprocessed picture moved by up to an eighth of its side each way, black around."""
    reach = preprocessing.image_size // 8
    right, down = (int(step) for step in chance.integers(-reach, reach + 1, 2))
    picture = fit(picture, preprocessing)
    return picture.crop((right, down, right + picture.width, down + picture.height))


def _random_box(size: tuple[int, int], chance: np.random.Generator) -> tuple[int, int, int, int]:
    width, height = size
    for _ in range(_ATTEMPTS):
        area = width * height * chance.uniform(*_AREA)
        aspect = math.exp(chance.uniform(*np.log(_ASPECT)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left = int(chance.integers(0, width - w + 1))
            top = int(chance.integers(0, height - h + 1))
            return left, top, left + w, top + h
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side
