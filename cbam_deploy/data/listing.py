"""What lies in a folder of pictures, in the order of names; hidden names are left out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cbam_deploy.data.pictures import EXTENSIONS
from cbam_deploy.errors import BadInput

IMAGES = "images"
MASKS = "masks"
BOXES = "labels"
TARGETS = (MASKS, BOXES, "annotations")


@dataclass(frozen=True)
class Listing:
    """Pictures directly in a folder, and the folders in it; links count as what they lead to."""

    pictures: tuple[Path, ...]
    folders: tuple[Path, ...]


def listing(folder: Path) -> Listing:
    """What lies in `folder`; a link that leads nowhere is nothing.

    Raises:
        BadInput: the folder may not be entered, or a link in it goes round in circles or to where
            one may not look.
    """
    path = str(folder)
    pictures, folders = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                path = entry.path
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    folders.append(Path(path))
                elif Path(path).suffix.lower() in EXTENSIONS and entry.is_file():
                    pictures.append(Path(path))
    except OSError as error:
        raise BadInput(
            f"{path}: cannot be read ({error.strerror})",
            "check permissions and links, or move it elsewhere",
        ) from error
    return Listing(tuple(sorted(pictures)), tuple(sorted(folders)))


def pictures_in(root: Path) -> Path:
    """The folder of `root`'s pictures: itself, or ``images`` where targets lie beside that."""
    images = root / IMAGES
    targets = any((root / name).is_dir() for name in TARGETS)
    return images if targets and images.is_dir() else root


def pictures_below(folder: Path) -> Iterator[Path]:
    """Pictures at any depth, folder by folder.

    Each folder is gone through once, however many links lead to it; one above `folder` never.
    """
    seen = {os.path.realpath(above) for above in folder.resolve().parents}
    remaining = [folder]
    while remaining:
        current = remaining.pop()
        real = os.path.realpath(current)
        if real in seen:
            continue
        seen.add(real)
        found = listing(current)
        yield from found.pictures
        remaining += reversed(found.folders)


def class_folders(root: Path) -> list[str]:
    """Names of the folders in `root`, sorted; empty unless one of them holds a picture."""
    folders = listing(root).folders
    found = any(next(pictures_below(folder), None) for folder in folders)
    return [folder.name for folder in folders] if found else []
