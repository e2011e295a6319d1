"""What a result says, whichever renderer shows it: terminal, HTML or Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class KeyFigure:
    """One number of the section's tables that a page shows first and large: value with unit."""

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
            aligned to the right. Where all hold text, the last may hold sentences.
        emphasized: indices of rows to set apart, such as those where a check did not hold.
        spare: headings of columns that a narrow terminal leaves out, in this order.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    text_columns: int = 1
    emphasized: tuple[int, ...] = ()
    spare: tuple[str, ...] = ()

    @classmethod
    def facts(cls, rows: Iterable[tuple[str, str]]) -> Table:
        """Names and values, without those that are empty."""
        return cls(("", ""), tuple((name, value) for name, value in rows if value), text_columns=2)


@dataclass(frozen=True)
class Figure:
    """A plot, for renderers that show pictures.

    Attributes:
        draw: gives the SVG, as `plots` makes it.
        caption: below it.
        description: for who cannot see it.
    """

    draw: Callable[[], str]
    caption: str
    description: str


@dataclass(frozen=True)
class Section:
    """One part of a result; every part of it is optional but the title.

    Attributes:
        title: heading.
        intro: one paragraph of plain text.
        passed: whether the check that the section reports on held; None where there is none.
        key_figures: shown first and large on a page.
        figures: plots.
        tables: the numbers behind them.
        failures: a sentence for everything that did not hold.
        notes: what a reader must know to trust the section.
        background: left out on the terminal, like the machine that figures were measured on.
    """

    title: str
    intro: str = ""
    passed: bool | None = None
    key_figures: tuple[KeyFigure, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    background: bool = False
