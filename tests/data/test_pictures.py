"""Preprocessing is ImageNet's validation protocol, on pictures of every kind."""

from __future__ import annotations

import logging
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cbam_deploy.data.pictures import (
    UnreadablePicture,
    decode,
    fit,
    mode_of,
    normalize,
    require_pillow,
)
from cbam_deploy.errors import BadInput
from cbam_deploy.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from cbam_deploy.preprocessing.choice import for_input
from cbam_deploy.preprocessing.text import parse


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
    picture = fit(gradient(*size), Preprocessing())
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
    small = np.asarray(fit(picture, Preprocessing(image_size=8, resize=8)), np.float64)
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


def stored(path: Path) -> np.ndarray:
    require_pillow()
    return np.asarray(decode(path), np.float64)


def test_transparent_pixels_keep_the_colour_stored(tmp_path: Path) -> None:
    grey = np.arange(0, 256, 8, dtype=np.uint8).reshape(4, 8)
    Image.fromarray(np.stack([grey, 255 - grey], -1), "LA").save(tmp_path / "la.png")
    np.testing.assert_array_equal(stored(tmp_path / "la.png"), np.stack([grey] * 3, -1))
    colours = np.random.default_rng(0).integers(0, 256, (32, 3))
    palette = Image.fromarray(np.arange(32, dtype=np.uint8).reshape(4, 8), "P")
    palette.putpalette(colours.astype(np.uint8).tobytes())
    palette.save(tmp_path / "p.png", transparency=bytes(range(0, 256, 8)))
    np.testing.assert_array_equal(stored(tmp_path / "p.png"), colours.reshape(4, 8, 3))


def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).integers(0, 2, (5, 9)).astype(bool)
    Image.fromarray(bits).save(tmp_path / "1.png")
    np.testing.assert_array_equal(stored(tmp_path / "1.png"), np.stack([bits * 255] * 3, -1))


def test_cmyk_is_what_each_ink_and_black_leave(tmp_path: Path) -> None:
    inks = np.random.default_rng(0).integers(0, 256, (6, 6, 4), dtype=np.uint8)
    Image.fromarray(inks, "CMYK").save(tmp_path / "cmyk.tif")
    left = 1 - inks.astype(np.float64) / 255
    expected = 255 * left[..., :3] * left[..., 3:]
    np.testing.assert_allclose(stored(tmp_path / "cmyk.tif"), expected, atol=1)


LEVELS = np.array([[0, 1, 128, 257, 30000, 32768, 65407, 65535]], np.uint16)


@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "grey.pgm", "big-endian.tif"])
def test_16_bit_grey_is_scaled_to_8(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "big-endian.tif":
        path.write_bytes(tiff(LEVELS, bits=16, order=">"))
    else:
        Image.fromarray(LEVELS).save(path)
    grey = np.rint(LEVELS.astype(np.float64) * 255 / 65535)
    np.testing.assert_array_equal(stored(path), np.stack([grey] * 3, -1))


def tiff(levels: np.ndarray, bits: int, order: str = "<", white_is_zero: bool = False) -> bytes:
    """An uncompressed grey TIFF file, by the letter of the format."""
    height, width = levels.shape
    if bits == 12:
        stream = "".join(f"{level:012b}" for level in levels.ravel())
        data = int(stream, 2).to_bytes(len(stream) // 8, "big")
    else:
        data = levels.astype(f"{order}u2").tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: int(not white_is_zero)}
    tags |= {273: 8, 277: 1, 278: height, 279: len(data)}
    entries = b"".join(
        struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in sorted(tags.items())
    )
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(data))
    return head + data + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


def test_12_bit_and_inverted_grey_are_scaled_by_what_the_file_says(tmp_path: Path) -> None:
    twelve = np.array([[0, 1000, 2048, 4095]], np.uint16)
    (tmp_path / "12.tif").write_bytes(tiff(twelve, 12))
    expected = np.rint(twelve * (255 / 4095))
    np.testing.assert_array_equal(stored(tmp_path / "12.tif")[..., 0], expected)
    (tmp_path / "inverted.tif").write_bytes(tiff(LEVELS, 16, white_is_zero=True))
    expected = np.rint(255 - LEVELS * (255 / 65535))
    np.testing.assert_array_equal(stored(tmp_path / "inverted.tif")[..., 0], expected)


@pytest.mark.parametrize("levels", [np.int32([[0, 70000]]), np.float32([[0, 0.5]])], ids=str)
def test_levels_of_an_unknown_range_are_unreadable(tmp_path: Path, levels: np.ndarray) -> None:
    Image.fromarray(levels).save(tmp_path / "deep.tif")
    with pytest.raises(UnreadablePicture, match="unknown range"):
        decode(tmp_path / "deep.tif")


@pytest.mark.parametrize("size", [(2, 401), (401, 2), (3, 100), (100, 3)])
def test_long_pictures_are_resized_as_if_whole(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    width, height = (side * 8 // min(size) for side in size)
    whole = picture.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - 6) / 2), round((height - 6) / 2)
    expected = np.asarray(whole.crop((left, top, left + 6, top + 6)), np.float64)
    actual = fit(picture, Preprocessing(image_size=6, resize=8))
    # The middle is resized by a ratio that differs in its last whole pixel.
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, atol=3)


def test_a_line_of_pixels_takes_no_memory_to_speak_of(monkeypatch: pytest.MonkeyPatch) -> None:
    areas = []
    resize = Image.Image.resize

    def counted(self: Image.Image, size: tuple[int, int], *rest: object) -> Image.Image:
        areas.append(size[0] * size[1])
        assert areas[-1] < 10_000_000
        return resize(self, size, *rest)

    monkeypatch.setattr(Image.Image, "resize", counted)
    for size in ((1, 65_000), (65_000, 1)):
        assert fit(Image.new("RGB", size), Preprocessing()).size == (224, 224)
    assert len(areas) == 2


def test_a_bomb_is_unreadable_and_a_large_picture_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    require_pillow()
    gradient(20, 10).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150)
    assert decode(tmp_path / "large.png").size == (20, 10)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(UnreadablePicture, match="decompression bomb"):
        decode(tmp_path / "large.png")
    assert not recwarn.list


def test_what_a_decoder_answers_to_damaged_bytes_is_one_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradient(8, 8).save(tmp_path / "picture.png")
    for error in (KeyError("x"), IndexError(), struct.error("short"), MemoryError()):
        monkeypatch.setattr(Image.Image, "convert", lambda *_, e=error: raised(e))
        monkeypatch.setattr(Image, "open", lambda *_, e=error: raised(e))
        with pytest.raises(UnreadablePicture, match=r"\w"):
            decode(tmp_path / "picture.png")


def raised(error: Exception) -> None:
    raise error


def test_a_damaged_tiff_says_nothing_by_itself(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    require_pillow()
    path = tmp_path / "damaged.tif"
    gradient(40, 40).save(path, compression="tiff_deflate")
    content = bytearray(path.read_bytes())
    content[10:60] = bytes(50)
    path.write_bytes(content)
    with pytest.raises(UnreadablePicture, match="decoder error"):
        decode(path)
    assert capfd.readouterr().err == ""


def test_pillows_remarks_do_not_reach_the_terminal(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    require_pillow()
    picture = gradient(4, 4)
    exif = picture.getexif()
    exif[270] = "x" * 40
    picture.save(tmp_path / "exif.jpg", exif=exif.tobytes()[:-20])
    palette = picture.convert("P")
    palette.save(tmp_path / "palette.png", transparency=bytes([0, 128, 255]))
    for name in ("exif.jpg", "palette.png"):
        decode(tmp_path / name)
    assert not recwarn.list
    assert logging.getLogger("PIL").handlers


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


@pytest.mark.parametrize(
    ("shape", "sizes", "expected"),
    [
        (("N", 3, 64, 64), {}, (3, 64, 64)),
        (("N", 3, 32, 16), {}, (3, 32, 16)),
        ((2, 1, 16, 16), {}, (1, 16, 16)),
        (("N", 1, 8, "W"), {"W": 30}, (1, 8, 30)),
        (("N", "C", "H", "W"), {"H": 12, "W": 10}, (3, 12, 10)),
        (("N", 3, "H", "W"), {}, (3, 224, 224)),
        (("N", 8, 12, 3), {}, (3, 8, 12)),
    ],
)
def test_pictures_fit_the_network_input(shape, sizes, expected) -> None:
    preprocessing = for_input("input", shape, sizes)
    made = normalize(fit(gradient(50, 20), preprocessing), preprocessing)
    assert made.shape == expected


@pytest.mark.parametrize("shape", [("N", 80), ("N", 80, 300), ("N", 4, 8, 8), ("N", 8, 8, 4), ()])
def test_an_input_that_takes_no_pictures_is_refused(shape) -> None:
    with pytest.raises(BadInput, match=r"input mel takes .*, and ImageNet's pictures are"):
        for_input("mel", shape, {})


def test_a_picture_fills_an_input_that_is_no_square() -> None:
    picture = fit(gradient(300, 100), for_input("x", (1, 3, 64, 32), {}))
    filled = np.asarray(picture)
    assert picture.size == (32, 64)
    assert filled[32, 0, 0] < 8 < 247 < filled[32, -1, 0]
    assert filled[0, 16, 1] < 8 < 247 < filled[-1, 16, 1]


def test_one_channel_is_the_luminance() -> None:
    values = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    got = normalize(Image.fromarray(values), for_input("x", (1, 1, 5, 5), {}))
    luminance = values.astype(np.float64) @ (0.299, 0.587, 0.114) / 255
    mean, std = np.mean(IMAGENET_MEAN), np.mean(IMAGENET_STD)
    # The luminance is rounded to 8 bits, mean and std to three places.
    bound = float((1 / 255 + 2e-3) / std)
    np.testing.assert_allclose(got[0], (luminance - mean) / std, atol=bound)


def described(steps: str) -> Preprocessing:
    return parse(f"keep 6x7, {steps}")


COLOURS = np.random.default_rng(5).integers(0, 256, (6, 7, 4), dtype=np.uint8)


@pytest.mark.parametrize(
    ("steps", "order"),
    [("rgb", [0, 1, 2]), ("bgr", [2, 1, 0]), ("rgba", [0, 1, 2, 3]), ("bgra", [2, 1, 0, 3])],
)
def test_channels_are_in_the_order_of_the_network(tmp_path: Path, steps: str, order: list) -> None:
    Image.fromarray(COLOURS, "RGBA").save(tmp_path / "a.png")
    preprocessing = described(f"{steps}, raw")
    picture = decode(tmp_path / "a.png", mode_of(preprocessing))
    got = normalize(fit(picture, preprocessing), preprocessing)
    np.testing.assert_array_equal(got, COLOURS.transpose(2, 0, 1)[order])


def test_levels_are_divided_shifted_and_scaled_in_the_networks_order() -> None:
    preprocessing = described("bgr, /2, mean 1 2 3, std 4 5 6")
    got = normalize(Image.fromarray(COLOURS[..., :3]), preprocessing)
    bgr = COLOURS[..., 2::-1].astype(np.float64)
    expected = (bgr / 2 - [1, 2, 3]) / [4, 5, 6]
    np.testing.assert_allclose(got, expected.transpose(2, 0, 1), rtol=1e-6)


@pytest.mark.parametrize(
    ("size", "frame", "inner"),  # Width and height; (left, top, right, bottom) of the picture.
    [
        ((40, 20), (20, 20), (0, 5, 20, 15)),
        ((20, 40), (20, 20), (5, 0, 15, 20)),
        ((30, 10), (20, 20), (0, 6, 20, 13)),  # 6.67 rounds to 7; 13 are left, 6 above.
        ((5, 5), (30, 20), (5, 0, 25, 20)),
        ((4000, 2), (20, 20), (0, 9, 20, 10)),
    ],
)
def test_a_letterbox_holds_the_whole_picture_in_its_proportions(size, frame, inner) -> None:
    preprocessing = parse(f"letterbox {frame[1]}x{frame[0]}, pad 7, rgb, raw")
    picture = fit(Image.new("RGB", size, (200, 201, 202)), preprocessing)
    got = normalize(picture, preprocessing)
    expected = np.full((3, frame[1], frame[0]), 7.0)
    left, top, right, bottom = inner
    expected[:, top:bottom, left:right] = np.array([200, 201, 202])[:, None, None]
    np.testing.assert_array_equal(got, expected)


def test_a_picture_to_be_kept_has_the_networks_size() -> None:
    preprocessing = parse("keep 6x7, raw")
    assert fit(Image.new("RGB", (7, 6)), preprocessing).size == (7, 6)
    with pytest.raises(UnreadablePicture, match="is 7x6, where the network takes 6x7"):
        fit(Image.new("RGB", (6, 7)), preprocessing)


def test_a_crop_may_be_no_square() -> None:
    assert fit(gradient(100, 50), parse("resize 20, crop 10x16, raw")).size == (16, 10)
