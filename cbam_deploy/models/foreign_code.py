"""Run code of a person's own: however it fails, what they read is one sentence about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cbam_deploy.errors import BadInput, DeployError, Terminated

_MOST_CHARACTERS = 300


@contextmanager
def foreign_code(what: str, hint: str = "--debug shows the traceback") -> Iterator[None]:
    """Turn whatever a factory or a module raises, `SystemExit` included, into `BadInput`.

    Ctrl-C stays an interrupt, and a request to end the process one.

    Args:
        what: what was done, as the beginning of the message, such as ``net.py:f: the factory``.
        hint: what to do about it.
    """
    try:
        yield
    except (DeployError, KeyboardInterrupt, Terminated):
        raise
    except BaseException as error:
        raise BadInput(f"{what} failed ({reason(error)})", hint) from error


@contextmanager
def exits_as_errors() -> Iterator[None]:
    """Turn `SystemExit` and its like, which ``except Exception`` lets pass, into `RuntimeError`."""
    try:
        yield
    except (Exception, KeyboardInterrupt, Terminated):
        raise
    except BaseException as error:
        # Without a cause: whoever looks for the first one shall find this.
        raise RuntimeError(reason(error))  # noqa: B904


def reason(error: BaseException) -> str:
    """An exception's class and text, in one line of bounded length."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # Even the text is theirs.
        text = ""
    if len(text) > _MOST_CHARACTERS:
        text = f"{text[:_MOST_CHARACTERS]}…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
