"""What files and folders hold, as a hash that is taken anew only when their status changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cbam_deploy.provenance import file_sha256


@dataclass(frozen=True)
class Content:
    """What a file or folder held.

    Attributes:
        status: hash of names, sizes, times and inodes; while it stays, so does the content.
        sha256: hash of names and bytes, the same wherever a copy lies.
    """

    status: str
    sha256: str


class Contents:
    """Contents of files and folders; bytes are read once for each status.

    Args:
        known: what an earlier run found.
    """

    def __init__(self, known: Iterable[Content] = ()) -> None:
        self._hashes = {content.status: content.sha256 for content in known}

    def of(self, path: Path) -> Content | None:
        """What is at `path`; None where nothing is."""
        try:
            files = list(_files(path))
            status = _digest(_status(path, file) for file in files)
            if status not in self._hashes:
                self._hashes[status] = (
                    _digest(f"{file.relative_to(path)} {file_sha256(file)}" for file in files)
                    if path.is_dir()
                    else file_sha256(path)
                )
        except FileNotFoundError:
            return None
        return Content(status, self._hashes[status])


def _files(path: Path) -> Iterator[Path]:
    """The file itself, or those below a folder, without hidden ones, in order of their names."""
    if not path.is_dir():
        yield path
        return
    seen: set[tuple[int, int]] = set()  # Links may lead round in a circle.
    for where, folders, names in os.walk(path, followlinks=True):
        here = Path(where).stat()
        if (here.st_dev, here.st_ino) in seen:
            folders.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        folders[:] = sorted(name for name in folders if name[0] != "." and name != "__pycache__")
        files = (Path(where, name) for name in sorted(names) if name[0] != ".")
        yield from (file for file in files if file.is_file())  # No pipes, no links to nothing.


def _status(path: Path, file: Path) -> str:
    found = file.stat()
    times = f"{found.st_mtime_ns} {found.st_ctime_ns}"
    name = file.relative_to(path)
    return f"{name} {found.st_dev} {found.st_ino} {found.st_size} {times}"


def _digest(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(os.fsencode(line) + b"\n")
    return digest.hexdigest()
