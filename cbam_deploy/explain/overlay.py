"""Pictures as people see them, with a heat map laid over."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cbam_deploy.data.network_input import levels
from cbam_deploy.errors import imports_for
from cbam_deploy.preprocessing import Preprocessing

Picture = NDArray[np.uint8]  # [H, W, 3]
_SIDE = 112  # Smallest side shown, in pixels.


def picture(image: NDArray[np.float32], preprocessing: Preprocessing) -> Picture:
    """A network input [C, H, W] as it was before normalization, small ones in larger pixels."""
    shown = levels(image, preprocessing).transpose(1, 2, 0)
    order = {"grey": [0, 0, 0], "bgr": [2, 1, 0], "bgra": [2, 1, 0]}
    rgb = shown[..., order.get(preprocessing.colour, [0, 1, 2])]
    times = -(-_SIDE // rgb.shape[0])
    return np.asarray(rgb.repeat(times, axis=0).repeat(times, axis=1), np.uint8)


def overlay(shown: Picture, heat: NDArray[np.floating], low: float, high: float) -> Picture:
    """`heat` [h, w], bilinear and from blue at `low` to red at `high`, half over the picture.

    Raises:
        MissingCapability: matplotlib or Pillow is not installed.
    """
    with imports_for("pictures need matplotlib and Pillow", "demo"):
        from matplotlib import colormaps
        from PIL import Image
    level = np.clip((heat - low) / (high - low), 0, 1) if high > low else np.zeros_like(heat)
    size = (shown.shape[1], shown.shape[0])
    smooth = Image.fromarray(level.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    colours = 255 * colormaps["jet"](np.asarray(smooth))[:, :, :3]
    return np.asarray(np.rint((shown + colours) / 2), np.uint8)
