"""Content as Markdown: tables with everything in them, no plots."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cbam_deploy.outputs import write_errors, write_text
from cbam_deploy.report.content import Section, Table

if TYPE_CHECKING:
    from cbam_deploy.report.result import Result

_COLLECTED = "GITHUB_STEP_SUMMARY"  # Where GitHub's runner collects what commands of a job add.


def write_summary(result: Result, path: Path) -> None:
    """Write `result` as Markdown to `path`, whole; added to the end of what GitHub collects.

    Raises:
        BadInput: `path` cannot be written.
    """
    text = result.markdown()
    collected = os.environ.get(_COLLECTED)
    if collected and os.path.realpath(collected) == os.path.realpath(path):
        with write_errors(path), path.open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")
    else:
        write_text(path, text)


def to_markdown(title: str, sections: Sequence[Section]) -> str:
    """`sections` below one heading, of which one called the same has no second.

    Text of names is shown as it is.
    """
    return "\n".join(_lines(title, sections)) + "\n"


def _lines(title: str, sections: Sequence[Section]) -> Iterator[str]:
    headed = bool(sections) and sections[0].title == title
    if title and not headed:
        yield from (f"# {_escaped(title)}", "")
    for number, section in enumerate(sections):
        verdict = {None: "", True: ": passed", False: ": failed"}[section.passed]
        level = "#" if headed and number == 0 else "##"
        yield from (*("",)[: number > 0], f"{level} {_escaped(section.title)}{verdict}")
        if section.intro:
            yield from ("", _escaped(section.intro))
        for table in section.tables:
            if table.caption:
                yield from ("", _escaped(table.caption))
            yield ""
            yield from _table(table)
        listed = (*section.failures, *section.notes)
        if listed:
            yield ""
        yield from (f"- {_escaped(sentence)}" for sentence in listed)


def _table(table: Table) -> Iterator[str]:
    numbers = len(table.columns) - table.text_columns
    yield _row(table.columns)
    yield "|" + "---|" * table.text_columns + "--:|" * numbers
    yield from map(_row, table.rows)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_escaped, cells))} |"


def _escaped(text: str) -> str:
    """`text` on one line, without what Markdown or HTML would take for its own."""
    plain = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{char}" if char in r"\`*_[]|" else char for char in plain)
