"""Write artefacts so that a failed or killed run leaves nothing half-written, nothing lost."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cbam_deploy.errors import BadInput


def check_place(path: Path) -> None:
    """Refuse early what could not be written in the end.

    Raises:
        BadInput: `path` is a directory, or its folder is missing or not writable.
    """
    with _write_errors_named(path):
        if path.is_dir():
            raise BadInput(f"{path}: is a directory, not a file to write", "give a file name")
        if not path.parent.is_dir():
            raise BadInput(
                f"{path}: the folder {path.parent} does not exist", "create the folder first"
            )
        if not os.access(path.parent, os.W_OK | os.X_OK, effective_ids=True):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@contextmanager
def atomic_output(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block succeeds.

    The temporary name ends like `path`, so that writers which look at the suffix behave. When the
    block raises (also on Ctrl-C), the temporary file is removed and an earlier `path` is untouched.
    Nest two of these to put a pair of files in place together: the inner one is renamed first.

    Raises:
        BadInput: `path` is a directory, its folder is missing or not writable, or the disk is full.
    """
    target = Path(path)
    check_place(target)
    with _write_errors_named(target):
        handle, name = tempfile.mkstemp(
            dir=target.parent, prefix=f".{target.stem}-", suffix=target.suffix
        )
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, atomically; raises like `atomic_output`."""
    with atomic_output(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def _write_errors_named(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BadInput(
                f"{target}: no space left on the disk", "free some space or write elsewhere"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise BadInput(
                f"{target}: cannot be written ({os.strerror(error.errno)})",
                "choose a folder you may write to",
            ) from error
        raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
