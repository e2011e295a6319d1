"""Top-1 and top-5 accuracy over labelled pictures, for any number of networks side by side.

Pictures are read once and go through every network batch by batch, so memory stays flat and
predictions can be compared picture by picture.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cbam_deploy.artefacts import Artefact, open_artefact
from cbam_deploy.data.class_names import class_indices, normalized
from cbam_deploy.data.network_input import is_levels, network_feeds
from cbam_deploy.errors import BadInput
from cbam_deploy.exporters.half.rounded_runner import open_rounded
from cbam_deploy.library_errors import said_of_the_file
from cbam_deploy.machine import environment
from cbam_deploy.numerics.tensors import TensorSpec
from cbam_deploy.preprocessing.choice import Asked
from cbam_deploy.progress import progress
from cbam_deploy.provenance import ModelIdentity, Provenance
from cbam_deploy.runtimes.base import Runner
from cbam_deploy.validation.accuracy_report import AccuracyReport, NetworkAccuracy

if TYPE_CHECKING:
    from cbam_deploy.data import Batch, ImageSource

Labels = NDArray[np.int64]
PYTORCH = "pytorch"


@said_of_the_file
def evaluate(
    artefacts: str | Path | Sequence[str | Path],
    *,
    data: str,
    preprocessing: Asked | None = None,
    reference_pytorch: bool = False,
    reference: str | None = None,
    weights: str | Path | None = None,
    batch_size: int = 64,
    limit: int | None = None,
    max_drop: float | None = None,
    runtime: str | None = None,
    device: str | None = None,
) -> AccuracyReport:
    """Measure accuracy; the first network is the baseline that the others are compared with.

    Args:
        artefacts: ``.onnx`` and ``.engine`` files.
        data: SOURCE with labels; of ``digits``, the held-out split.
        preprocessing: how inputs are made from pictures (`preprocessing.choice.Asked`); None for
            what the artefacts record, else ImageNet's.
        reference_pytorch: also the PyTorch model of the first artefact's provenance, as baseline.
        reference: that model as a MODEL string, like the next one implying `reference_pytorch`; a
            factory must be named here (`models.recorded`).
        weights: its checkpoint, which must be named here if it has one.
        batch_size: pictures read at a time; cut to what each artefact takes.
        limit: use only so many pictures, drawn at random but always the same.
        max_drop: largest fall in top-1 below the baseline for which the report passes, such as
            0.005 for half a point.
        runtime: runtime instead of the one each file implies.
        device: ``cpu`` or ``cuda``.

    Raises:
        BadInput: an artefact or the data cannot be read, the data has no labels or other classes
            than the network, or the artefacts want different preprocessing.
        MissingCapability: this machine cannot run an artefact.
    """
    paths = [Path(a) for a in ([artefacts] if isinstance(artefacts, str | Path) else artefacts)]
    if not paths:
        raise BadInput("no artefact to evaluate", "name at least one .onnx or .engine file")
    reference_pytorch = reference_pytorch or (reference, weights) != (None, None)
    if max_drop is not None and len(paths) + reference_pytorch < 2:
        raise BadInput(
            f"{paths[0]}: has nothing to drop below",
            "add --pytorch, or name the baseline's artefact first",
        )
    opened = [open_artefact(path) for path in paths]
    with ExitStack() as stack:
        tallies = [
            _Tally(
                str(one.path),
                stack.enter_context(open_rounded(one, runtime=runtime, device=device)),
                one.provenance,
            )
            for one in opened
        ]
        source = _open_labelled(data, opened, preprocessing)
        if reference_pytorch:
            from cbam_deploy.models.recorded import reference_identity

            identity = reference_identity(paths[0], opened[0].provenance, reference, weights)
            (takes,) = tallies[0].runner.inputs
            runner = _pytorch(identity, source, takes, device)
            tallies.insert(0, _Tally(PYTORCH, stack.enter_context(runner), opened[0].provenance))
        for tally in tallies:
            _check_classifier(tally.name, tally.runner)
        images = _run(tallies, source, batch_size, limit)
        networks = tuple(tally.result(tallies[0]) for tally in tallies)
    return AccuracyReport(
        data=data,
        images=images,
        skipped=tuple(source.skipped),
        networks=networks,
        max_drop=max_drop,
        environment=environment(),
    )


class _Tally:
    """One network's score so far."""

    def __init__(self, name: str, runner: Runner, provenance: Provenance | None) -> None:
        self.name = name
        self.runner = runner
        self.predicted: NDArray[np.object_] = np.empty(0, object)
        self._known_classes = provenance.class_names if provenance else ()
        self._class_of_label: Labels | None = None
        self._names: NDArray[np.object_] = np.empty(0, object)
        self._top1 = 0
        self._top5 = 0
        self._classes = 0
        self._disagreements = 0
        self._images = 0
        self._seconds = 0.0

    def add(self, batch: Batch, source: ImageSource) -> None:
        """Score one batch; `predicted` then holds the names of the classes, empty for NaN."""
        (images,) = network_feeds(batch.inputs, source, self.runner.inputs).values()
        logits = self._logits(images)
        if self._class_of_label is None:
            self._classes = logits.shape[1]
            self._class_of_label = match_classes(
                self.name, self._known_classes, self._classes, source
            )
            # As the folders have it, so that networks of another order can be compared.
            names = [normalized(name) for name in self._known_classes or source.class_names]
            self._names = np.array(names, object)
            self._names[self._class_of_label] = source.class_names
        assert batch.labels is not None
        rank = ranks(logits, self._class_of_label[batch.labels])
        self._top1 += int(np.count_nonzero(rank < 1))
        self._top5 += int(np.count_nonzero(rank < 5))
        self._images += len(images)
        chosen = self._names[logits.argmax(axis=1)]
        self.predicted = np.where(np.isnan(logits).any(axis=1), "", chosen)

    def count_disagreements(self, baseline: _Tally) -> None:
        """Compare the predictions of the batch just added."""
        self._disagreements += int(np.count_nonzero(self.predicted != baseline.predicted))

    def result(self, baseline: _Tally) -> NetworkAccuracy:
        """The score over everything added."""
        return NetworkAccuracy(
            name=self.name,
            runtime=self.runner.name,
            top1=self._top1 / self._images,
            top5=self._top5 / self._images if self._classes >= 5 else None,
            drop=(baseline._top1 - self._top1) / self._images,
            disagreements=self._disagreements,
            images_per_second=self._images / self._seconds,
            classes="by name" if self._known_classes else "by order",
        )

    def _logits(self, images: NDArray[Any]) -> NDArray[np.float64]:
        """Logits [N, classes], in as many runs as the network's batch range needs."""
        smallest, largest = self.runner.batch_range
        step = len(images) if largest is None else min(largest, len(images))
        pieces = [
            self._run(images[start : start + step], smallest)
            for start in range(0, len(images), step)
        ]
        return np.concatenate(pieces)

    def _run(self, images: NDArray[Any], smallest: int) -> NDArray[np.float64]:
        (spec,) = self.runner.inputs
        padded = np.take(images, range(max(smallest, len(images))), axis=0, mode="wrap")
        feeds = {spec.name: padded}
        if not self._seconds:
            self.runner.infer(feeds)  # The first run sets up memory; it is not part of the speed.
        begin = time.perf_counter()
        outputs = self.runner.infer(feeds)
        self._seconds += time.perf_counter() - begin
        return outputs[self.runner.outputs[0].name][: len(images)].astype(np.float64)


def ranks(logits: NDArray[np.floating[Any]], classes: Labels) -> Labels:
    """How many classes come before the right one, 0 for a right prediction.

    Equal logits come in the order of their classes, as argmax has it. A row with NaN in it predicts
    nothing: its rank is behind all classes.

    Args:
        logits: [N, classes].
        classes: the right one for each row, int64 [N].

    Returns:
        int64 [N].
    """
    own = np.take_along_axis(logits, classes[:, None], axis=1)
    earlier = np.arange(logits.shape[1]) < classes[:, None]
    rank = np.count_nonzero((logits > own) | ((logits == own) & earlier), axis=1)
    rank[np.isnan(logits).any(axis=1)] = logits.shape[1]
    return np.asarray(rank, np.int64)


def match_classes(network: str, known: Sequence[str], classes: int, source: ImageSource) -> Labels:
    """The network's class for each label of `source`.

    By name where the network knows the names of its classes, of which the source may have fewer
    (`data.class_names`); else one to one, where both have equally many.

    Args:
        network: name for the message.
        known: names of the network's classes, empty if unknown.
        classes: number of logits.
        source: has labels and class names.

    Returns:
        int64 [labels].

    Raises:
        BadInput: the classes correspond in neither way.
    """
    names = source.class_names
    if known and len(known) != classes:
        raise BadInput(
            f"{network}: records the names of {len(known)} classes and gives {classes} logits",
            "export the network again from its checkpoint",
        )
    if known:
        return np.array(class_indices(names, known, where=source.name, of=network), np.int64)
    if len(names) != classes:
        raise BadInput(
            f"{source.name}: has {len(names)} classes, {network} tells {classes} apart",
            "give labelled pictures of the classes that the network was trained on",
        )
    return np.arange(classes)


def _run(tallies: list[_Tally], source: ImageSource, batch_size: int, limit: int | None) -> int:
    """Take the pictures through every network; return their number."""
    # Folders come class by class: the first pictures would all be of the same class.
    seed = None if limit is None else 0
    total = min(len(source), limit or len(source))
    done = 0
    with progress() as bar:
        task = bar.add_task("evaluate", total=total)
        for batch in source.batches(batch_size, limit=limit, shuffle_seed=seed):
            for tally in tallies:
                tally.add(batch, source)
                tally.count_disagreements(tallies[0])
            done += len(batch)
            bar.update(task, advance=len(batch))
    return done


def _check_classifier(name: str, runner: Runner) -> None:
    if len(runner.inputs) != 1 or len(runner.outputs[0].shape) != 2:
        raise BadInput(
            f"{name}: is no classifier from one image tensor to logits [N, classes]",
            "evaluate classifiers; 'cbam-deploy validate' compares networks of any kind",
        )


def _open_labelled(
    data: str, artefacts: Sequence[Artefact], preprocessing: Asked | None
) -> ImageSource:
    # A folder without train and test parts gives everything.
    speaker = artefacts[0] if preprocessing is not None else _speaker(artefacts)
    source = speaker.samples(data, preprocessing, split="test")
    if source.labels is None:
        raise BadInput(
            f"{data}: has no labels to compare with",
            "give a folder with one subfolder of pictures per class, or digits",
        )
    return source


def _speaker(artefacts: Sequence[Artefact]) -> Artefact:
    """The artefact whose preprocessing holds for all."""
    found = {one.recorded_preprocessing: one for one in artefacts if one.recorded_preprocessing}
    if len(found) > 1:
        one, other = list(found.values())[:2]
        raise BadInput(
            f"{one.path} and {other.path} want pictures prepared differently",
            "evaluate them one by one",
        )
    return next(iter(found.values()), artefacts[0])


def _pytorch(
    identity: ModelIdentity, source: ImageSource, takes: TensorSpec, device: str | None
) -> Runner:
    from cbam_deploy.runtimes.pytorch import PyTorchRunner

    dtype = takes.dtype if is_levels(takes.dtype) else "float32"  # Of FP16 it is the reference.
    shape = takes.shape[1:] if source.ready else source.preprocessing.shape
    image = TensorSpec("input", ("batch", *shape), dtype)
    return PyTorchRunner(identity, [image], device or "cpu")
