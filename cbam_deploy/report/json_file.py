"""Results as JSON text that every JSON parser reads."""

from __future__ import annotations

import json
import math
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from cbam_deploy.outputs import write_text


def to_text(data: Any) -> str:
    """`data_of(data)` as indented JSON with a final newline."""
    return json.dumps(data_of(data), indent=2, allow_nan=False) + "\n"


def data_of(value: Any) -> Any:
    """`value` as JSON-ready data: what has a `to_json` says it itself, dataclasses by field.

    NaN and infinity become null: JSON has neither, and what Python writes for them (``NaN``) stops
    other parsers. Results that must tell them apart count them in a field of their own.
    """
    if hasattr(value, "to_json"):
        return value.to_json()
    if is_dataclass(value):
        return fields_of(value)
    if isinstance(value, dict):
        return {key: data_of(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [data_of(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def fields_of(value: Any) -> dict[str, Any]:
    """The fields of a dataclass as JSON-ready data."""
    return {field.name: data_of(getattr(value, field.name)) for field in fields(value)}


def write_json(path: str | Path, data: Any) -> None:
    """Write `to_text(data)` to `path` atomically.

    Raises:
        BadInput: `path` cannot be written.
    """
    write_text(path, to_text(data))
