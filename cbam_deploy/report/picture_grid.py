"""Rows and columns of pictures as SVG for a page and as PNG for everything else."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cbam_deploy.report.plots import WIDTH, blank_figure, plot_style, shortened, to_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DOTS_PER_INCH = 200
_TITLE, _LINE = 20.0, 14.0  # Heights above the tiles of a row, and of a line below them.
_GAP, _NOTE_GAP = 6.0, 3.0


@dataclass(frozen=True)
class Tile:
    """A picture, uint8 [H, W, 3], a note below it, and whether the note reports something wrong."""

    picture: NDArray[np.uint8]
    note: str = ""
    wrong: bool = False


@dataclass(frozen=True)
class Row:
    """A title and one tile per column."""

    title: str
    tiles: tuple[Tile, ...]


def picture_grid(rows: Sequence[Row], columns: Sequence[str]) -> tuple[str, bytes]:
    """The grid as ``<svg>`` (see `plots`) and as a PNG file on white.

    Args:
        rows: from the top, as many tiles each as there are columns.
        columns: what stands above each column.

    Raises:
        MissingCapability: matplotlib is not installed.
    """
    side = (WIDTH - _GAP * (len(columns) - 1)) / len(columns)
    # A few tiles would be huge, and many could bear no note: both keep a size that reads well.
    side = min(side, WIDTH / 4)
    heights = [
        (_TITLE if row.title or number == 0 else _GAP)
        + side
        + max(_GAP + _LINE * len(tile.note.splitlines()) for tile in row.tiles)
        for number, row in enumerate(rows)
    ]
    total = sum(heights)
    with plot_style():
        figure = blank_figure(total)
        top = total
        for number, (row, height) in enumerate(zip(rows, heights, strict=True)):
            above = _TITLE if row.title or number == 0 else _GAP
            heading = (top - 0.7 * _TITLE) / total
            if row.title:
                figure.text(0, heading, shortened(row.title, 60), fontweight="bold")
            for column, tile in enumerate(row.tiles):
                left = column * (side + _GAP)
                _draw_tile(figure, tile, left, top - above - side, side)
                if number == 0:
                    middle = (left + side / 2) / WIDTH
                    figure.text(middle, heading, shortened(columns[column], 12), ha="center")
            top -= height
        png = io.BytesIO()
        figure.savefig(
            png,
            format="png",
            dpi=_DOTS_PER_INCH,
            facecolor="white",
            bbox_inches="tight",
            metadata={"Software": None},
        )
        return to_svg(figure), png.getvalue()


def _draw_tile(figure: Figure, tile: Tile, left: float, bottom: float, side: float) -> None:
    """Draw a tile and its note; distances are those of the figure, `WIDTH` wide."""
    total = figure.get_figheight() / figure.get_figwidth() * WIDTH
    ax = figure.add_axes((left / WIDTH, bottom / total, side / WIDTH, side / total))
    ax.set_axis_off()
    ax.imshow(tile.picture, interpolation="none", aspect="auto")
    figure.text(
        (left + side / 2) / WIDTH,
        (bottom - _NOTE_GAP) / total,
        tile.note,
        ha="center",
        va="top",
        fontweight="bold" if tile.wrong else "normal",
        linespacing=1.1,
    )
