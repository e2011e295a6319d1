"""Find and run code of a person's own: however it fails, they read one sentence about it."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

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


def named_object(name: str, kind: str, form: str) -> Callable[..., Any]:
    """The callable that ``package.module:name`` or ``path/file.py:name`` points to.

    Args:
        name: as the person wrote it on the command line; never what a file records.
        kind: what it shall be, for the message, such as ``model``.
        form: the hint: what to write.

    Raises:
        BadInput: nothing is there, importing it fails, or it is not callable.
    """
    where, _, attribute = name.rpartition(":")
    if not where or not attribute:
        raise BadInput(f"{kind} {name!r} lacks a part", form)
    with importable(name):
        module = _import_file(Path(where), form) if _is_file(where) else _import_module(where)
        with foreign_code(f"{name}: looking it up"):
            found = getattr(module, attribute, None)
    if found is None:
        raise BadInput(f"{where} has no {attribute!r}", form)
    if not callable(found):
        raise BadInput(f"{name} is a {type(found).__name__}, not a callable", form)
    return found  # type: ignore[no-any-return]


@contextmanager
def importable(name: str) -> Iterator[None]:
    """Let the folder of the file in `name`, or the current one, be searched for modules."""
    where = name.rpartition(":")[0]
    before = list(sys.path)
    sys.path.insert(0, str(Path(where).resolve().parent if _is_file(where) else Path.cwd()))
    try:
        yield
    finally:
        sys.path[:] = before


def _is_file(where: str) -> bool:
    return where.endswith(".py") or "/" in where


def _import_file(path: Path, form: str) -> ModuleType:
    if not path.is_file():
        raise BadInput(f"{path}: no such file", form)
    # A name of its own, so that it neither shadows nor meets a module of the same file name.
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    spec = importlib.util.spec_from_file_location(f"_cbam_deploy_own_{digest}", path)
    loader = spec.loader if spec else None
    if spec is None or loader is None:
        raise BadInput(f"{path}: is not a Python file", form)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # Dataclasses and pickle look their module up there.
    with foreign_code(f"{path}: importing it"):
        loader.exec_module(module)
    return module


def _import_module(name: str) -> ModuleType:
    with foreign_code(f"{name}: importing it"):
        return importlib.import_module(name)
