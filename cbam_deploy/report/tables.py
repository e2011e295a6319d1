"""Tables and lines for the terminal in which text means itself.

Names of classes, nodes and files may hold anything: rich would take ``[bold]`` for markup and stop
at ``[/x]``. Here plain strings are shown as they are, control characters written out; style comes
as `rich.text.Text`.
"""

from __future__ import annotations

from typing import Any, cast

from rich.console import Group as RichGroup
from rich.console import RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from cbam_deploy.terminal import visible

__all__ = ["Group", "RenderableType", "Table", "Text", "plain", "styled"]


def plain(part: Any) -> Any:
    """A string as text without markup; anything else as it is."""
    return Text(visible(part)) if isinstance(part, str) else part


def styled(text: str, style: str) -> Text:
    """`text` in a style of rich such as ``bold red``."""
    return Text(visible(text), style=style)


class Table(RichTable):
    """A rich table whose headings, title and cells are plain text."""

    def __init__(self, *headings: Any, title: str | None = None, **options: Any) -> None:
        style = options.get("title_style") or "table.title"
        shown = None if title is None else styled(title, style)
        super().__init__(*headings, title=shown, **options)

    @classmethod
    def grid(cls, *headings: Any, **options: Any) -> Table:
        """A table without lines; see rich."""
        return cast(Table, super().grid(*headings, **options))

    def add_column(self, header: Any = "", *arguments: Any, **options: Any) -> None:
        """Add a column; see rich."""
        super().add_column(plain(header), *arguments, **options)

    def add_row(self, *cells: Any, **options: Any) -> None:
        """Add a row; see rich."""
        super().add_row(*map(plain, cells), **options)


class Group(RichGroup):
    """Parts one below the other; strings among them are plain text."""

    def __init__(self, *parts: Any, **options: Any) -> None:
        super().__init__(*map(plain, parts), **options)
