"""The one way from a picture to a network input, recorded in every artefact's provenance."""

from __future__ import annotations

from dataclasses import dataclass

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """Resize, centre crop, normalize: ImageNet's validation protocol by default.

    Attributes:
        image_size: side of the square network input, in pixels.
        resize: length the shorter side is resized to before the centre crop, in pixels.
        mean: per RGB channel, on the 0..1 scale.
        std: per RGB channel, on the 0..1 scale.
    """

    image_size: int = 224
    resize: int = 256
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @classmethod
    def for_size(cls, image_size: int) -> Preprocessing:
        """The protocol at another size, keeping ImageNet's ratio of 256 to 224 above 64 pixels.

        At 64 pixels and below, pictures fill the frame and nothing is cropped away.
        """
        resize = round(image_size * 256 / 224) if image_size > 64 else image_size
        return cls(image_size=image_size, resize=resize)
