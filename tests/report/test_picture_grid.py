"""A grid shows each picture once, titles and notes as text, at any number of columns."""

import re
import struct
import warnings

import numpy as np
import pytest

from cbam_deploy.report.picture_grid import Row, Tile, picture_grid


def grid(columns, note=""):
    tiles = tuple(Tile(np.full((8, 8, 3), shade, np.uint8), note) for shade in range(columns))
    return picture_grid(
        [Row("", tiles), Row("resnet20 CBAM", tiles)], [f"class {n}" for n in range(columns)]
    )


@pytest.mark.parametrize("columns", [1, 3, 12])
def test_each_tile_is_one_picture_under_its_heading(columns):
    svg, png = grid(columns)
    assert svg.count("<image") == 2 * columns
    assert "resnet20 CBAM" in svg
    assert all(f">class {number}<" in svg for number in range(columns))
    width, height = struct.unpack(">II", png[16:24])
    assert width > 0
    assert height > 0


def test_notes_are_text_and_the_grid_is_always_the_same():
    assert ">P = 0.97<" in grid(2, "P = 0.97")[0]
    assert grid(2) == grid(2)


def height_of(svg):
    """Height of the figure in units of its width, as the SVG's box says."""
    (box,) = re.findall(r'viewBox="([^"]*)"', svg.split(">")[0])
    return float(box.split()[3])


def test_names_that_do_not_fit_above_their_picture_are_listed_in_full_below():
    names = ["black-footed ferret, polecat, Mustela nigripes", "cat", *"cdefghijkl"]
    svg, _ = picture_grid([Row("", (Tile(np.zeros((8, 8, 3), np.uint8)),) * 12)], names)
    texts = re.findall(r">([^<>\s][^<>]*)</text>", svg)
    assert texts[:12] == [str(number) for number in range(1, 13)]
    assert [" ".join(text.split()) for text in texts[12:]] == [
        f"{number} {name}" for number, name in enumerate(names, 1)
    ]


def test_letters_that_no_font_has_stay_text_on_the_page_and_warn_of_nothing():
    tile = Tile(np.zeros((8, 8, 3), np.uint8), "P = 0.10\nsays 東京タワーの写真", wrong=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg, _ = picture_grid([Row("", (tile,) * 2)], ["猫", "\U0001f638"])
    assert ">1  猫<" in svg.replace("\xa0", " ")
    assert "タワーの写真" in svg


def test_pictures_that_would_be_small_go_below_one_another():
    heights = [height_of(grid(columns)[0]) for columns in (6, 7, 12)]
    assert heights[1] > 1.8 * heights[0]
    assert heights[2] == pytest.approx(2 * heights[0], rel=0.05)
