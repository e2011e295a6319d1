"""JSON texts that a file may hold, read into the dataclass they stand for, each field by its type.

What a file says may be of any kind: a list for an object, text for a number, nested without end.
Whoever reads through here gets data of the annotated types, or one `ValueError` that names the
field.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

_DEEPEST = 32
_WIDEST = 2**63  # No count, size or seed needs more bits than C has for it.


def parse(text: str | bytes) -> Any:
    """The data that a JSON text stands for; every failure is a `ValueError`."""
    with _value_errors():
        return msgspec.json.decode(text)


def read(kind: type[T], data: Any) -> T:
    """An instance of the dataclass `kind` from an object with its fields; tuples are lists.

    Fields that have defaults may be missing.

    Args:
        kind: a dataclass of texts, numbers, None, tuples, dictionaries by text, and dataclasses.
        data: as `parse` returned it.

    Raises:
        ValueError: a field is missing, unknown, of another type or without meaning.
    """
    with _value_errors():
        value = msgspec.convert(data, kind)
        _check(data, msgspec.to_builtins(value))
        return value


@contextmanager
def _value_errors() -> Iterator[None]:
    try:
        yield
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from None


def _check(data: Any, taken: Any, depth: int = 0) -> None:
    """Refuse what `taken`, made of `data`, has no field for, and what is out of bounds."""
    if depth > _DEEPEST:
        raise ValueError("it is nested too deeply")
    if isinstance(data, dict):
        if unknown := sorted(data.keys() - taken.keys()):
            raise ValueError(f"Object has an unknown field `{unknown[0]}`")
        for key, value in data.items():
            _check(value, taken[key], depth + 1)
    elif isinstance(data, list):
        for value, kept in zip(data, taken, strict=True):
            _check(value, kept, depth + 1)
    elif isinstance(data, int) and not -_WIDEST <= data < _WIDEST:
        raise ValueError("a number is out of range")
