"""The terminal: text of files and other people on it, and streams that cannot be written.

Names of classes, nodes and files are data: nothing in them is markup or a control sequence.
"""

from __future__ import annotations

import errno
import io
import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    from rich.console import Console

# Control characters move the cursor or recolour what follows; these reorder the text around them.
_REORDERING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def visible(text: str) -> str:
    r"""`text` with every control character but newline and tab written out, as ``\x1b``."""
    if text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode() if _is_control(char) else char for char in text
    )


def _is_control(char: str) -> bool:
    return char in _REORDERING or (
        char not in "\n\t" and unicodedata.category(char) in ("Cc", "Cs")
    )


def console(*, stderr: bool = False, file: TextIO | None = None) -> Console:
    """A rich console on which a plain string means itself; style comes as `rich.text.Text`.

    Args:
        stderr: write to standard error instead of standard output.
        file: write to this instead of either.
    """
    from rich.console import Console
    from rich.segment import Segment

    class Terminal(Console):
        def render(self, *arguments: Any, **options: Any) -> Iterator[Segment]:
            for segment in super().render(*arguments, **options):
                if segment.control:
                    yield segment
                else:
                    yield Segment(visible(segment.text), segment.style)

        def render_str(self, text: str, **options: Any) -> Any:
            return super().render_str(visible(text), **options)

    return Terminal(stderr=stderr, file=file, markup=False, emoji=False)


def show(result: Any) -> None:
    """Print a result that rich can draw on standard output.

    It fits its sentences to the terminal itself; what may not be broken, such as a command to
    paste, is left for the terminal to wrap.
    """
    console().print(result, soft_wrap=True)


def plain_text(result: Any) -> str:
    """What `show` prints, without styles and the last newline."""
    text = io.StringIO()
    console(file=text).print(result, soft_wrap=True)
    return text.getvalue().rstrip("\n")


class _Stream:
    """A text stream that survives its reader, its disk and its encoding.

    When it cannot be written any more, what follows is dropped: the work of a command does not
    depend on being watched.

    Attributes:
        error: why it could not be written; None while it can.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | None = None
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Write `text`, or drop it."""
        if self.error is None:
            try:
                self._stream.write(text)
            except OSError as error:
                self._lose(error)
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write each of `lines`."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Hand on what was written so far."""
        if self.error is None:
            try:
                self._stream.flush()
            except OSError as error:
                self._lose(error)

    def _lose(self, error: OSError) -> None:
        self.error = error
        # What is still in the buffer goes nowhere, then and at the interpreter's end.
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Let standard output and error survive what may happen to them, within the block."""
    _open_closed_descriptors()
    before = sys.stdout, sys.stderr
    out, err = _Stream(sys.stdout), _Stream(sys.stderr)
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        yield
    finally:
        out.flush()
        if out.error is not None and out.error.errno != errno.EPIPE:
            err.write(f"warning: standard output cannot be written ({out.error.strerror})\n")
        err.flush()
        sys.stdout, sys.stderr = before


def _open_closed_descriptors() -> None:
    """Give descriptors 0 to 2 that are closed to nothing: the next file opened would get them."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # The lowest that is free: `descriptor` itself.
        if getattr(sys, name) is None:
            mode = "r" if descriptor == 0 else "w"
            setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8", closefd=False))
