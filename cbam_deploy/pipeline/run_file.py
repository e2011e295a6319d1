"""The file that declares a run: one table ``[[step]]`` for each command, in order.

    [[step]]
    command = "export resnet20"   # a command with its arguments
    num-classes = 10              # its options, in its own words
    output = "model.onnx"

    [[step]]
    command = "validate model.onnx"
    reference = "resnet20"
    batch = [1, 8]                # one that may be repeated
    layers = true                 # a flag

``name`` says what the step is called, ``reads`` which files it depends on that no option names.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cbam_deploy.config_files import read_table
from cbam_deploy.errors import BadInput

HINT = 'a step is a table [[step]] with command = "export resnet20" and the command\'s options'
OWN_KEYS = ("name", "command", "reads")  # No command has an option of these names.

Value = bool | int | float | str


@dataclass(frozen=True)
class Step:
    """One command of a run.

    Attributes:
        name: what it is called, unique in the file.
        command: its name.
        arguments: what follows it.
        options: values by name, without dashes; several where it is repeated.
        reads: files and folders that it depends on besides those that its options name.
    """

    name: str
    command: str
    arguments: tuple[str, ...]
    options: dict[str, tuple[Value, ...]]
    reads: tuple[str, ...] = ()


def read_run_file(path: Path) -> tuple[Step, ...]:
    """The steps of the file at `path`; whether their options are right, their commands know.

    Raises:
        BadInput: the file cannot be read, or has something in it that is no step.
        MissingCapability: what reads TOML before Python 3.11 is not installed.
    """
    table = read_table(path, "a file of steps", HINT)
    if unknown := sorted(table.keys() - {"step"}):
        raise BadInput(f"{path}: {unknown[0]!r} is no step", HINT)
    entries = table.get("step")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise BadInput(f"{path}: step is no list of tables", HINT)
    if not entries:
        raise BadInput(f"{path}: has no step", HINT)
    return tuple(_named(path, entries))


def _named(path: Path, entries: list[dict[str, Any]]) -> Iterator[Step]:
    taken: set[str] = set()
    for number, entry in enumerate(entries, 1):
        where = f"{path}: step {number}"
        command, *arguments = _words(entry.get("command"), where)
        asked = entry.get("name", command)
        if not isinstance(asked, str) or not asked:
            raise BadInput(f"{where} has no text as its name", HINT)
        name, count = asked, 2
        while name in taken and "name" not in entry:
            name, count = f"{asked}-{count}", count + 1
        if name in taken:
            raise BadInput(f"{where}: another step is called {name!r}", "give each its own name")
        taken.add(name)
        options = {
            key: _values(value, f"{where} ({name}): {key}")
            for key, value in entry.items()
            if key not in OWN_KEYS
        }
        reads = _values(entry.get("reads", []), f"{where} ({name}): reads")
        yield Step(name, command, tuple(arguments), options, tuple(map(str, reads)))


def _words(command: Any, where: str) -> list[str]:
    """The words of a command, from one text as a shell reads it, or from a list of them."""
    try:
        words = shlex.split(command) if isinstance(command, str) else command
    except ValueError as error:
        raise BadInput(f"{where}: command {command!r} ({error})", HINT) from None
    if not isinstance(words, list) or not words or not all(isinstance(one, str) for one in words):
        raise BadInput(f"{where} has no command", HINT)
    return words


def _values(value: Any, where: str) -> tuple[Value, ...]:
    values = value if isinstance(value, list) else [value]
    for one in values:
        if not isinstance(one, Value):
            raise BadInput(f"{where} is a {type(one).__name__}", "give a text, a number or true")
    return tuple(values)
