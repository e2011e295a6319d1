"""What each argument and option that names a file says about it: read, written, or both.

Every one of them has one of these functions as its callback. It refuses, before the command runs,
what cannot be read or written there, and outputs that would replace an input or one another.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import typer

from cbam_deploy.command_files import Input, check_regular, declare_input, declare_output
from cbam_deploy.errors import BadInput
from cbam_deploy.outputs import check_place

T = TypeVar("T")
_log = logging.getLogger(__name__)


def read(parameter: typer.CallbackParam, value: T) -> T:
    """For what names a file or folder to read, also as ``MODEL=CHECKPOINT`` or MODEL."""
    for text in _texts(value):
        model, equals, checkpoint = text.partition("=")
        _declare_read(parameter, text, *_sources(text))
        if equals:
            _declare_read(parameter, checkpoint, *_sources(model))
    return value


def read_and_replaced(parameter: typer.CallbackParam, value: T) -> T:
    """For a file to read that the output may replace, because it means the same."""
    for text in _texts(value):
        _declare_read(parameter, text, replaceable=True)
    return value


def read_as_model(parameter: typer.CallbackParam, value: T) -> T:
    """For a MODEL: a factory's source file is read."""
    for text in _texts(value):
        _declare_read(parameter, *_sources(text))
    return value


def read_as_function(parameter: typer.CallbackParam, value: T) -> T:
    """For a description, which may be a file, or in a function's source file."""
    for text in _texts(value):
        _declare_read(parameter, text, *_sources(text))
    return value


def written(parameter: typer.CallbackParam, value: T) -> T:
    """For a file to write; it may be a device or a pipe."""
    for text in _texts(value):
        check_place(Path(text))
        declare_output(Path(text), _name(parameter))
        _log.info("%s: writes %s", _name(parameter), text)
    return value


def written_artefact(parameter: typer.CallbackParam, value: T) -> T:
    """For a regular file to write."""
    for text in _texts(value):
        check_place(Path(text), artefact=True)
    return written(parameter, value)


def written_engine(parameter: typer.CallbackParam, value: T) -> T:
    """For an engine to write, with its manifest beside it."""
    for text in _texts(value):
        written_artefact(parameter, [text, f"{text}.json"])
    return value


def updated(parameter: typer.CallbackParam, value: T) -> T:
    """For a file that is read where it exists, and written."""
    for text in _texts(value):
        check_regular(Path(text))
    return written_artefact(parameter, value)


def written_in(*names: str) -> Callable[[typer.CallbackParam, T], T]:
    """For a folder in which the files `names` are written; without names it counts as a whole."""

    def callback(parameter: typer.CallbackParam, value: T) -> T:
        for text in _texts(value):
            for name in names or ("",):
                declare_output(Path(text, name), _name(parameter))
        return value

    return callback


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list | tuple) else [value]
    return [str(text) for text in values if text is not None]


def _name(parameter: typer.CallbackParam) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name).rstrip(".")
    return max(parameter.opts, key=len)


def _declare_read(parameter: typer.CallbackParam, *paths: str, replaceable: bool = False) -> None:
    for path in map(Path, paths):
        try:
            there = path.exists()
        except OSError as error:  # Such as a name that is too long for any file.
            raise BadInput(
                f"{_name(parameter)} {str(path)[:60]}: {error.strerror}", "check what you gave"
            ) from error
        if there:
            check_regular(path)
            _log.info("%s: reads %s", _name(parameter), path)
            holds = partial(_holds, path)
            declare_input(Input(path, _name(parameter), holds, replaceable))


def _sources(model: str) -> Iterator[str]:
    """The files that MODEL may be a factory of: ``path/file.py``, or those of a dotted module."""
    where, colon, _ = model.rpartition(":")
    if where.endswith(".py") or "/" in where:
        yield where
    elif colon:
        for folder in ("", *sys.path):
            module = os.path.join(folder, *where.split("."))  # noqa: PTH118
            yield from (f"{module}.py", os.path.join(module, "__init__.py"))  # noqa: PTH118


def _holds(source: Path, output: Path) -> bool:
    """Whether `output`, a file that exists, is read with `source`."""
    if source.is_dir():
        from cbam_deploy.data.pictures import EXTENSIONS

        inside = output.resolve().is_relative_to(source.resolve())
        return inside and output.suffix.lower() in EXTENSIONS
    beside = (source, *companions(source))
    return any(path.exists() and path.samefile(output) for path in beside)


def companions(source: Path) -> tuple[Path, ...]:
    """The files that are read along with `source`: an engine's manifest, a network's weights."""
    if source.suffix != ".onnx":
        return (source.with_name(f"{source.name}.json"),) if source.suffix == ".engine" else ()
    from cbam_deploy.graphs.onnx_file import data_files

    return tuple(data_files(source))
