"""Build a model of the user's own: ``package.module:factory`` or ``path/file.py:factory``."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from torch import nn
from torch.optim.swa_utils import AveragedModel

from cbam_deploy.errors import BadInput
from cbam_deploy.models.foreign_code import foreign_code

_FORM = "give package.module:factory or path/file.py:factory, a callable that returns an nn.Module"


def is_factory(name: str) -> bool:
    """Whether MODEL `name` means a factory, not a network of the zoo."""
    return ":" in name


def call_factory(name: str) -> nn.Module:
    """Import what `name` points to and call it without arguments.

    The file's folder, or the current one for a dotted module name, is importable meanwhile.

    Raises:
        BadInput: nothing is there, it fails, or what it returns is no nn.Module.
    """
    where, _, attribute = name.rpartition(":")
    if not where or not attribute:
        raise BadInput(f"model {name!r} lacks a part", _FORM)
    is_file = where.endswith(".py") or "/" in where
    folder = Path(where).resolve().parent if is_file else Path.cwd()
    with _importable(folder):
        module = _import_file(Path(where)) if is_file else _import_module(where)
        with foreign_code(f"{name}: looking it up"):
            factory = getattr(module, attribute, None)
        if factory is None:
            raise BadInput(f"{where} has no {attribute!r}", _FORM)
        if not callable(factory):
            raise BadInput(f"{name} is a {type(factory).__name__}, not a callable", _FORM)
        with foreign_code(f"{name}: the factory"):
            model = factory()
    if not isinstance(model, nn.Module):
        raise BadInput(f"{name} returned a {type(model).__name__}, not an nn.Module", _FORM)
    if "_modules" not in vars(model):
        raise BadInput(
            f"{name} returned a {type(model).__name__} that was never initialized",
            "call super().__init__() in its __init__",
        )
    return unwrapped(model)


def unwrapped(model: nn.Module) -> nn.Module:
    """The network within DataParallel, an average of weights or torch.compile."""
    while True:
        # torch.compile's class is told by its name: importing it takes seconds.
        compiled = type(model).__name__ == "OptimizedModule"
        if not (compiled or isinstance(model, nn.DataParallel | AveragedModel)):
            return model
        model = model.get_submodule("_orig_mod" if compiled else "module")


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise BadInput(f"{path}: no such file", _FORM)
    # A name of its own, so that it neither shadows nor meets a module of the same file name.
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    spec = importlib.util.spec_from_file_location(f"_cbam_deploy_model_{digest}", path)
    loader = spec.loader if spec else None
    if spec is None or loader is None:
        raise BadInput(f"{path}: is not a Python file", _FORM)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # Dataclasses and pickle look their module up there.
    with foreign_code(f"{path}: importing it"):
        loader.exec_module(module)
    return module


def _import_module(name: str) -> ModuleType:
    with foreign_code(f"{name}: importing it"):
        return importlib.import_module(name)


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    before = list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = before
