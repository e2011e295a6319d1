"""JSON texts that a file may hold, read into the dataclass they stand for, each field by its type.

What a file says may be of any kind: a list for an object, text for a number, nested without end.
Whoever reads through here gets data of the annotated types, or one `ValueError` that names the
field.
"""

from __future__ import annotations

import functools
import json
import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")

_DEEPEST = 32
_WIDEST = 2**63  # No count, size or seed needs more bits than C has for it.


def parse(text: str | bytes) -> Any:
    """`json.loads`, whose every failure is a `ValueError`."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read(kind: type[T], data: Any, name: str = "it") -> T:
    """An instance of the dataclass `kind` from an object with its fields; tuples are lists.

    Fields that have defaults may be missing.

    Args:
        kind: a dataclass of texts, numbers, None, tuples, dictionaries by text, and dataclasses.
        data: as `parse` returned it.
        name: what to call it in messages.

    Raises:
        ValueError: a field is missing, unknown, of another type or without meaning.
    """
    if not isinstance(data, dict):
        raise ValueError(f"{name} is no object")
    hints = _hints(cast(Any, kind))
    own = {field.name: field for field in fields(cast(Any, kind))}
    if unknown := sorted(str(key) for key in data.keys() - own.keys()):
        raise ValueError(f"{name} has an unknown field {unknown[0]!r}")
    given = {key: _value(hints[key], value, key) for key, value in data.items()}
    for key, field in own.items():
        if key not in given and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{name} lacks {key!r}")
    return kind(**given)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _value(kind: Any, value: Any, name: str) -> Any:
    """`value` as the type `kind`."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _one_of(arguments, value, name)
    if origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in arguments):
            raise ValueError(f"{name} is none of {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple:
        return _tuple(arguments, value, name)
    if origin in (dict, Mapping):
        if not isinstance(value, dict):
            raise ValueError(f"{name} is no object")
        return {_text(key, name): _value(arguments[1], item, name) for key, item in value.items()}
    if is_dataclass(kind):
        return read(cast(type, kind), value, name)
    return _plain(value, name) if kind is Any else _scalar(kind, value, name)


def _plain(value: Any, name: str, depth: int = 0) -> Any:
    """`value` of any kind, if it is no deeper than people write and can be written again."""
    if depth > _DEEPEST:
        raise ValueError(f"{name} is nested too deeply")
    if isinstance(value, dict):
        return {_text(key, name): _plain(item, name, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, name, depth + 1) for item in value]
    return _text(value, name) if isinstance(value, str) else value


def _one_of(kinds: tuple[Any, ...], value: Any, name: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    failure = None
    for kind in kinds:
        if kind is not type(None):
            try:
                return _value(kind, value, name)
            except ValueError as error:
                failure = failure or error
    raise failure or ValueError(f"{name} is not null")


def _tuple(kinds: tuple[Any, ...], value: Any, name: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{name} is no list")
    if kinds[-1] is Ellipsis:
        return tuple(_value(kinds[0], item, name) for item in value)
    if len(value) != len(kinds):
        raise ValueError(f"{name} is no list of {len(kinds)}")
    return tuple(_value(kind, item, name) for kind, item in zip(kinds, value, strict=True))


def _scalar(kind: Any, value: Any, name: str) -> Any:
    if kind is str:
        return _text(value, name)
    if kind is bool:
        if not isinstance(value, bool):
            raise ValueError(f"{name} is neither true nor false")
        return value
    if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
        raise ValueError(f"{name} is no {'whole ' if kind is int else ''}number")
    if not (math.isfinite(value) if isinstance(value, float) else -_WIDEST <= value < _WIDEST):
        raise ValueError(f"{name} is out of range")
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} is no text")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can spell half a surrogate pair.
        raise ValueError(f"{name} is no Unicode text") from None
    return value
