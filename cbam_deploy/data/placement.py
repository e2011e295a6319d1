"""Where a picture lies in the network's input, so that what is found there can be found in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cbam_deploy.data.pictures import LONGEST
from cbam_deploy.errors import BadInput
from cbam_deploy.preprocessing import Preprocessing

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Placement:
    """A point (x, y) of the picture is x * scale + offset of the input, each for itself, in pixels.

    Attributes:
        scale: of x and y.
        offset: of x and y.
        frame: width and height of the input.
    """

    scale: tuple[float, float]
    offset: tuple[float, float]
    frame: tuple[int, int]

    def in_picture(self, points: Points) -> Points:
        """Points [..., 2] of the input as those of the picture."""
        return np.asarray((points - self.offset) / np.array(self.scale))


def placement(size: tuple[int, int], preprocessing: Preprocessing) -> Placement:
    """Where `pictures.fit` puts a picture.

    Args:
        size: width and height of the picture, in pixels.
        preprocessing: how it becomes an input.

    Raises:
        BadInput: a function of the person's own prepares it, which does not say where it puts it.
    """
    if preprocessing.function is not None:
        raise BadInput(
            f"{preprocessing.function} does not say where it puts a picture in the input",
            "say the steps with --preprocess, or judge by a function of your own with --metric",
        )
    frame = preprocessing.frame[::-1]
    cuts, kept = [0, 0], list(size)
    if preprocessing.fit == "letterbox":
        ratio = min(side / own for side, own in zip(frame, size, strict=True))
        resized = [max(1, round(side * ratio)) for side in size]
    elif preprocessing.fit == "crop":
        # The far ends of a very long picture are cut off before it is resized.
        cuts = [max(0, (side - LONGEST * min(size)) // 2) for side in size]
        kept = [side - 2 * cut for side, cut in zip(size, cuts, strict=True)]
        ratio = preprocessing.resize / min(kept)
        resized = [max(int(side * ratio), preprocessing.resize) for side in kept]
    else:
        resized = list(frame)
    scale = [after / before for after, before in zip(resized, kept, strict=True)]
    if preprocessing.fit == "crop":
        starts = [-round((made - side) / 2) for made, side in zip(resized, frame, strict=True)]
    else:
        starts = [(side - made) // 2 for made, side in zip(resized, frame, strict=True)]
    offset = [start - cut * ratio for start, cut, ratio in zip(starts, cuts, scale, strict=True)]
    return Placement((scale[0], scale[1]), (offset[0], offset[1]), frame)
