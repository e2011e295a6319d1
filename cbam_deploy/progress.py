"""Progress bars: on stderr, and gone when it is not a terminal or the work is done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


@contextmanager
def progress(*extra_fields: str, hidden: bool = False) -> Iterator[Progress]:
    """A rich `Progress` on stderr; add tasks to it with `add_task(description, total=...)`.

    Args:
        extra_fields: names of task fields to show after the bar, such as ``"loss"``; pass their
            values as keywords to `add_task` and `update`.
        hidden: show nothing, for the sake of another process that shows its own.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    console = Console(stderr=True)
    fields = [TextColumn(f"{name} {{task.fields[{name}]}}") for name in extra_fields]
    with RichProgress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        *fields,
        console=console,
        transient=True,
        disable=hidden or not console.is_terminal,
    ) as bar:
        yield bar
