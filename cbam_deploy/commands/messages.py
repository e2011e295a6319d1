"""What a command says besides its result: notes, warnings of libraries, progress.

The level of our own log decides. By default warnings of ours are lines on standard error; below
that (``--quiet``) nothing is said, nor is progress shown; above it (``--verbose``) there are our
notes, and the warnings and logs of libraries, which are otherwise dropped.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from cbam_deploy.errors import BadInput
from cbam_deploy.terminal import visible

DEBUG = "CBAM_DEPLOY_DEBUG"  # Environment variable: show tracebacks of errors.
_OURS = logging.getLogger("cbam_deploy")


def be_quiet(value: bool) -> None:
    """For ``--quiet``."""
    if value:
        _set_level(logging.ERROR)


def be_verbose(value: bool) -> None:
    """For ``--verbose``."""
    if value:
        _set_level(logging.INFO)


def show_tracebacks(value: bool) -> None:
    """For ``--debug``."""
    if value:
        os.environ[DEBUG] = "1"


def _set_level(level: int) -> None:
    if _OURS.level not in (logging.NOTSET, level):
        raise BadInput("--quiet and --verbose exclude each other", "leave one of them out")
    _OURS.setLevel(level)


@contextmanager
def messages_on_stderr() -> Iterator[None]:
    """Make each message one line on standard error, within the block."""
    if os.environ.get(DEBUG):
        yield
        return
    handler = logging.StreamHandler()
    handler.addFilter(lambda record: _is_ours(record) or _OURS.isEnabledFor(logging.INFO))
    handler.setFormatter(_OneLine())
    logging.root.addHandler(handler)  # Without one, libraries that log would install their own.
    shows, level = warnings.showwarning, _OURS.level
    warnings.showwarning = _log_warning  # type: ignore[assignment]
    _OURS.setLevel(logging.NOTSET)
    try:
        yield
    finally:
        warnings.showwarning = shows
        _OURS.setLevel(level)
        logging.root.removeHandler(handler)


def _is_ours(record: logging.LogRecord) -> bool:
    return record.name.partition(".")[0] == _OURS.name


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        source = "" if _is_ours(record) else f"{record.name}: "
        text = f"{record.levelname.lower()}: {source}{super().format(record)}"
        return visible(" ".join(text.split()))


def _log_warning(message: Warning | str, category: type[Warning], *_: object) -> None:
    """In place of `warnings.showwarning`."""
    logging.getLogger("warnings").warning("%s: %s", category.__name__, message)
