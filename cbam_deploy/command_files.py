"""Which files the running command reads and writes, so that none takes the place of another.

The command line declares them while it parses, before anything runs: every option that names a
file does so by its type, see `cli_options`. Outputs that a command derives (a manifest, the figures
of a page) are checked when they are written. Called from Python, a function has declared nothing.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from cbam_deploy.errors import BadInput


@dataclass(frozen=True)
class Input:
    """A file or folder that a command reads.

    Attributes:
        path: where it is.
        option: the option or argument that names it.
        holds: whether an existing file is `path` or one that is read along with it.
        replaceable: the output may take its place, in which it means the same.
    """

    path: Path
    option: str
    holds: Callable[[Path], bool]
    replaceable: bool = False

    def loses(self, output: Path) -> bool:
        """Whether writing `output` would replace what is read here."""
        if not output.is_file():
            return False
        return not (self.replaceable and _same(self.path, output)) and self.holds(output)


@dataclass
class Declared:
    """What a command reads and writes.

    Attributes:
        inputs: that exist.
        outputs: each with the option that names it.
        makes_folders: whether whoever runs the command makes the folders of its outputs.
    """

    inputs: list[Input] = field(default_factory=list)
    outputs: list[tuple[Path, str]] = field(default_factory=list)
    makes_folders: bool = False


_DECLARED: ContextVar[Declared | None] = ContextVar("declared", default=None)


@contextmanager
def declarations(*, makes_folders: bool = False) -> Iterator[Declared]:
    """Hold what one command declares, until it ends."""
    declared = Declared(makes_folders=makes_folders)
    token = _DECLARED.set(declared)
    try:
        yield declared
    finally:
        _DECLARED.reset(token)


def folders_are_made() -> bool:
    """Whether the folder of an output need not exist yet."""
    declared = _DECLARED.get()
    return declared is not None and declared.makes_folders


def declare_input(new: Input) -> None:
    """Note what the command reads.

    Raises:
        BadInput: an output declared before would replace it.
    """
    declared = _DECLARED.get()
    if declared is not None:
        for output, option in declared.outputs:
            _check(output, option, new)
        declared.inputs.append(new)


def declare_output(path: Path, option: str) -> None:
    """Note a file that the command writes.

    Raises:
        BadInput: the command reads it, or writes it for another option as well.
    """
    declared = _DECLARED.get()
    if declared is not None:
        for known in declared.inputs:
            _check(path, option, known)
        for other, other_option in declared.outputs:
            if _same(path, other):
                raise BadInput(
                    f"{path}: {other_option} and {option} would both write it",
                    "give each a name of its own",
                )
        declared.outputs.append((path, option))


def check_not_read(output: Path) -> None:
    """Refuse to write what the running command reads; raises `BadInput`."""
    declared = _DECLARED.get()
    if declared is not None:
        for known in declared.inputs:
            _check(output, "an output", known)


def check_apart(output: str | Path, **inputs: str | Path | None) -> None:
    """Refuse an output that is one of the named inputs, for functions called from Python.

    Raises:
        BadInput: `output` is one of the files `inputs`, also through a link or another spelling.
    """
    for name, path in inputs.items():
        if path is not None and Path(output).is_file() and _same(Path(path), Path(output)):
            raise _replaces(Path(output), "the output", name)


def check_regular(path: str | Path) -> None:
    """Refuse to read devices and pipes, which may never end; raises `BadInput`."""
    path = Path(path)
    mode = path.stat().st_mode if path.exists() else stat.S_IFREG
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise BadInput(
            f"{path}: is a {kind_of(mode)}, not a regular file",
            "put its content into a file first, and name that",
        )


def kind_of(mode: int) -> str:
    """What `st_mode` says a file is, such as ``pipe``."""
    kinds = {
        stat.S_ISDIR: "directory",
        stat.S_ISFIFO: "pipe",
        stat.S_ISSOCK: "socket",
        stat.S_ISBLK: "disk device",
        stat.S_ISCHR: "device",
    }
    return next((name for test, name in kinds.items() if test(mode)), "regular file")


def _check(output: Path, option: str, known: Input) -> None:
    if known.loses(output):
        raise _replaces(output, option, known.option)


def _replaces(output: Path, by: str, read_as: str) -> BadInput:
    return BadInput(
        f"{output}: {by} would replace it, and it is read as {read_as}", "write to another name"
    )


def _same(one: Path, other: Path) -> bool:
    """Whether two paths name one regular file, or would once it is written."""
    try:
        return one.samefile(other) and stat.S_ISREG(one.stat().st_mode)
    except OSError:
        # Neither of them, or one of them, is there yet: links are followed as far as they lead.
        return os.path.realpath(one) == os.path.realpath(other)
