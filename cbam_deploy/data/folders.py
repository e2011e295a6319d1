"""Pictures in folders: labelled by class folder (ImageFolder layout), or flat and unlabelled.

A folder with ``train`` and ``val`` (or ``test``) inside is a data set with its split.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cbam_deploy.data.pictures import EXTENSIONS, decode, require_pillow
from cbam_deploy.data.preprocessing import Preprocessing
from cbam_deploy.data.source import ImageSource
from cbam_deploy.errors import BadInput

_TEST_FOLDERS = ("val", "test")


def open_folder(root: Path, preprocessing: Preprocessing, split: str) -> ImageSource:
    """The pictures below `root`.

    Classes are the folders directly below, in the order of their names, an empty one included
    (so that labels keep meaning the network's outputs); pictures may lie deeper. Without class
    folders, the pictures directly in `root` are unlabelled. Names beginning with a dot are left
    out. A `split` other than ``all`` chooses between ``train`` and ``val`` (or ``test``) where
    `root` has these; elsewhere everything belongs to every split.

    Raises:
        BadInput: there are no pictures, or both labelled and unlabelled ones.
        MissingCapability: Pillow is not installed.
    """
    require_pillow()
    roots = _split_roots(root, split)
    # Labels mean the same in every part: those of the training part.
    class_names = _class_names(root / "train" if has_split(root) else root)
    files: list[Path] = []
    labels: list[int] = []
    for part in roots:
        flat = sorted(_pictures_in(part))
        below = _class_names(part)
        unknown = sorted(set(below) - set(class_names))
        if unknown:
            raise BadInput(
                f"{part}: the training part has no class folder {unknown[0]!r}",
                "use the same class folders in every part",
            )
        if flat and class_names:
            raise BadInput(
                f"{part}: has pictures both beside class folders and inside them ({flat[0].name})",
                "move them into class folders, or take the class folders away",
            )
        files += flat
        for name in below:
            found = sorted(_pictures_below(part / name))
            files += found
            labels += [class_names.index(name)] * len(found)
    if not files:
        raise BadInput(
            f"{root}: has no pictures", f"give a folder with {', '.join(sorted(EXTENSIONS))} files"
        )
    return ImageSource(
        name=str(root),
        names=[str(file) for file in files],
        read=lambda index: decode(files[index]),
        preprocessing=preprocessing,
        labels=np.array(labels, np.int64) if class_names else None,
        class_names=tuple(class_names),
    )


def has_split(root: Path) -> bool:
    """Whether `root` is divided into a ``train`` and a ``val`` or ``test`` folder."""
    return (root / "train").is_dir() and any((root / name).is_dir() for name in _TEST_FOLDERS)


def _split_roots(root: Path, split: str) -> list[Path]:
    if not has_split(root):
        return [root]
    test = next(root / name for name in _TEST_FOLDERS if (root / name).is_dir())
    return {"train": [root / "train"], "test": [test], "all": [root / "train", test]}[split]


def _class_names(root: Path) -> list[str]:
    """Names of the folders in `root`, sorted; empty unless one of them holds a picture."""
    folders = sorted(entry.name for entry in _visible(root) if entry.is_dir())
    return folders if any(next(_pictures_below(root / name), None) for name in folders) else []


def _pictures_in(folder: Path) -> Iterator[Path]:
    for entry in _visible(folder):
        if entry.is_file() and Path(entry.name).suffix.lower() in EXTENSIONS:
            yield Path(entry.path)


def _pictures_below(folder: Path, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Pictures at any depth; a link back to a folder above is not followed."""
    real = os.path.realpath(folder)
    if real in above:
        return
    yield from _pictures_in(folder)
    for entry in _visible(folder):
        if entry.is_dir():
            yield from _pictures_below(Path(entry.path), above | {real})


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise BadInput(
            f"{folder}: cannot be read ({error.strerror})", "check the folder's permissions"
        ) from error
