"""How a command ends: its result, or two lines on an error and the exit code of its kind."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from cbam_deploy.errors import CheckFailed, DeployError

DEBUG = "CBAM_DEPLOY_DEBUG"  # Environment variable: show tracebacks of errors.


def deliver(result: Any, as_json: bool, report: Path | None = None) -> None:
    """Print a result, write its report, and fail when it is a check that did not hold."""
    if report is not None:
        from cbam_deploy.report.json_file import write_json

        write_json(report, result.to_json())
    if as_json:
        from cbam_deploy.report.json_file import to_text

        sys.stdout.write(to_text(result.to_json()))
    else:
        from rich.console import Console

        Console().print(result)
    if not getattr(result, "passed", True):
        raise CheckFailed(*result.failure())


def run(command: Callable[[], int | None]) -> NoReturn:
    """Call `command` and exit; Ctrl-C and termination unwind the stack, so nothing is left."""
    interrupted = False

    def interrupt(_signum: int, _frame: object) -> NoReturn:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = command() or 0
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        # The reader of our output went away (`| head`); nothing is left to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        # Native libraries that Ctrl-C catches while they load turn it into errors of their own.
        code = 130 if interrupted else _report(error)
    if code == 130:
        sys.stderr.write("interrupted\n")
    sys.exit(code)


def _report(error: Exception) -> int:
    """Print the two lines of an error a person can act on; raise any other."""
    if isinstance(error, DeployError) and not os.environ.get(DEBUG):
        return _complain(error.message, error.hint, error.exit_code)
    # Usage errors are click's in older typer and typer's own in newer: known by their method.
    if hasattr(error, "format_message"):
        command = getattr(getattr(error, "ctx", None), "command_path", "cbam-deploy")
        return _complain(error.format_message(), f"see '{command} --help'", 2)
    raise error


def _complain(message: str, hint: str, code: int) -> int:
    for kind, text in (("error", message), ("hint", hint)):
        sys.stderr.write(f"{kind}: {' '.join(text.split())}\n")
    return code


def _terminate(signum: int, _frame: object) -> NoReturn:
    # Unwinds the stack, so that temporary files are removed as on Ctrl-C.
    sys.exit(128 + signum)
