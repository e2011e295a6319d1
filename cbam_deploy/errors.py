"""What can go wrong, said once: one ``error:`` line, one ``hint:`` line, one exit code.

Every error that a person can cause or mend is a `DeployError`; the command line prints its two
lines and exits with its code. Anything else that escapes is a defect and shows its traceback.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


def installation_of(extra: str) -> str:
    """A hint: the command that adds an extra of pyproject.toml, which no package index has."""
    return f"pip install -e '.[{extra}]' in the clone of cbam-deploy"


def in_one_line(error: BaseException, most: int = 300) -> str:
    """An exception's text, or its class if it has none, in one line of `most` letters or less."""
    return (" ".join(str(error).split()) or type(error).__name__)[:most]


class DeployError(Exception):
    """An error a person can act on.

    Args:
        message: what is wrong, naming the file or value at fault, without a final full stop.
        hint: what to do about it.
    """

    exit_code = 2

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Terminated(SystemExit):
    """Somebody asked this process to end: no failure of the code that it happened to run."""


class BadInput(DeployError):
    """A file, option or combination of options that cannot work (exit code 2)."""


class CheckFailed(DeployError):
    """A check ran and did not hold: parity, accuracy or speed (exit code 1)."""

    exit_code = 1


class MissingCapability(DeployError):
    """This machine lacks what the command needs, such as a GPU or a package (exit code 3)."""

    exit_code = 3


@contextmanager
def imports_for(purpose: str, extra: str) -> Iterator[None]:
    """Import packages of an extra; `MissingCapability` says what for where one is not there."""
    try:
        yield
    except ImportError as error:
        raise MissingCapability(purpose, installation_of(extra)) from error
