"""Run code of a person's own: however it fails, what they read is one sentence about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cbam_deploy.errors import BadInput, DeployError

_MOST_CHARACTERS = 300


@contextmanager
def foreign_code(what: str, hint: str = "--debug shows the traceback") -> Iterator[None]:
    """Turn whatever a factory or a module raises, `SystemExit` included, into `BadInput`.

    Ctrl-C stays an interrupt.

    Args:
        what: what was done, as the beginning of the message, such as ``net.py:f: the factory``.
        hint: what to do about it.
    """
    try:
        yield
    except (DeployError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise BadInput(f"{what} failed ({reason(error)})", hint) from error


def reason(error: BaseException) -> str:
    """An exception's class and text, in one line of bounded length."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # Even the text is theirs.
        text = ""
    if len(text) > _MOST_CHARACTERS:
        text = f"{text[:_MOST_CHARACTERS]}…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
