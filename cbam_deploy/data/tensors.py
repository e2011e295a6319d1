"""Saved network inputs as SOURCE: an ``.npy`` file, or an ``.npz`` file by input name.

The first axis counts the samples. They are fed as they are: nothing is resized or normalized. An
array ``labels`` in an ``.npz`` file is the class of each sample.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbam_deploy.command_files import check_regular
from cbam_deploy.data.source import ImageSource
from cbam_deploy.errors import BadInput, in_one_line
from cbam_deploy.preprocessing import Preprocessing

SUFFIXES = (".npy", ".npz")
LABELS = "labels"
_HINT = "save it with numpy.save or numpy.savez: arrays whose first axis counts the samples"


def are_tensors(source: str) -> bool:
    """Whether SOURCE names a file of tensors, which no preprocessing is for."""
    return Path(source).suffix in SUFFIXES


def open_tensors(path: Path) -> ImageSource:
    """The samples of a file; of ``.npy`` they stay on disk until they are used.

    Raises:
        BadInput: it cannot be read, holds objects, has arrays of several lengths or none, or
            labels that are no classes.
    """
    arrays = _load(path)
    labels = arrays.pop(LABELS, None)
    lengths = {len(array) if array.ndim else 0 for array in arrays.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise BadInput(f"{path}: has no samples, or not equally many in each array", _HINT)
    (length,) = lengths
    if labels is not None and not (
        labels.shape == (length,) and np.issubdtype(labels.dtype, np.integer) and labels.min() >= 0
    ):
        raise BadInput(f"{path}: its labels are not one class number for each sample", _HINT)
    return ImageSource(
        name=str(path),
        names=[f"{path}[{index}]" for index in range(length)],
        read=lambda index: {name: np.array(array[index]) for name, array in arrays.items()},
        preprocessing=Preprocessing(),
        labels=None if labels is None else labels.astype(np.int64),
        class_names=() if labels is None else tuple(map(str, range(int(labels.max()) + 1))),
        tensors=True,
    )


def _load(path: Path) -> dict[str, NDArray[Any]]:
    check_regular(path)
    try:
        # Objects would be unpickled, which runs what the file says.
        if path.suffix == ".npy":
            return {"": np.load(path, mmap_mode="r", allow_pickle=False)}
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise BadInput(f"{path}: is no file of tensors ({in_one_line(error)})", _HINT) from error
