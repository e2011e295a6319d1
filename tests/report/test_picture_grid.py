"""A grid shows each picture once, titles and notes as text, at any number of columns."""

import struct

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
