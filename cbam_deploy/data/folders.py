"""Pictures in folders: labelled by class folder (ImageFolder layout), or flat and unlabelled.

A folder with ``train`` and ``val`` (or ``test``) inside is a data set with its split (`splits`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cbam_deploy.data.class_names import class_indices
from cbam_deploy.data.listing import class_folders, listing, pictures_below, pictures_in
from cbam_deploy.data.pictures import EXTENSIONS, decode, mode_of, require_pillow
from cbam_deploy.data.source import ImageSource
from cbam_deploy.data.splits import Parts, find_parts
from cbam_deploy.errors import BadInput
from cbam_deploy.preprocessing import Preprocessing


def open_folder(root: Path, preprocessing: Preprocessing, split: str) -> ImageSource:
    """The pictures below `root`; below its ``images`` where their targets lie beside that.

    Classes are the folders directly below, in the order of their names, an empty one included
    (so that labels keep meaning the network's outputs); pictures may lie deeper. Without class
    folders, the pictures directly in `root` are unlabelled. Names beginning with a dot are left
    out. A `split` other than ``all`` chooses between ``train`` and ``val`` (or ``test``) where
    `root` has such parts (`splits.find_parts`); elsewhere everything belongs to every split.
    Classes of the held-out part are those of the training part, by name.

    Raises:
        BadInput: there are no pictures, or both labelled and unlabelled ones, a folder cannot be
            read, or what look like parts of a data set cannot be told from classes.
        MissingCapability: Pillow is not installed.
    """
    require_pillow()
    root = pictures_in(root)
    parts = find_parts(root)
    # Labels mean the same in every part: those of the training part.
    training = pictures_in(parts.train) if parts else root
    class_names = class_folders(training)
    files: list[Path] = []
    labels: list[int] = []
    for part in map(pictures_in, _roots(root, parts, split)):
        flat = listing(part).pictures
        below = class_folders(part)
        indices = class_indices(below, class_names, where=str(part), of=str(training))
        if flat and class_names and not below:
            raise BadInput(
                f"{part}: its pictures are in no class folder ({flat[0].name})",
                f"sort them into classes like {training}, or give that folder alone",
            )
        if flat and class_names:
            raise BadInput(
                f"{part}: has pictures both beside class folders and inside them ({flat[0].name})",
                "move them into class folders, or take the class folders away",
            )
        files += flat
        for name, index in zip(below, indices, strict=True):
            found = sorted(pictures_below(part / name))
            files += found
            labels += [index] * len(found)
    if not files:
        raise BadInput(
            f"{root}: has no pictures", f"give a folder with {', '.join(sorted(EXTENSIONS))} files"
        )
    return open_files(
        str(root),
        files,
        preprocessing,
        labels=np.array(labels, np.int64) if class_names else None,
        class_names=tuple(class_names),
    )


def open_files(
    name: str,
    files: Sequence[Path],
    preprocessing: Preprocessing,
    *,
    labels: NDArray[np.int64] | None = None,
    class_names: tuple[str, ...] = (),
) -> ImageSource:
    """The pictures in `files`, in this order; the other arguments are as `ImageSource` has them.

    Raises:
        MissingCapability: Pillow is not installed.
    """
    require_pillow()
    return ImageSource(
        name=name,
        names=[str(file) for file in files],
        read=lambda index: decode(files[index], mode_of(preprocessing)),
        preprocessing=preprocessing,
        labels=labels,
        class_names=class_names,
    )


def _roots(root: Path, parts: Parts | None, split: str) -> list[Path]:
    if parts is None:
        return [root]
    if parts.test is None:
        return [parts.train]
    return {"train": [parts.train], "test": [parts.test], "all": [parts.train, parts.test]}[split]
