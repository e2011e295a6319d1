"""Batches made ahead: in order, errors passed on, nothing left running."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from cbam_deploy.data.source import Batch
from cbam_deploy.training.feed import on_device

CPU = torch.device("cpu")


def numbered(count: int, fails: bool = False) -> Iterator[Batch]:
    for number in range(count):
        images = np.full((2, 3, 4, 4), number, np.float32)
        yield Batch({"": images}, np.full(2, number, np.int64), np.arange(2))
    if fails:
        raise OSError("the disk went away")


def running() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "batches"]


def test_batches_come_in_order_and_channels_last() -> None:
    pairs = list(on_device(numbered(9), CPU))
    assert [int(images[0, 0, 0, 0]) for images, _ in pairs] == list(range(9))
    assert [int(labels[0]) for _, labels in pairs] == list(range(9))
    assert all(images.is_contiguous(memory_format=torch.channels_last) for images, _ in pairs)
    assert not running()


def test_what_making_them_raises_is_raised_where_they_are_read() -> None:
    pairs = on_device(numbered(1, fails=True), CPU)
    next(pairs)
    with pytest.raises(OSError, match="the disk went away"):
        next(pairs)
    assert not running()


def test_a_reader_that_stops_early_stops_the_making() -> None:
    closed = []

    def endless() -> Iterator[Batch]:
        try:
            while True:
                yield from numbered(1)
        finally:
            closed.append(True)

    pairs = on_device(endless(), CPU)
    next(pairs)
    pairs.close()
    assert closed
    assert not running()
