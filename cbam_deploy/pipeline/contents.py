"""What files and folders hold, as a hash that is taken anew only when their status changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable, Iterator
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
        apart: files that never count in a folder.
    """

    def __init__(self, known: Iterable[Content] = (), apart: Collection[str | Path] = ()) -> None:
        self._apart = apart
        self._hashes = {content.status: content.sha256 for content in known}

    def of(self, path: Path, apart: Collection[str] = ()) -> Content | None:
        """What is at `path`; None where nothing is.

        Args:
            path: of a file or folder.
            apart: files and folders below it that do not count.
        """
        try:
            left_out = {os.path.realpath(one) for one in (*apart, *self._apart)}
            files = list(_files(path, left_out))
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


def _files(path: Path, apart: Collection[str]) -> Iterator[Path]:
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
        real = os.path.realpath(where)
        names, folders[:] = (
            [n for n in sorted(some) if n[0] != "." and os.path.join(real, n) not in apart]  # noqa: PTH118
            for some in (names, set(folders) - {"__pycache__"})
        )
        # No pipes, no links to nothing.
        yield from (file for file in (Path(where, name) for name in names) if file.is_file())


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
