"""SOURCE on the command line: a folder of pictures, a file of tensors, or a built-in set."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from cbam_deploy.data.builtin import BUILTIN, open_digits, open_photos
from cbam_deploy.data.folders import open_folder
from cbam_deploy.data.source import ImageSource
from cbam_deploy.data.tensors import are_tensors, open_tensors
from cbam_deploy.errors import BadInput
from cbam_deploy.preprocessing import Preprocessing

Split = Literal["train", "test", "all"]


def open_source(source: str, preprocessing: Preprocessing, *, split: Split = "all") -> ImageSource:
    """Open SOURCE; pictures are decoded later, batch by batch.

    Args:
        source: a folder (see `folders.open_folder`), an ``.npy`` or ``.npz`` file
            (`tensors.open_tensors`), ``digits`` or ``photos``. A folder of such a name is meant by
            ``./digits``.
        preprocessing: how network inputs are made from the pictures; tensors are inputs already.
        split: which part; a set without parts gives everything.

    Raises:
        BadInput: there is no such source, or it has no pictures.
        MissingCapability: Pillow or scikit-learn is not installed.
    """
    if source == "digits":
        return open_digits(preprocessing, split)
    if source == "photos":
        return open_photos(preprocessing)
    path = Path(source)
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except OSError as error:
        raise BadInput(
            f"{source}: cannot be read ({error.strerror})", "check the path and its permissions"
        ) from error
    if is_folder:
        return open_folder(path, preprocessing, split)
    if exists and are_tensors(source):
        return open_tensors(path)
    what = "is a file, not a folder of pictures" if exists else "no such folder"
    raise BadInput(
        f"{source}: {what}",
        f"give a folder of pictures, an .npy or .npz file of tensors, or {' or '.join(BUILTIN)}",
    )
