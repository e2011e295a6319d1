"""The one way from a picture to a network input, recorded in every artefact's provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cbam_deploy.errors import BadInput

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# What a picture can become: its luminance, or RGB.
CHANNELS = (1, 3)


@dataclass(frozen=True)
class Preprocessing:
    """Resize, centre crop, normalize: ImageNet's validation protocol by default.

    Attributes:
        image_size: side of the square network input, in pixels.
        resize: length the shorter side is resized to before the centre crop, in pixels.
        mean: per RGB channel, or of the luminance alone, on the 0..1 scale.
        std: like `mean`.
    """

    image_size: int = 224
    resize: int = 256
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        """Raises ValueError where `mean` and `std` are of no such channels."""
        if len(self.mean) != len(self.std) or len(self.mean) not in CHANNELS:
            raise ValueError(f"mean {self.mean} and std {self.std} are not of 1 or 3 channels")

    @classmethod
    def for_size(cls, image_size: int) -> Preprocessing:
        """The protocol at another size, keeping ImageNet's ratio of 256 to 224 above 64 pixels.

        At 64 pixels and below, pictures fill the frame and nothing is cropped away.
        """
        resize = round(image_size * 256 / 224) if image_size > 64 else image_size
        return cls(image_size=image_size, resize=resize)


@dataclass(frozen=True)
class Stretched(Preprocessing):
    """For an input that is no square: pictures fill it, whatever their own proportions.

    Attributes:
        width: of the network input, in pixels; `image_size` is its height, `resize` has no meaning.
    """

    width: int = 224


def for_input(name: str, shape: Sequence[int | str], sizes: Mapping[str, int]) -> Preprocessing:
    """ImageNet's protocol at the size of a network input that has none recorded.

    Args:
        name: of the input, for the message.
        shape: of the input, [N, C, H, W]; a free size has a name.
        sizes: of free sizes, by name; what is not there is 224, or 3 channels.

    Raises:
        BadInput: the input takes no pictures: it has other axes, or another number of channels.
    """
    known = [size if isinstance(size, int) else sizes.get(size) for size in shape]
    if len(known) != 4 or (known[1] or 3) not in CHANNELS:
        raise BadInput(
            f"input {name} takes [{', '.join(map(str, shape))}], and pictures are"
            " [batch, 1 or 3, height, width]",
            "leave --calibration or --data out: FP16, and a comparison on noise, need no pictures",
        )
    channels, height, width = (
        size or default for size, default in zip(known[1:], (3, 224, 224), strict=True)
    )
    if (channels, height) == (3, width):
        return Preprocessing.for_size(height)
    mean, std = (
        values if channels == 3 else (round(sum(values) / 3, 3),)
        for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    if height == width:
        square = Preprocessing.for_size(height)
        return Preprocessing(square.image_size, square.resize, mean, std)
    return Stretched(height, height, mean, std, width)
