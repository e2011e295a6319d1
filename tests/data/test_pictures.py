"""Preprocessing is ImageNet's validation protocol, on pictures of every kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cbam_deploy.data.pictures import UnreadablePicture, decode, normalize, resize_and_crop
from cbam_deploy.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards, by one level a pixel of 256."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], -1).astype(np.uint8))


@pytest.mark.parametrize(
    ("size", "resized"), [((500, 375), (341, 256)), ((375, 500), (256, 341)), ((10, 9), (284, 256))]
)
def test_shorter_side_is_resized_then_the_centre_cut_out(
    size: tuple[int, int], resized: tuple[int, int]
) -> None:
    picture = resize_and_crop(gradient(*size), Preprocessing())
    assert picture.size == (224, 224)
    red, green = (np.asarray(picture, np.float64)[..., channel].mean() for channel in (0, 1))
    assert (red, green) == pytest.approx((127.5, 127.5), abs=2)  # The centre stays the centre.
    span = np.asarray(picture, np.float64)[112, [0, -1], 0]
    slope = (span[1] - span[0]) / 223
    levels_a_pixel = 255 / (size[0] - 1) * size[0] / resized[0]
    assert slope == pytest.approx(levels_a_pixel, rel=0.02)  # Neither squeezed nor stretched.


def test_shrinking_averages_away_what_the_pixels_cannot_hold() -> None:
    checkerboard = np.indices((64, 64)).sum(0) % 2 * 255
    picture = Image.fromarray(checkerboard.astype(np.uint8)).convert("RGB")
    small = np.asarray(resize_and_crop(picture, Preprocessing(image_size=8, resize=8)), np.float64)
    assert np.abs(small - 127.5).max() < 10  # Without antialiasing: 0 or 255.


def test_normalize_is_x_minus_mean_over_std() -> None:
    values = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    got = normalize(Image.fromarray(values), Preprocessing())
    expected = (values.astype(np.float64) / 255 - IMAGENET_MEAN) / IMAGENET_STD
    assert got.shape == (3, 5, 7)
    assert got.dtype == np.float32
    # Three roundings of 2^-24 each, the subtraction's on values up to 1, the result divided by std.
    np.testing.assert_allclose(got, expected.transpose(2, 0, 1), atol=3 * 2.0**-24 / 0.224)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1", "CMYK"])
def test_every_8_bit_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / f"picture{'.jpg' if mode == 'CMYK' else '.png'}"
    gradient(20, 10).convert(mode).save(path)
    picture = decode(path)
    assert (picture.mode, picture.size) == ("RGB", (20, 10))


def test_16_bit_pictures_are_unreadable_not_clipped_to_white(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 30000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(UnreadablePicture, match="not 8 bits"):
        decode(tmp_path / "deep.png")


@pytest.mark.parametrize("kind", ["truncated", "text", "empty", "absent"])
def test_damaged_pictures_say_why(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "picture.jpg"
    gradient(64, 64).save(path)
    content = {"truncated": path.read_bytes()[:500], "text": b"no picture", "empty": b""}
    path.unlink()
    if kind != "absent":
        path.write_bytes(content[kind])
    with pytest.raises(UnreadablePicture, match=r"\w"):
        decode(path)
