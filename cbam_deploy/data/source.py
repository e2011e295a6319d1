"""A set of samples that gives batches: in parallel, in a fixed order, in little memory."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cbam_deploy.data.class_names import class_indices
from cbam_deploy.data.pictures import UnreadablePicture, fit, normalize
from cbam_deploy.errors import BadInput
from cbam_deploy.preprocessing import Preprocessing
from cbam_deploy.preprocessing.own_function import OwnFunction, Sample
from cbam_deploy.preprocessing.text import text_of

if TYPE_CHECKING:
    from PIL.Image import Image

# Cuts a training example out of a picture, by chance.
Augment = Callable[["Image", Preprocessing, np.random.Generator], "Image"]
Prepared = Sample | UnreadablePicture
# Number of a process, from 0, and count of processes that divide the pictures among them.
Share = tuple[int, int]
# Numbers of pictures; counters and indices of other libraries go no further.
LARGEST = 2**31 - 1
MOST_WORKERS = 1024


@dataclass(frozen=True)
class Batch:
    """Samples to feed to a network.

    Attributes:
        inputs: contiguous arrays [N, ...] by input name; ``""`` is the only input of a network,
            whatever its name. Pictures are float32 [N, C, H, W] under that name.
        labels: int64 [N], or None.
        indices: which samples of the source they are, int64 [N].
    """

    inputs: Mapping[str, NDArray[Any]]
    labels: NDArray[np.int64] | None
    indices: NDArray[np.int64]

    @property
    def images(self) -> NDArray[np.float32]:
        """Pictures [N, C, H, W]."""
        return self.inputs[""]

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))


def check_workers(workers: int | None) -> None:
    """Raise `BadInput` for a number of threads that no process has."""
    if workers is not None and not 0 <= workers <= MOST_WORKERS:
        raise BadInput(
            f"{workers} threads that read pictures", f"give a number from 0 to {MOST_WORKERS}"
        )


class ImageSource:
    """Pictures or tensors of one kind, with labels or without.

    Args:
        name: SOURCE as given.
        names: what to call each picture, such as its path.
        read: the picture of an index in RGB or RGBA, or tensors that a network takes as they are;
            raises `UnreadablePicture`.
        preprocessing: how inputs are made from pictures.
        labels: class of each picture, int64 [len], None where there are none.
        class_names: names of the classes in the order of labels.
        tensors: whether `read` gives tensors.

    Attributes:
        skipped: name and reason of each unreadable picture met so far.
        ready: whether batches are what networks take: tensors, or what a person's function made.
    """

    def __init__(
        self,
        name: str,
        names: Sequence[str],
        read: Callable[[int], Image | Sample],
        preprocessing: Preprocessing,
        labels: NDArray[np.int64] | None = None,
        class_names: tuple[str, ...] = (),
        *,
        tensors: bool = False,
    ) -> None:
        self.name = name
        self.names = tuple(names)
        self.preprocessing = preprocessing
        self.labels = labels
        self.class_names = class_names
        self.skipped: list[tuple[str, str]] = []
        self.ready = tensors or isinstance(preprocessing, OwnFunction)
        self._tensors = tensors
        self._read = read

    @property
    def prepared_by(self) -> str:
        """The preprocessing as text, or that there is none."""
        return "none, tensors" if self._tensors else text_of(self.preprocessing)

    def use_classes(self, names: tuple[str, ...], of: str) -> None:
        """Count classes as in `names`, which are those of the set `of`; labels then mean these.

        Raises:
            BadInput: a class of this set is not among them (`class_names.class_indices`).
        """
        indices = class_indices(self.class_names, names, where=self.name, of=of)
        if self.labels is not None:
            self.labels = np.array(indices, np.int64)[self.labels]
        self.class_names = names

    def __len__(self) -> int:
        return len(self.names)

    def batches(
        self,
        batch_size: int,
        *,
        limit: int | None = None,
        shuffle_seed: int | Sequence[int] | None = None,
        augment: Augment | None = None,
        drop_incomplete: bool = False,
        share: Share = (0, 1),
        workers: int | None = None,
    ) -> Iterator[Batch]:
        """Go through the pictures once; the result depends on no thread's timing.

        Unreadable pictures are skipped and noted in `skipped`; the next ones take their place.

        Args:
            batch_size: pictures in a batch; the last batch may have fewer.
            limit: stop after that many pictures.
            shuffle_seed: go through them in the order this seed gives; None keeps the set's order.
            augment: cuts the input out of the picture, by chance drawn from `shuffle_seed` and
                the picture's index, instead of resize and centre crop.
            drop_incomplete: leave out a last batch that is not full, unless it is the only one.
            share: which of several processes this is, from 0, and how many there are. Process i of
                n takes every n-th picture from the i-th on, so that with equal batch sizes their
                k-th batches together are the k-th batch, n times as large, of one process.
            workers: threads that decode; None for one per CPU core up to 8, 0 for none.

        Raises:
            BadInput: a number cannot work, or no picture can be read; a share without pictures
                gives no batches instead.
        """
        for what, number in (("batches of", batch_size), ("limit", 1 if limit is None else limit)):
            if not 1 <= number <= LARGEST:
                raise BadInput(f"{what} {number}", f"give a positive number, up to {LARGEST}")
        check_workers(workers)
        order = np.arange(len(self))
        if shuffle_seed is not None:
            np.random.default_rng(shuffle_seed).shuffle(order)
        number, count = share
        readable = self._readable(order[number::count], augment, shuffle_seed, batch_size, workers)
        pictures = itertools.islice(readable, limit)
        return self._group(pictures, batch_size, drop_incomplete, may_be_empty=count > 1)

    def _group(
        self,
        pictures: Iterable[tuple[int, Sample]],
        size: int,
        drop: bool,
        may_be_empty: bool,
    ) -> Iterator[Batch]:
        pictures = iter(pictures)
        none_yet = True
        while group := list(itertools.islice(pictures, size)):
            if drop and len(group) < size and not none_yet:
                return
            none_yet = False
            indices = [index for index, _ in group]
            labels = None if self.labels is None else self.labels[indices]
            # np.stack keeps the order in memory, which decoders choose; networks may rely on it.
            inputs = {
                name: np.ascontiguousarray(self._stacked(name, [one for _, one in group]))
                for name in group[0][1]
            }
            yield Batch(inputs, labels, np.array(indices, np.int64))
        if none_yet and not may_be_empty:
            raise BadInput(
                f"{self.name}: none of {len(self)} pictures can be read"
                f" ({self.skipped[0][0]}: {self.skipped[0][1]})",
                "give a folder of JPEG or PNG pictures",
            )

    def _stacked(self, name: str, samples: Sequence[Sample]) -> NDArray[Any]:
        shapes = {sample[name].shape if name in sample else None for sample in samples}
        if len(shapes) > 1:
            listed = " and ".join(sorted(map(str, shapes)))
            raise BadInput(
                f"{self.name}: its samples have several shapes {listed}",
                "let --preprocess make all of one size",
            )
        return np.stack([sample[name] for sample in samples])

    def _readable(
        self,
        order: NDArray[np.int64],
        augment: Augment | None,
        seed: int | Sequence[int] | None,
        ahead: int,
        workers: int | None,
    ) -> Iterator[tuple[int, Sample]]:
        own = self.preprocessing if isinstance(self.preprocessing, OwnFunction) else None
        if own is not None:
            workers = 0  # Nothing says that it may run in several threads at once.

        def prepare(index: int) -> Prepared:
            try:
                picture = self._read(index)
                if isinstance(picture, dict):
                    return picture
                if own is not None:
                    return own.sample(np.asarray(picture.convert("RGB")))
                if augment is None:
                    picture = fit(picture, self.preprocessing)
                else:
                    chance = np.random.default_rng([*np.atleast_1d(seed or 0).tolist(), index])
                    picture = augment(picture, self.preprocessing, chance)
            except UnreadablePicture as error:
                return error
            return {"": normalize(picture, self.preprocessing)}

        indices = order.tolist()
        for index, prepared in _in_order(prepare, indices, ahead, workers):
            if isinstance(prepared, UnreadablePicture):
                note = (self.names[index], str(prepared))
                if note not in self.skipped:
                    self.skipped.append(note)
            else:
                yield index, prepared


def _in_order(
    prepare: Callable[[int], Prepared], indices: Iterable[int], ahead: int, workers: int | None
) -> Iterator[tuple[int, Prepared]]:
    """`prepare` of each index, in order, at most `ahead` and the threads' own in memory."""
    threads = min(os.cpu_count() or 1, 8) if workers is None else workers
    if threads == 0:
        yield from ((index, prepare(index)) for index in indices)
        return
    pending: deque[tuple[int, Future[Prepared]]] = deque()
    remaining = iter(indices)
    with ThreadPoolExecutor(threads, thread_name_prefix="pictures") as pool:
        try:
            for index in itertools.islice(remaining, ahead + threads):
                pending.append((index, pool.submit(prepare, index)))
            while pending:
                index, future = pending.popleft()
                yield index, future.result()
                for following in itertools.islice(remaining, 1):
                    pending.append((following, pool.submit(prepare, following)))
        finally:
            pool.shutdown(cancel_futures=True)
