"""Built-in sets of real pictures, from scikit-learn: nothing to download."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbam_deploy.data.pictures import require_pillow
from cbam_deploy.data.source import ImageSource
from cbam_deploy.errors import imports_for
from cbam_deploy.preprocessing import Preprocessing

BUILTIN = ("digits", "photos")
_WINDOW = 256


def open_digits(preprocessing: Preprocessing, split: str) -> ImageSource:
    """1,797 handwritten digits of 8 x 8 pixels (UCI, Alpaydin and Kaynak 1998), as RGB.

    Grey values 0..16 are scaled to 0..255. The split is fixed and stratified: of each class, in
    the order of the set, every fifth picture is for testing, 355 in all, 1,442 for training. The
    13 writers are in both parts.
    """
    digits = _sklearn_datasets().load_digits()
    from PIL import Image

    chosen = np.flatnonzero(_in_split(digits.target, split))
    grey = np.rint(digits.images[chosen] * (255 / 16)).astype(np.uint8)
    return ImageSource(
        name="digits",
        names=[f"digits/{index}" for index in chosen],
        read=lambda index: Image.fromarray(grey[index]).convert("RGB"),
        preprocessing=preprocessing,
        labels=digits.target[chosen].astype(np.int64),
        class_names=tuple(str(name) for name in digits.target_names),
    )


def open_photos(preprocessing: Preprocessing) -> ImageSource:
    """64 views of two photographs (a Chinese temple, a flower; 640 x 427 pixels), unlabelled.

    Each photograph gives 16 overlapping windows of 256 x 256 pixels and their mirror images, the
    photographs by turns. The pixels are real; being two scenes only, the set is good for
    parity, calibration and timing, not for accuracy.
    """
    photos = [np.asarray(photo) for photo in _sklearn_datasets().load_sample_images().images]
    from PIL import Image

    views: list[tuple[str, NDArray[np.uint8]]] = []
    for top in (0, photos[0].shape[0] - _WINDOW):
        for left in np.linspace(0, photos[0].shape[1] - _WINDOW, 8).astype(int):
            for flip in (1, -1):
                for number, photo in enumerate(photos):
                    view = photo[top : top + _WINDOW, left : left + _WINDOW][:, ::flip]
                    mirrored = "/mirrored" if flip < 0 else ""
                    views.append((f"photos/{number}/{top},{left}{mirrored}", view))
    return ImageSource(
        name="photos",
        names=[name for name, _ in views],
        read=lambda index: Image.fromarray(np.ascontiguousarray(views[index][1])),
        preprocessing=preprocessing,
    )


def _in_split(labels: NDArray[np.int64], split: str) -> NDArray[np.bool_]:
    if split == "all":
        return np.ones(len(labels), bool)
    test = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        test[np.flatnonzero(labels == label)[4::5]] = True
    return test if split == "test" else ~test


def _sklearn_datasets() -> Any:
    require_pillow()
    with imports_for("the built-in pictures need scikit-learn", "demo"):
        import sklearn.datasets
    return sklearn.datasets
