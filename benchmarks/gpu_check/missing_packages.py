"""Stand-ins for two small packages that cbam_deploy needs, where they are not installed.

A machine with a GPU may have PyTorch, NumPy and cuda-bindings, and no network to fetch more from.
What stands in does as much as the check needs, and trusts the files that it wrote itself.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any


def fill_in() -> tuple[str, ...]:
    """Put a stand-in in the place of every package that is missing; returns their names."""
    made = {"msgspec": _msgspec, "lazy_loader": _lazy_loader}
    missing = [name for name in made if not _is_installed(name)]
    for name in missing:
        sys.modules[name] = made[name]()
    return tuple(missing)


def _is_installed(name: str) -> bool:
    if name in sys.modules:
        return sys.modules[name] is not None
    return importlib.util.find_spec(name) is not None


def _msgspec() -> ModuleType:
    class MsgspecError(ValueError):
        pass

    def decode(text: str | bytes) -> Any:
        try:
            return json.loads(text)
        except ValueError as error:
            raise MsgspecError(str(error)) from None

    def convert(data: Any, kind: type[Any]) -> Any:
        """Flat dataclasses alone, whose lists are tuples."""
        try:
            given = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in data.items()
            }
            return kind(**{field.name: given[field.name] for field in fields(kind)})
        except (AttributeError, KeyError, TypeError) as error:
            raise MsgspecError(f"{kind.__name__}: {error!r}") from None

    def to_builtins(value: Any) -> Any:
        return json.loads(json.dumps(asdict(value) if is_dataclass(value) else value))

    return _module(
        "msgspec",
        json=_module("msgspec.json", decode=decode),
        convert=convert,
        to_builtins=to_builtins,
        MsgspecError=MsgspecError,
    )


Attached = tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]


def _lazy_loader() -> ModuleType:
    def attach(
        package: str,
        submodules: Iterable[str] | None = None,
        submod_attrs: Mapping[str, Iterable[str]] | None = None,
    ) -> Attached:
        """A package's ``__getattr__``, ``__dir__`` and ``__all__``."""
        places = {name: place for place, names in (submod_attrs or {}).items() for name in names}
        modules = set(submodules or ())

        def get(name: str) -> Any:
            if name in modules:
                return importlib.import_module(f"{package}.{name}")
            if name in places:
                return getattr(importlib.import_module(f"{package}.{places[name]}"), name)
            raise AttributeError(f"No {package} attribute {name}")

        names = sorted(modules | set(places))
        return get, lambda: names, names

    def attach_stub(package: str, filename: str) -> Attached:
        """The same of what the stub beside a package imports, each from a module beside it."""
        stub = ast.parse(Path(filename).with_suffix(".pyi").read_text())
        imports = [node for node in stub.body if isinstance(node, ast.ImportFrom) and node.level]
        modules = [one.name for node in imports if not node.module for one in node.names]
        places: dict[str, list[str]] = {}
        for node in imports:
            if node.module:
                places.setdefault(node.module, []).extend(one.name for one in node.names)
        return attach(package, modules, places)

    return _module("lazy_loader", attach=attach, attach_stub=attach_stub)


def _module(name: str, **attributes: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(attributes)
    return module
