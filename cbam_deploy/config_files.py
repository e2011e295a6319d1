"""TOML and YAML files that a person writes and names: read into plain data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from cbam_deploy.command_files import check_regular
from cbam_deploy.errors import BadInput, imports_for, in_one_line

_MOST_BYTES = 2**16


def read_table(path: Path, what: str, hint: str) -> dict[str, Any]:
    """The table in a ``.toml`` file, or in one of any other name as YAML.

    Args:
        path: of the file.
        what: it shall be, for messages, such as ``a preprocessing``.
        hint: how to write one.

    Raises:
        BadInput: it cannot be read, is too large, or is no table, or an empty one.
        MissingCapability: what reads YAML, or TOML before Python 3.11, is not installed.
    """
    check_regular(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file", "check the path") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})", hint) from error
    if len(content) > _MOST_BYTES:
        raise BadInput(f"{path}: is too large to be {what}", hint)
    kind = "TOML" if path.suffix == ".toml" else "YAML"
    decode = msgspec.toml.decode if kind == "TOML" else msgspec.yaml.decode
    with imports_for(f"reading {kind} needs another package", "demo"):
        try:
            table = decode(content)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{path}: is no {kind} file ({in_one_line(error)})", hint) from error
    if not (isinstance(table, dict) and table and all(isinstance(key, str) for key in table)):
        raise BadInput(f"{path}: is no table of steps", hint)
    return table
