"""Batches: same content whatever the threads, bad pictures skipped, little in memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from cbam_deploy.data.pictures import UnreadablePicture
from cbam_deploy.data.source import ImageSource
from cbam_deploy.errors import BadInput
from cbam_deploy.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(image_size=4, resize=4, mean=(0, 0, 0), std=(1, 1, 1))


def numbered(count: int, bad: Sequence[int] = (), slow: Sequence[int] = ()) -> ImageSource:
    """Picture i is of grey level i and has label i; some cannot be read, some take longer."""

    def read(index: int) -> Image.Image:
        if index in bad:
            raise UnreadablePicture("no luck")
        if index in slow:
            time.sleep(0.02)
        return Image.new("RGB", (4, 4), (index,) * 3)

    labels = np.arange(count, dtype=np.int64)
    return ImageSource("set", [f"{i}.png" for i in range(count)], read, PREPROCESSING, labels)


def levels(source: ImageSource, batch_size: int, **options: object) -> list[list[int]]:
    """Grey level of each picture of each batch, after checking it against the labels."""
    found = []
    for batch in source.batches(batch_size, **options):
        grey = np.rint(batch.images[:, 0, 0, 0] * 255).astype(int).tolist()
        assert batch.labels is not None
        assert batch.labels.tolist() == grey
        assert batch.images.shape[1:] == (3, 4, 4)
        # As a network needs them that flattens by `view`.
        assert batch.images.flags.c_contiguous
        found.append(grey)
    return found


@pytest.mark.parametrize("workers", [None, 0, 1, 3])
def test_order_is_the_sets_whatever_the_threads_do(workers: int | None) -> None:
    source = numbered(10, slow=(0, 5))
    assert levels(source, 4, workers=workers) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_shuffling_is_a_permutation_that_the_seed_repeats() -> None:
    first, again, other = (
        levels(numbered(50), 50, shuffle_seed=seed)[0] for seed in ((1, 2), (1, 2), (1, 3))
    )
    assert first == again
    assert first != other
    assert sorted(first) == sorted(other) == list(range(50))


def test_unreadable_pictures_are_skipped_and_noted_once() -> None:
    source = numbered(7, bad=(0, 4))
    for _ in range(2):
        assert levels(source, 3) == [[1, 2, 3], [5, 6]]
    assert source.skipped == [("0.png", "no luck"), ("4.png", "no luck")]


def test_limit_counts_readable_pictures() -> None:
    assert levels(numbered(9, bad=(1,)), 2, limit=3) == [[0, 2], [3]]


def test_an_incomplete_last_batch_can_be_left_out_unless_it_is_all() -> None:
    assert levels(numbered(5), 2, drop_incomplete=True) == [[0, 1], [2, 3]]
    assert levels(numbered(5), 8, drop_incomplete=True) == [[0, 1, 2, 3, 4]]


def test_a_set_without_a_readable_picture_is_refused() -> None:
    with pytest.raises(BadInput, match=r"none of 2 pictures can be read \(0\.png: no luck\)"):
        list(numbered(2, bad=(0, 1)).batches(1))


@pytest.mark.parametrize(
    "options", [{"batch_size": 0}, {"batch_size": 1, "limit": 0}, {"batch_size": 10**30}], ids=str
)
def test_sizes_are_positive_and_can_be_counted(options: dict[str, int]) -> None:
    with pytest.raises(BadInput, match=r"(batches of|limit) \d") as caught:
        numbered(2).batches(**options)
    assert "positive" in caught.value.hint


def test_threads_are_not_fewer_than_none_nor_more_than_there_can_be() -> None:
    for workers in (-1, 10**6):
        with pytest.raises(BadInput, match=f"{workers} threads"):
            numbered(2).batches(1, workers=workers)


def test_reading_ahead_is_bounded_and_stops_with_the_reader() -> None:
    reads = []

    def read(index: int) -> Image.Image:
        reads.append(index)
        return Image.new("RGB", (4, 4))

    names, labels = [f"{i}.png" for i in range(200)], np.zeros(200, np.int64)
    batches = ImageSource("set", names, read, PREPROCESSING, labels).batches(4, workers=2)
    next(batches)
    time.sleep(0.1)
    assert len(reads) <= 4 + 4 + 2  # The batch given, one ahead, one for each thread.
    batches.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pictures")]


def test_augmentation_replaces_the_crop_and_repeats_with_the_seed() -> None:
    def shade(picture: Image.Image, preprocessing: Preprocessing, chance: object) -> Image.Image:
        return Image.new("RGB", (4, 4), (int(chance.integers(256)),) * 3)  # type: ignore[attr-defined]

    def run(seed: tuple[int, int], workers: int) -> np.ndarray:
        batch = next(numbered(20).batches(20, shuffle_seed=seed, augment=shade, workers=workers))
        return batch.images

    assert np.array_equal(run((0, 1), 0), run((0, 1), 3))
    assert not np.array_equal(run((0, 1), 0), run((0, 2), 0))
    assert len(np.unique(run((0, 1), 0))) > 10  # Each picture has chance of its own.


@pytest.mark.parametrize("count", [1, 2, 3])
def test_shares_cover_every_picture_once_and_make_the_whole_batch_together(count: int) -> None:
    source, seed = numbered(25), 7
    whole = levels(source, 6, shuffle_seed=seed)
    shares = [
        levels(source, 6 // count, shuffle_seed=seed, share=(number, count))
        for number in range(count)
    ]
    taken = [level for share in shares for batch in share for level in batch]
    assert sorted(taken) == list(range(25))
    for number, batch in enumerate(whole[:-1]):
        together = [level for share in shares for level in share[number]]
        assert sorted(together) == sorted(batch)


def test_a_share_may_be_empty() -> None:
    assert levels(numbered(1), 4, share=(1, 2)) == []
    assert levels(numbered(2, bad=(1,)), 4, share=(1, 2)) == []
