"""Write artefacts so that a failed or killed run leaves nothing half-written, nothing lost."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cbam_deploy.command_files import check_not_read, folders_are_made, kind_of
from cbam_deploy.errors import BadInput

_LONGEST_NAME = 255  # Bytes; Linux file systems allow no more.

_unfinished: set[Path] = set()


def check_place(path: Path, *, artefact: bool = False) -> None:
    """Refuse early what could not be written in the end.

    Args:
        path: a file, a device, a pipe, or a link to one of these.
        artefact: it is read again after it was written, so it must be a regular file.

    Raises:
        BadInput: `path` is a directory or another thing that cannot be written, or its folder is
            missing or not writable.
    """
    with write_errors(path):
        mode = _mode(path)
        if mode is None or stat.S_ISREG(mode):
            _check_folder(path, behind_links(path).parent)
        elif stat.S_ISDIR(mode):
            raise BadInput(f"{path}: is a directory, not a file to write", "give a file name")
        elif artefact or not (stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)):
            raise BadInput(f"{path}: is a {kind_of(mode)}, not a regular file", "give a file name")
        elif not os.access(path, os.W_OK, effective_ids=True):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def behind_links(path: Path) -> Path:
    """The file that an output to `path` replaces; `path` as it was given unless it is a link."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


@contextmanager
def atomic_output(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block succeeds.

    The temporary name ends like `path`, so that writers which look at the suffix behave. When the
    block raises (also on Ctrl-C), the temporary file is removed and an earlier `path` is untouched;
    when the process is killed, the next output to `path` removes it. Where `path` is a link, the
    file behind it is replaced and the link stays. A device, a pipe or what standard output goes to
    is not replaced: the finished content is written into it.

    Nest two of these to put a pair of files in place together: the inner one is renamed first.

    Raises:
        BadInput: `path` cannot be written, see `check_place`; the running command reads it; or the
            disk is full.
    """
    path = Path(path)
    check_place(path)
    check_not_read(path)
    with write_errors(path):
        if _is_replaced(path):
            target = behind_links(path)
            with temporary_beside(target) as temporary:
                yield temporary
                put_in_place(temporary, target)
        else:
            with scratch_folder() as folder:
                temporary = folder / f"output{path.suffix}"
                yield temporary
                _pour(temporary, path)


@contextmanager
def temporary_beside(target: Path) -> Iterator[Path]:
    """A new file in the folder of `target`, locked while its writer lives, gone in the end.

    What killed processes left of earlier ones is removed first.
    """
    _remove_abandoned(target)
    beginning, ending = _temporary_name(target)
    while True:
        descriptor, name = tempfile.mkstemp(ending, beginning, target.parent)
        temporary = Path(name)
        _lock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            break
        os.close(descriptor)  # Another process took it for abandoned before it was locked.
    _unfinished.add(temporary)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
        _unfinished.discard(temporary)
        os.close(descriptor)


def put_in_place(temporary: Path, target: Path) -> None:
    """Make a temporary file the file `target`, with the permissions of an ordinary new file."""
    temporary.chmod(0o666 & ~_umask())
    temporary.replace(target)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new folder among the system's temporary files, gone in the end."""
    with tempfile.TemporaryDirectory(prefix="cbam-deploy-") as name:
        folder = Path(name)
        _unfinished.add(folder)
        try:
            yield folder
        finally:
            _unfinished.discard(folder)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, atomically; raises like `atomic_output`."""
    with atomic_output(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def write_errors(target: Path) -> Iterator[None]:
    """Name `target` in what goes wrong while it is written.

    Raises:
        BadInput: in place of an error of the operating system that a person can mend.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BadInput(
                f"{target}: no space left on the disk", "free some space or write elsewhere"
            ) from error
        if error.errno in _HINTS:
            raise BadInput(
                f"{target}: cannot be written ({os.strerror(error.errno)})", _HINTS[error.errno]
            ) from error
        raise


_HINTS = {
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR),
        "choose a folder you may write to",
    ),
    **dict.fromkeys((errno.ELOOP, errno.ENAMETOOLONG), "choose another name"),
    **dict.fromkeys((errno.EFBIG, errno.EIO, errno.ENXIO), "write elsewhere"),
}


def remove_unfinished() -> None:
    """Remove this process's temporary files and folders, as it ends without unwinding."""
    for temporary in list(_unfinished):
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def _mode(path: Path) -> int | None:
    """What is at `path`, links followed; None where nothing is."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


def _check_folder(path: Path, folder: Path) -> None:
    if not folder.exists() and folders_are_made():
        return
    if not folder.is_dir():
        raise BadInput(f"{path}: the folder {folder} does not exist", "create the folder first")
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _is_replaced(path: Path) -> bool:
    mode = _mode(path)
    return mode is None or (stat.S_ISREG(mode) and _standard_stream(path) is None)


def _standard_stream(path: Path) -> int | None:
    """The descriptor, 1 or 2, through which this process writes to `path` already."""
    for descriptor in (1, 2):
        with suppress(OSError):
            if os.path.samestat(path.stat(), os.fstat(descriptor)):
                return descriptor
    return None


def _pour(content: Path, path: Path) -> None:
    """Write `content` into what is at `path`; a reader that has gone had what it wanted."""
    stream = _standard_stream(path)
    if stream is not None and sys.stdout is not None:
        sys.stdout.flush()
    descriptor = os.open(path, os.O_WRONLY | os.O_NOCTTY) if stream is None else os.dup(stream)
    with (
        suppress(BrokenPipeError),
        content.open("rb") as source,
        os.fdopen(descriptor, "wb", buffering=0) as sink,
    ):
        shutil.copyfileobj(source, sink)


def _temporary_name(target: Path) -> tuple[str, str]:
    """How the names of temporary files for `target` begin and end; eight characters between."""
    ending = f".partial{target.suffix}"
    room = _LONGEST_NAME - len(os.fsencode(f".-{ending}")) - 8
    stem = os.fsencode(target.stem)[: max(room, 0)].decode(errors="ignore")
    return f".{stem}-", ending


def _remove_abandoned(target: Path) -> None:
    """Remove what killed processes left of outputs to `target`: nobody locks it any more."""
    beginning, ending = map(re.escape, _temporary_name(target))
    ours = re.compile(f"{beginning}[a-z0-9_]{{8}}{ending}")
    with os.scandir(target.parent) as entries:
        found = [Path(entry.path) for entry in entries if ours.fullmatch(entry.name)]
    for temporary in found:
        with suppress(OSError):
            descriptor = os.open(temporary, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                if _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
                    temporary.unlink()
            finally:
                os.close(descriptor)


def _lock(descriptor: int, operation: int) -> bool:
    """Whether the file could be locked; some file systems have no locks."""
    try:
        fcntl.flock(descriptor, operation)
    except OSError:
        return False
    return True


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
