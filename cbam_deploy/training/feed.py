"""Batches on the device in time: the next ones are made while the network works on one."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import TypeVar

import torch
from torch import Tensor, nn

from cbam_deploy.data.source import Batch

T = TypeVar("T")
Pairs = Generator[tuple[Tensor, Tensor], None, None]

# Batches ready ahead of the network: one evens out how long pictures take, more is only memory.
_AHEAD = 2


def on_device(
    batches: Iterator[Batch],
    device: torch.device,
    memory_format: torch.memory_format = torch.channels_last,
) -> Pairs:
    """Pictures [N, 3, S, S] in `memory_format` and labels [N], made by another thread.

    What making them raises is raised here. When the reader stops early, so does the thread.
    """
    ready: queue.Queue[tuple[Tensor, Tensor] | BaseException | None] = queue.Queue(_AHEAD)
    stopped = threading.Event()
    thread = threading.Thread(
        target=_make, args=(batches, device, ready, stopped), name="batches", daemon=True
    )
    thread.start()
    try:
        while (made := ready.get()) is not None:
            if isinstance(made, BaseException):
                raise made
            images, labels = (tensor.to(device, non_blocking=True) for tensor in made)
            yield images.contiguous(memory_format=memory_format), labels
    finally:
        stopped.set()
        thread.join()


def memory_format_of(network: nn.Module) -> torch.memory_format:
    """The order in memory that a network's convolutions are in."""
    if all(parameter.is_contiguous() for parameter in network.parameters()):
        return torch.contiguous_format
    return torch.channels_last


def _make(
    batches: Iterator[Batch],
    device: torch.device,
    ready: queue.Queue[tuple[Tensor, Tensor] | BaseException | None],
    stopped: threading.Event,
) -> None:
    try:
        with closing(batches):  # type: ignore[type-var]
            for batch in batches:
                _put(ready, _tensors(batch, device), stopped)
                if stopped.is_set():
                    return
        _put(ready, None, stopped)
    except BaseException as error:  # The reader's thread raises it.
        _put(ready, error, stopped)


def _put(ready: queue.Queue[T], item: T, stopped: threading.Event) -> None:
    """Wait for a place, unless the reader has stopped."""
    while not stopped.is_set():
        try:
            ready.put(item, timeout=0.1)
            return
        except queue.Full:
            continue


def _tensors(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    """On the host still, but for a GPU in memory that it can copy from by itself."""
    assert batch.labels is not None  # `train` takes labelled sets only
    images, labels = torch.from_numpy(batch.images), torch.from_numpy(batch.labels)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # Each thread has its own, at first GPU 0.
        return images.pin_memory(), labels.pin_memory()
    return images, labels
