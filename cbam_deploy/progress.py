"""Progress bars: on stderr, and gone when it is not a terminal or the work is done.

Whoever silences the warnings of our log, as `--quiet` does, sees none.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cbam_deploy.terminal import console, visible

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
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    terminal = console(stderr=True)
    fields = [TextColumn(f"{name} {{task.fields[{name}]}}", markup=False) for name in extra_fields]
    with RichProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        *fields,
        console=terminal,
        transient=True,
        disable=hidden or _is_quiet() or not terminal.is_terminal,
    ) as bar:
        yield bar


def announce(line: str) -> None:
    """Say on stderr what the work has come to, unless nothing is to be said."""
    if not _is_quiet():
        sys.stderr.write(f"{visible(line)}\n")
        sys.stderr.flush()


def _is_quiet() -> bool:
    return not logging.getLogger("cbam_deploy").isEnabledFor(logging.WARNING)
