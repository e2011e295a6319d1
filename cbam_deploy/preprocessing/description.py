"""How a picture becomes a network's input, as data that an artefact records."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Fit = Literal["crop", "stretch", "letterbox", "keep"]
Colour = Literal["rgb", "bgr", "grey", "rgba", "bgra"]
Layout = Literal["nchw", "nhwc"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CHANNELS: dict[Colour, int] = {"rgb": 3, "bgr": 3, "grey": 1, "rgba": 4, "bgra": 4}
LARGEST_SIDE = 10**7  # In pixels; far above any picture's, far below what overflows anywhere.
_LARGEST_LEVEL = 255


@dataclass(frozen=True)
class Preprocessing:
    """Fit the picture into the input, then (level / scale - mean) / std for each channel.

    ImageNet's validation protocol by default. `preprocessing.text` writes and reads it as text.

    Attributes:
        image_size: height of the network input, in pixels, and its width where that is None.
        resize: with ``crop``, length that the shorter side is resized to before, in pixels.
        mean: of each channel, in the network's order, after the division by `scale`.
        std: like `mean`.
        width: of the network input, in pixels; None where it is square.
        fit: ``crop``: resize the shorter side to `resize`, cut out the centre. ``stretch``: resize
            to the input, whatever the proportions. ``letterbox``: resize so that all of it fits in,
            keep the proportions, fill the rest with `padding`. ``keep``: take pictures of the
            input's own size as they are, and no others.
        colour: order of the channels; ``grey`` is the luminance (ITU-R BT.601).
        scale: what levels of 0 to 255 are divided by.
        padding: level that a letterbox is filled with, in every channel.
        layout: order of the axes behind the batch.
        function: ``package.module:function`` or ``path/file.py:function``, which does all this
            instead (`preprocessing.own_function`); the other fields then say nothing.
    """

    image_size: int = 224
    resize: int = 256
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    width: int | None = None
    fit: Fit = "crop"
    colour: Colour = "rgb"
    scale: float = 255.0
    padding: int = 114
    layout: Layout = "nchw"
    function: str | None = None

    def __post_init__(self) -> None:
        """Raises ValueError where a value means nothing."""
        if (self.colour, len(self.mean)) == ("rgb", 1):  # As earlier versions recorded luminance.
            object.__setattr__(self, "colour", "grey")
        channels = CHANNELS.get(self.colour)
        if channels is None:
            raise ValueError(f"colour {self.colour!r} is none of {', '.join(CHANNELS)}")
        if not len(self.mean) == len(self.std) == channels:
            raise ValueError(f"mean {self.mean} and std {self.std} are not of {channels} channels")
        for name in ("image_size", "resize", "width"):
            side = getattr(self, name)
            if side is not None and not 1 <= side <= LARGEST_SIDE:
                raise ValueError(f"{name} is out of range")
        if not all(map(math.isfinite, (*self.mean, *self.std, self.scale))):
            raise ValueError("a number is not finite")
        if min(*self.std, self.scale) <= 0:
            raise ValueError("std or scale is not positive")
        if not 0 <= self.padding <= _LARGEST_LEVEL:
            raise ValueError("padding is no level of 0 to 255")

    @classmethod
    def for_size(cls, image_size: int) -> Preprocessing:
        """ImageNet's protocol at another size, keeping its ratio of 256 to 224 above 64 pixels.

        At 64 pixels and below, pictures fill the frame and nothing is cropped away.
        """
        resize = round(image_size * 256 / 224) if image_size > 64 else image_size
        return cls(image_size=image_size, resize=resize)

    @property
    def frame(self) -> tuple[int, int]:
        """Height and width of the network input, in pixels."""
        return self.image_size, self.image_size if self.width is None else self.width

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one picture as the network takes it."""
        channels, (height, width) = CHANNELS[self.colour], self.frame
        return (height, width, channels) if self.layout == "nhwc" else (channels, height, width)


def imagenet_values(colour: Colour) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """ImageNet's mean and standard deviation in the order of `colour`; None for four channels."""
    if colour == "grey":
        return tuple((round(sum(v) / 3, 3),) for v in (IMAGENET_MEAN, IMAGENET_STD))  # type: ignore[return-value]
    if colour == "bgr":
        return IMAGENET_MEAN[::-1], IMAGENET_STD[::-1]
    return (IMAGENET_MEAN, IMAGENET_STD) if colour == "rgb" else None
