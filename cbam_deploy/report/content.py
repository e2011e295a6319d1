"""What a report page is made of, whatever it reports on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KeyFigure:
    """One number that a reader should not have to look for: value with unit, and a line on it."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of text.

    Attributes:
        columns: headings; all empty for a table of names and values that needs none.
        rows: as many cells each as there are columns.
        caption: what the table shows, with units where the headings have none.
        text_columns: number of leading columns that hold text; the others hold numbers and are
            aligned to the right.
        emphasized: indices of rows to set apart, such as those where a check did not hold.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    text_columns: int = 1
    emphasized: tuple[int, ...] = ()


@dataclass(frozen=True)
class Figure:
    """A plot: SVG as `plots` draws it, a caption, and a description for who cannot see it."""

    svg: str
    caption: str
    description: str


@dataclass(frozen=True)
class Section:
    """One part of a page; every part of it is optional but the title.

    Attributes:
        title: heading.
        intro: one paragraph of plain text.
        passed: whether the check that the section reports on held; None where there is none.
        key_figures: shown first and large.
        figures: plots.
        tables: the numbers behind them.
        notes: what a reader must know to trust the section.
    """

    title: str
    intro: str = ""
    passed: bool | None = None
    key_figures: tuple[KeyFigure, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
