"""Rows and columns of pictures as SVG for a page and as PNG for everything else."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rich.cells import cell_len

from cbam_deploy.report.plots import (
    WIDTH,
    blank_figure,
    drawable,
    plot_style,
    shortened,
    to_svg,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DOTS_PER_INCH = 200
_MOST_COLUMNS = 6  # More pictures go below.
_TITLE, _LINE = 20.0, 14.0  # Heights above the tiles of a row, and of a line below them.
_GAP, _NOTE_GAP = 6.0, 3.0
_CELL, _BOLD_CELL = 6.2, 6.7  # Widths of a letter; Chinese, Japanese and Korean ones take two.
_UNDRAWN = "□: letters that no font here has; the page has the names"


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


@dataclass(frozen=True)
class _Band:
    """A row of the figure: tiles beside one another, with their notes in lines."""

    title: str
    headings: tuple[str, ...]
    tiles: tuple[Tile, ...]
    notes: tuple[tuple[str, ...], ...]

    @property
    def above(self) -> float:
        """Height above the tiles."""
        return _TITLE if self.title or any(self.headings) else _GAP

    def height(self, side: float) -> float:
        """Of all of it, tiles being `side` wide and high."""
        return self.above + side + _GAP + _LINE * max(map(len, self.notes))


def picture_grid(rows: Sequence[Row], columns: Sequence[str]) -> tuple[str, bytes]:
    """The grid as ``<svg>`` (see `plots`) and as a PNG file on white.

    Pictures stand side by side as far as they stay large enough, the others below them. Where what
    stands above a column does not fit or cannot be drawn there, all are numbered, and a list below
    has them in full.

    Args:
        rows: from the top, as many tiles each as there are columns.
        columns: what stands above each column.

    Raises:
        MissingCapability: matplotlib is not installed.
    """
    blocks = -(-len(columns) // _MOST_COLUMNS)
    across = -(-len(columns) // blocks)
    side = (WIDTH - _GAP * (across - 1)) / across
    # A few tiles would be huge, and many could bear no note: both keep a size that reads well.
    side = min(side, WIDTH / 4)
    with plot_style():
        drawn = all(drawable(c) == c for c in (*columns, *(t.note for r in rows for t in r.tiles)))
    fits = drawn and all(cell_len(column) <= (side + _GAP) / _CELL for column in columns)
    numbers = [str(number) for number in range(1, len(columns) + 1)]
    headings = columns if fits else numbers
    legend = [] if fits else [f"{n}  {c}" for n, c in zip(numbers, columns, strict=True) if c]
    bands = [
        _Band(
            title=row.title,
            headings=tuple(headings[start : start + across]) if number == 0 else (),
            tiles=row.tiles[start : start + across],
            notes=tuple(_lines(tile.note, side) for tile in row.tiles[start : start + across]),
        )
        for start in range(0, len(columns), across)
        for number, row in enumerate(rows)
    ]
    total = sum(band.height(side) for band in bands) + _LINE * (len(legend) + (not drawn))
    with plot_style():
        figure = blank_figure(total)
        top = total
        for band in bands:
            _draw_band(figure, band, top, side)
            top -= band.height(side)
        for number, line in enumerate(legend):
            figure.text(0, (top - _LINE * number) / total, shortened(line, 56), va="top")
        svg = to_svg(figure)
        for text in figure.texts:
            text.set_text(drawable(text.get_text()))
        if not drawn:
            figure.text(0, _LINE / total, _UNDRAWN, va="top")
        png = io.BytesIO()
        figure.savefig(
            png,
            format="png",
            dpi=_DOTS_PER_INCH,
            facecolor="white",
            bbox_inches="tight",
            metadata={"Software": None},
        )
        return svg, png.getvalue()


def _lines(note: str, side: float) -> tuple[str, ...]:
    """A note as it fits below a tile: each line of it in one or two, the rest left out."""
    lines: list[str] = []
    for line in note.splitlines():
        widest = max(map(cell_len, line), default=1)
        letters = max(int(side / _BOLD_CELL / widest), 2)
        lines += textwrap.wrap(line, letters, max_lines=2, placeholder="…")
    return tuple(lines)


def _draw_band(figure: Figure, band: _Band, top: float, side: float) -> None:
    """Draw a row; distances are those of the figure, `WIDTH` wide."""
    total = figure.get_figheight() / figure.get_figwidth() * WIDTH
    heading = (top - 0.7 * _TITLE) / total
    if band.title:
        figure.text(0, heading, shortened(band.title, 56), fontweight="bold")
    for column, (tile, note) in enumerate(zip(band.tiles, band.notes, strict=True)):
        left, bottom = column * (side + _GAP), top - band.above - side
        ax = figure.add_axes((left / WIDTH, bottom / total, side / WIDTH, side / total))
        ax.set_axis_off()
        ax.imshow(tile.picture, interpolation="none", aspect="auto")
        middle = (left + side / 2) / WIDTH
        if band.headings:
            figure.text(middle, heading, band.headings[column], ha="center")
        figure.text(
            middle,
            (bottom - _NOTE_GAP) / total,
            "\n".join(note),
            ha="center",
            va="top",
            fontweight="bold" if tile.wrong else "normal",
            linespacing=1.1,
        )
