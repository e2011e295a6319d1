"""The built-in sets: real pictures, a fixed split, the same on every machine."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from cbam_deploy.data import open_source
from cbam_deploy.errors import MissingCapability
from cbam_deploy.preprocessing import Preprocessing

SMALL = Preprocessing.for_size(8)


def test_digits_are_split_once_and_for_all() -> None:
    train, test, everything = (
        open_source("digits", SMALL, split=split) for split in ("train", "test", "all")
    )
    assert (len(train), len(test), len(everything)) == (1442, 355, 1797)
    assert set(train.names).isdisjoint(test.names)
    assert set(train.names) | set(test.names) == set(everything.names)
    assert test.names[:4] == ("digits/33", "digits/36", "digits/37", "digits/40")
    assert test.class_names == tuple("0123456789")
    assert test.labels is not None
    assert np.bincount(test.labels).tolist() == [35, 36, 35, 36, 36, 36, 36, 35, 34, 36]


def test_digits_keep_their_pixels_and_labels() -> None:
    source = open_source("digits", SMALL)
    batch = next(source.batches(1797))
    mean, std = (np.array(v)[:, None, None] for v in (SMALL.mean, SMALL.std))
    grey = (batch.images * std + mean) * 16
    raw = load_digits()
    assert np.abs(grey - raw.images[:, None]).max() < 0.5 / 255 * 16 + 1e-4  # Rounded to 8 bits.
    assert batch.labels is not None
    assert np.array_equal(batch.labels, raw.target)


def test_photos_are_64_distinct_unlabelled_views() -> None:
    source = open_source("photos", Preprocessing())
    assert len(source) == len(set(source.names)) == 64
    assert source.labels is None
    images = next(source.batches(64)).images
    assert images.shape == (64, 3, 224, 224)
    assert len({image.tobytes() for image in images}) == 64
    assert {name.split("/")[1] for name in source.names[:2]} == {"0", "1"}
    mirrored = source.names.index(source.names[0] + "/mirrored")
    np.testing.assert_allclose(images[mirrored], images[0][..., ::-1], atol=0.02)


@pytest.mark.parametrize(("missing", "says"), [("sklearn", "scikit-learn"), ("PIL", "Pillow")])
def test_missing_packages_name_the_extra(
    monkeypatch: pytest.MonkeyPatch, missing: str, says: str
) -> None:
    original = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == missing:
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingCapability, match=says) as caught:
        open_source("digits", SMALL)
    assert ".[demo]" in caught.value.hint
