"""How a command ends: its result, or two lines on an error and the exit code of its kind."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from cbam_deploy.commands.messages import DEBUG, messages_on_stderr
from cbam_deploy.errors import CheckFailed, DeployError, Terminated
from cbam_deploy.terminal import lasting_streams, show, visible

INTERRUPTED = 130


_KEPT: ContextVar[list[Any] | None] = ContextVar("kept", default=None)


def deliver(
    result: Any,
    *,
    as_json: bool,
    report: Path | None = None,
    html: Path | None = None,
    summary: Path | None = None,
) -> None:
    """Print a result, write its files, and fail when it is a check that did not hold."""
    if report is not None:
        from cbam_deploy.report.json_file import write_json

        write_json(report, result.to_json())
    if summary is not None:
        from cbam_deploy.report.markdown import write_summary

        write_summary(result, summary)
    kept = _KEPT.get()
    if kept is not None:
        kept.append(result)
    elif as_json:
        from cbam_deploy.report.json_file import to_text

        sys.stdout.write(to_text(result.to_json()))
    else:
        show(result)
    if html is not None:  # Last: it needs matplotlib where there are plots.
        from cbam_deploy.report.html import write_page

        write_page(result, html)
    if not getattr(result, "passed", True):
        raise getattr(result, "error", None) or CheckFailed(*result.failure())


@contextmanager
def results_kept() -> Iterator[list[Any]]:
    """Collect the results of the commands within the block, instead of printing them."""
    results: list[Any] = []
    token = _KEPT.set(results)
    try:
        yield results
    finally:
        _KEPT.reset(token)


def run(command: Callable[[], int | None]) -> NoReturn:
    """Call `command` and exit; Ctrl-C and termination unwind the stack, so nothing is left."""
    interrupted = False
    process = os.getpid()

    def interrupt(_signum: int, frame: FrameType | None) -> NoReturn:
        nonlocal interrupted
        interrupted = True
        if _is_importing(frame):
            _leave_at_once(process)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, _terminate)
    with lasting_streams(), messages_on_stderr(), _interrupts_raised_again():
        try:
            code = command() or 0
        except KeyboardInterrupt:
            code = INTERRUPTED
        except Exception as error:
            # Native libraries that Ctrl-C catches while they load make errors of their own of it.
            code = INTERRUPTED if interrupted else _report(error)
        # The work is done; the interpreter's own end is short and would not take it quietly.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if interrupted or code == INTERRUPTED:
            code = INTERRUPTED
            sys.stderr.write("interrupted\n")
    sys.exit(code)


@contextmanager
def _interrupts_raised_again() -> Iterator[None]:
    before, sys.unraisablehook = sys.unraisablehook, _raise_again
    try:
        yield
    finally:
        sys.unraisablehook = before


def _raise_again(ignored: sys.UnraisableHookArgs) -> None:
    """In place of `sys.unraisablehook`: a Ctrl-C that came where nothing can be raised."""
    if ignored.exc_type is KeyboardInterrupt:
        again = threading.Timer(0.02, signal.raise_signal, [signal.SIGINT])
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(ignored)


def _is_importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported; many of them swallow what is raised meanwhile."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _leave_at_once(process: int) -> NoReturn:
    """End without unwinding, but with nothing left behind by `process`."""
    if os.getpid() == process:
        outputs = sys.modules.get("cbam_deploy.outputs")
        if outputs is not None:
            outputs.remove_unfinished()
        show_cursor = b"\x1b[?25h" if os.isatty(2) else b""
        os.write(2, show_cursor + b"interrupted\n")
    os._exit(INTERRUPTED)


def _report(error: Exception) -> int:
    """Print the two lines of an error a person can act on; raise any other."""
    if isinstance(error, DeployError) and not os.environ.get(DEBUG):
        return complain(error.message, error.hint, error.exit_code)
    # Usage errors are click's in older typer and typer's own in newer: known by their method.
    if hasattr(error, "format_message"):
        command = getattr(getattr(error, "ctx", None), "command_path", "cbam-deploy")
        # A choice is checked by pydantic, which says first that it is a value that is wrong.
        message = error.format_message().replace("Value error, ", "")
        return complain(message, f"see '{command} --help'", 2)
    if _lacks_memory(error) and not os.environ.get(DEBUG):
        return complain(
            "this machine has not the memory for that",
            "use a smaller batch, image size or number of classes",
            3,
        )
    raise error


def _lacks_memory(error: BaseException) -> bool:
    """Whether Python, NumPy, PyTorch or ONNX Runtime could not allocate what it needed."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(sign in text for sign in _NO_MEMORY)


_NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "bad allocation",
    "bad_alloc",
    "failed to allocate memory",
)


def complain(message: str, hint: str, code: int) -> int:
    """Print the two lines of an error; give its exit code."""
    for kind, text in (("error", message), ("hint", hint)):
        sys.stderr.write(f"{kind}: {visible(' '.join(text.split()))}\n")
    return code


def _terminate(signum: int, _frame: object) -> NoReturn:
    # Unwinds the stack, so that temporary files are removed as on Ctrl-C.
    raise Terminated(128 + signum)
