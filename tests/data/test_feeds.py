"""Inputs of a comparison: reproducible, of the right shape, and real pictures where asked for."""

import numpy as np
import pytest
from PIL import Image

from cbam_deploy.data import open_source
from cbam_deploy.data.feeds import InputStream, default_batches, noise, pictures
from cbam_deploy.errors import BadInput, MissingCapability
from cbam_deploy.numerics.tensors import TensorSpec
from cbam_deploy.preprocessing import Preprocessing

IMAGE = TensorSpec("input", ("batch", 3, 8, 8), "float32")


@pytest.mark.parametrize(
    ("smallest", "largest", "opt", "expected"),
    [
        (1, None, None, (1, 2, 8)),
        (1, 64, 8, (1, 8, 64)),
        (4, 4, 4, (4,)),
        (3, 5, 3, (3, 5)),
        (1, 1, None, (1,)),
        (16, None, None, (16,)),
    ],
)
def test_default_batches_hold_both_ends_and_one_between(smallest, largest, opt, expected):
    assert default_batches(smallest, largest, opt) == expected


def test_noise_is_the_same_for_the_same_seed_and_another_for_another():
    first = noise([IMAGE], 64, seed=3, image_size=None)["input"]
    np.testing.assert_array_equal(first, noise([IMAGE], 64, seed=3, image_size=None)["input"])
    assert first.shape == (64, 3, 8, 8)
    assert first.dtype == np.float32
    assert not np.array_equal(first, noise([IMAGE], 64, seed=4, image_size=None)["input"])


def test_noise_is_standard_normal_around_a_cast_of_its_own_in_every_channel():
    pictures_ = noise([IMAGE], 64, seed=3, image_size=None)["input"].astype(np.float64)
    casts = pictures_.mean(axis=(2, 3), keepdims=True)
    # The spread of n normal numbers lies within five of its own deviations, 1 / sqrt(2 n).
    within = pictures_ - casts
    assert abs(within.std() * np.sqrt(64 / 63) - 1) < 5 / np.sqrt(2 * within.size)
    assert abs(casts.std() - np.sqrt(1 + 1 / 64)) < 5 / np.sqrt(2 * casts.size)


def test_noise_has_the_dtype_and_the_free_sizes_of_every_input():
    specs = [
        TensorSpec("image", ("batch", 3, "height", "width"), "float16"),
        TensorSpec("mask", ("batch", 5), "int64"),
        TensorSpec("fixed", (2, 2), "float32"),
    ]
    feeds = noise(specs, 4, seed=0, image_size=16)
    assert feeds["image"].shape == (4, 3, 16, 16)
    assert feeds["image"].dtype == np.float16
    assert set(np.unique(feeds["mask"])) == {0, 1}
    assert feeds["fixed"].shape == (2, 2)


def test_a_free_size_that_nothing_settles_is_refused():
    with pytest.raises(BadInput, match=r"x: axis 1 \(length\)"):
        noise([TensorSpec("x", ("batch", "length"), "float32")], 1, seed=0, image_size=8)


def test_pictures_fill_every_batch_and_stay_within_the_limit():
    source = open_source("digits", Preprocessing.for_size(8))
    batches = [feeds["input"] for feeds in pictures(source, [IMAGE], 8, limit=20)]
    assert [batch.shape for batch in batches] == [(8, 3, 8, 8)] * 3
    # Twenty pictures: the third batch has four of its own, twice.
    np.testing.assert_array_equal(batches[2][:4], batches[2][4:])
    assert len(np.unique(np.concatenate(batches), axis=0)) == 20


def test_one_batch_is_compared_even_where_it_is_larger_than_the_limit():
    source = open_source("digits", Preprocessing.for_size(8))
    (feeds,) = pictures(source, [IMAGE], 32, limit=16)
    assert len(np.unique(feeds["input"], axis=0)) == 32


def test_pictures_cannot_feed_a_network_that_takes_something_else():
    source = open_source("digits", Preprocessing.for_size(8))
    with pytest.raises(BadInput, match="not take one picture but input, mask"):
        next(pictures(source, [IMAGE, TensorSpec("mask", ("batch", 5), "int64")], 2, limit=2))


def test_a_stream_says_what_it_feeds():
    source = open_source("digits", Preprocessing.for_size(8))
    assert "seed 7" in InputStream([IMAGE], None, 7, 16, None).label
    assert InputStream([IMAGE], source, 7, 16, None).label == "pictures of digits"


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64"])
def test_integer_pictures_are_the_files_own_levels(tmp_path, dtype):
    levels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    for index, picture in enumerate(levels):
        Image.fromarray(picture).save(tmp_path / f"{index}.png")
    source = open_source(str(tmp_path), Preprocessing.for_size(8))
    spec = TensorSpec("input", ("batch", 3, 8, 8), dtype)
    (feeds,) = pictures(source, [spec], 3, limit=3)
    assert feeds["input"].dtype == dtype
    np.testing.assert_array_equal(feeds["input"], levels.transpose(0, 3, 1, 2))
    assert "levels of 0 to 255" in InputStream([spec], source, 0, 3, None).label


def test_half_precision_pictures_are_normalized_and_rounded_once():
    source = open_source("digits", Preprocessing.for_size(8))
    half = TensorSpec("input", ("batch", 3, 8, 8), "float16")
    (single,), (rounded,) = (list(pictures(source, [s], 4, limit=4)) for s in (IMAGE, half))
    np.testing.assert_array_equal(rounded["input"], single["input"].astype(np.float16))


@pytest.mark.parametrize("dtype", ["int8", "bool", "bfloat16", "complex64"])
def test_pictures_are_never_cast_into_a_type_that_cannot_hold_them(dtype):
    source = open_source("digits", Preprocessing.for_size(8))
    spec = TensorSpec("input", ("batch", 3, 8, 8), dtype)
    with pytest.raises(BadInput, match=f"input input takes {dtype}"):
        next(pictures(source, [spec], 2, limit=2))


def test_noise_for_integer_pictures_covers_their_levels():
    spec = TensorSpec("input", ("batch", 3, 8, 8), "uint8")
    levels = noise([spec], 64, seed=0, image_size=None)["input"]
    assert levels.dtype == np.uint8
    assert (levels.min(), levels.max()) == (0, 255)
    assert 118 < levels.mean() < 138  # Within five deviations of the mean of 192 casts.


def test_noise_that_no_memory_holds_is_refused_before_it_is_made():
    spec = TensorSpec("image", ("batch", 3, 10_000, 10_000), "float32")
    with pytest.raises(MissingCapability, match=r"input image \[1000000, 3, 10000, 10000\] takes"):
        noise([spec], 1_000_000, seed=0, image_size=None)
