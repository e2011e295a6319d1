"""Content on the terminal, in the width there is.

A row is one line, and a name is never broken: where a table is too wide, it leaves out columns that
can be spared, and if that is not enough each name has a line of its own, above its figures. Only
sentences are wrapped. Text means itself: no markup, control characters written out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.text import Text

from cbam_deploy.report.content import Section, Table
from cbam_deploy.terminal import visible

_GAP = "  "
_SENTENCE = 24  # Columns at least, to wrap sentences in.


class Shown:
    """Sections as rich prints them, and the `page` to open, if one was written."""

    def __init__(self, sections: Sequence[Section], page: str = "") -> None:
        self.sections = [section for section in sections if not section.background]
        self.page = page

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        for number, section in enumerate(self.sections):
            if number:
                yield Text()
            yield from _section(section, options.max_width)
        if self.page:
            yield from _paragraph(f"open {self.page}", options.max_width)


def _section(section: Section, width: int) -> Iterator[Text]:
    title = Text(visible(section.title), "bold")
    if section.passed is not None:
        verdict = Text("passed", "green") if section.passed else Text("failed", "bold red")
        title.append(": ").append_text(verdict)
    yield title
    if section.intro:
        yield from _paragraph(section.intro, width)
    for number, table in enumerate(section.tables):
        if number or (table.caption and section.intro):
            yield Text()
        if table.caption:
            yield from _paragraph(table.caption, width, "italic")
        yield from _table(table, width)
    for sentence in section.failures:
        yield from _paragraph(sentence, width, "red")
    for sentence in section.notes:
        yield from _paragraph(f"note: {sentence}", width, "yellow")


def _table(table: Table, width: int) -> Iterator[Text]:
    rows = [[_one_line(cell) for cell in row] for row in (table.columns, *table.rows)]
    sizes = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    last = len(sizes) - 1
    wraps = table.text_columns > last > 0
    least = [*sizes[:-1], min(sizes[-1], _SENTENCE)] if wraps else sizes
    shown, apart = _fitting(table, least, width)
    if wraps:
        others = sum(sizes[c] + len(_GAP) for c in shown[:-1]) + apart * len(_GAP)
        sizes[last] = min(sizes[last], max(width - others, _SENTENCE))
    headed = any(table.columns)
    for number, row in enumerate(rows):
        if not (number or headed):
            continue
        style = "bold" if number == 0 else "red" if number - 1 in table.emphasized else ""
        if apart and not (number and row[0] == rows[number - 1][0]):
            yield Text(row[0], style)
        cells = [_wrapped(row[c], sizes[c]) if wraps and c == last else [row[c]] for c in shown]
        for line in range(max(map(len, cells))):
            texts = [
                _aligned(lines[line] if line < len(lines) else "", sizes[c], c < table.text_columns)
                for c, lines in zip(shown, cells, strict=True)
            ]
            broad = wraps and len(texts) > 1 and cell_len(texts[-1]) > sizes[last]
            first = Text(
                ((_GAP if apart else "") + _GAP.join(texts[: -1 if broad else None])), style
            )
            if not headed:
                first.stylize("bold", 0, len(texts[0]))
            first.rstrip()
            yield first
            if broad:
                yield Text(_GAP + texts[-1], style)


def _fitting(table: Table, least: Sequence[int], width: int) -> tuple[list[int], bool]:
    """The columns that fit, as far as any do, and whether the names stand apart from them."""
    for apart in (False, True):
        shown = list(range(int(apart), len(least)))
        for heading in ("", *table.spare):
            if heading:
                shown.remove(table.columns.index(heading))
            if sum(least[c] for c in shown) + len(_GAP) * (len(shown) - 1 + apart) <= width:
                return shown, apart
        if len(least) == 1:
            break
    return shown, apart


def _aligned(text: str, size: int, left: bool) -> str:
    blank = " " * (size - cell_len(text))
    return text + blank if left else blank + text


def _wrapped(text: str, width: int) -> list[str]:
    """`text` in lines of whole words; one that is wider has a line of its own."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and cell_len(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _paragraph(text: str, width: int, style: str = "") -> Iterator[Text]:
    for part in visible(text).split("\n"):
        for line in _wrapped(part, width):
            yield Text(line, style)


def _one_line(cell: str) -> str:
    return visible(cell).replace("\n", "\\n").replace("\t", "\\t")
