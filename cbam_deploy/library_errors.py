"""What ONNX's libraries say of a file that passed our checks and still is none they can take.

A file can be wrong in ways that only running it shows. What its library raises then is said of the
file, with a hint, as any other fault of a file; whatever our own code raises is a defect, and stays
one.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from cbam_deploy.errors import BadInput, in_one_line

P = ParamSpec("P")
R = TypeVar("R")

_LIBRARIES = {
    "onnx": "onnx",
    "onnx_ir": "onnx-ir",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "polygraphy": "Polygraphy",
    "tensorrt": "TensorRT",
    "tensorrt_rtx": "TensorRT-RTX",
}


def said_of_the_file(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function of a file, or of several, its first argument.

    Errors raised inside a library of `_LIBRARIES`, and want of memory, become `BadInput`.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with _quiet():
                return function(*args, **kwargs)
        except MemoryError as error:
            raise BadInput(
                f"{_name(args)}: needs more memory than there is ({in_one_line(error)})",
                "give a smaller batch or size, or a file that asks for less",
            ) from error
        except Exception as error:
            library = _raised_in(error.__traceback__)
            if isinstance(error, BadInput) or library is None:
                raise
            raise BadInput(
                f"{_name(args)}: {library} cannot take it ({in_one_line(error)})",
                "check the file, or export it again; --debug shows the traceback",
            ) from error

    return wrapped


@contextmanager
def _quiet() -> Iterator[None]:
    """What onnx-ir logs, tracebacks among it, is for its developers."""
    log = logging.getLogger("onnx_ir")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


def _name(args: tuple[Any, ...]) -> str:
    first = args[0] if args else "the file"
    return ", ".join(map(str, first)) if isinstance(first, list | tuple) else str(first)


def _raised_in(trace: TracebackType | None) -> str | None:
    """The library whose code raised the error at the end of `trace`."""
    package = ""
    while trace is not None:
        package = str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        trace = trace.tb_next
    return _LIBRARIES.get(package)
