"""Defaults are the paper's recipe; augmentation does what it says."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from PIL import Image

from cbam_deploy.data.pictures import fit
from cbam_deploy.errors import BadInput
from cbam_deploy.preprocessing import Preprocessing
from cbam_deploy.training.augment import (
    augmentation_for,
    random_resized_crop_and_flip,
    random_shift,
)
from cbam_deploy.training.settings import Settings

SMALL = Preprocessing.for_size(16)


def coordinates(width: int, height: int) -> Image.Image:
    """A picture whose red is the column and whose green is the row, as share of 255."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 99)], -1).astype(np.uint8))


def test_learning_rate_falls_tenfold_every_thirty_epochs() -> None:
    rates = [Settings().lr_at(epoch) for epoch in (0, 29, 30, 59, 60, 89)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert (Settings().epochs, Settings().momentum, Settings().weight_decay) == (90, 0.9, 1e-4)


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("seed", (-1, 2**63, 10**30)),
        ("epochs", (0, -1, 2**31, 10**30)),
        ("batch_size", (0, 10**12)),
        ("lr", (0.0, -0.1, math.nan, math.inf, 1e39)),
        ("lr_step", (0, 10**20)),
        ("lr_gamma", (0.0, math.nan, math.inf, 1e6)),
        ("momentum", (-0.1, math.nan, math.inf)),
        ("weight_decay", (-1.0, math.inf)),
    ],
)
def test_numbers_out_of_range_are_refused_by_the_options_name(
    option: str, values: tuple[float, ...]
) -> None:
    for value in values:
        named = f"--{option.replace('_', '-')} {value}"
        with pytest.raises(BadInput, match=re.escape(named)):
            Settings(**{"epochs": 900, option: value}).check()


def test_numbers_at_the_ends_of_their_ranges_are_taken() -> None:
    Settings(seed=2**63 - 1, epochs=2**31 - 1, momentum=0.0, weight_decay=0.0, lr=1e30).check()


def test_photographs_are_cropped_and_flipped_digits_are_not() -> None:
    assert augmentation_for("auto", "digits") is random_shift
    assert augmentation_for("auto", "some/folder") is random_resized_crop_and_flip
    assert augmentation_for("none", "digits") is None


def test_random_crops_have_the_areas_and_aspects_of_the_recipe() -> None:
    picture = coordinates(300, 300)
    areas, aspects, flips = [], [], 0
    for seed in range(300):
        crop = random_resized_crop_and_flip(picture, SMALL, np.random.default_rng(seed))
        assert crop.size == (16, 16)
        pixels = np.asarray(crop, np.float64)
        # Slopes give the part's sides back: 15 of its 16 pixels lie between the outer centres.
        width = (pixels[8, -1, 0] - pixels[8, 0, 0]) / 255 * 300 * 16 / 15
        height = (pixels[-1, 8, 1] - pixels[0, 8, 1]) / 255 * 300 * 16 / 15
        flips += width < 0
        areas.append(abs(width) * height / 300**2)
        aspects.append(abs(width) / height)
    assert 0.06 < min(areas) < 0.12
    assert 0.8 < max(areas) < 1.02
    assert 0.7 < min(aspects) < 0.8
    assert 1.25 < max(aspects) < 1.45
    assert 110 < flips < 190  # Within 4.6 standard deviations of 150.


def test_extreme_pictures_give_their_centre() -> None:
    crop = random_resized_crop_and_flip(coordinates(400, 4), SMALL, np.random.default_rng(1))
    assert np.asarray(crop, np.float64)[..., 0].mean() == pytest.approx(127.5, abs=2)


def test_shifts_move_by_up_to_an_eighth_and_never_mirror() -> None:
    picture = coordinates(16, 16)
    plain = np.asarray(fit(picture, SMALL))
    seen = set()
    for seed in range(200):
        moved = np.asarray(random_shift(picture, SMALL, np.random.default_rng(seed)))
        rows, columns = np.nonzero(moved[..., 2])
        inside = moved[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        top, left = rows.min(), columns.min()
        down = int(top) if top else 15 - int(rows.max())
        right = int(left) if left else 15 - int(columns.max())
        assert max(down, right) <= 2
        source_top, source_left = (0 if top else down), (0 if left else right)
        height, width = inside.shape[:2]
        expected = plain[source_top : source_top + height, source_left : source_left + width]
        assert np.array_equal(inside, expected)
        seen.add((down if top else -down, right if left else -right))
    assert len(seen) == 25
