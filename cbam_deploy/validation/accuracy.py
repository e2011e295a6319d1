"""Networks judged by a metric over pictures with targets, any number of them side by side.

Pictures are read once and go through every network batch by batch, so memory stays flat and
predictions can be compared picture by picture.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from cbam_deploy.artefacts import Artefact, open_artefacts
from cbam_deploy.data.network_input import is_levels, network_feeds
from cbam_deploy.data.source import Batch, ImageSource
from cbam_deploy.errors import BadInput
from cbam_deploy.exporters.half.rounded_runner import open_rounded
from cbam_deploy.library_errors import said_of_the_file
from cbam_deploy.machine import environment
from cbam_deploy.numerics.feeds import infer_in_range
from cbam_deploy.numerics.tensors import Arrays, Feeds, TensorSpec
from cbam_deploy.preprocessing.choice import Asked
from cbam_deploy.progress import progress
from cbam_deploy.provenance import ModelIdentity, Provenance
from cbam_deploy.runtimes.base import Runner
from cbam_deploy.validation.accuracy_report import AccuracyReport, NetworkScore
from cbam_deploy.validation.metrics import metric_unit, open_metric
from cbam_deploy.validation.metrics.metric import Metric, Network

PYTORCH = "pytorch"


@said_of_the_file
def evaluate(
    artefacts: str | Path | Sequence[str | Path],
    *,
    data: str,
    metric: str = "top1",
    preprocessing: Asked | None = None,
    sizes: Sequence[str] = (),
    pytorch: bool = False,
    reference: str | None = None,
    weights: str | Path | None = None,
    batch_size: int = 64,
    limit: int | None = None,
    max_drop: float | None = None,
    runtime: str | None = None,
    device: str | None = None,
) -> AccuracyReport:
    """Judge by a metric; the first network is the baseline that the others are compared with.

    Args:
        artefacts: ``.onnx`` and ``.engine`` files.
        data: SOURCE with what the metric needs: labels for ``top1`` (of ``digits``, the held-out
            split), masks for ``miou``, boxes for ``map``.
        metric: one of `validation.metrics.METRICS`, or ``package.module:function`` or
            ``path/file.py:function`` of the person's own (`validation.metrics.own_function`).
        preprocessing: how inputs are made from pictures (`preprocessing.choice.Asked`); None for
            what the artefacts record, else ImageNet's.
        sizes: of free axes where neither that nor a file says how large pictures become, such as
            ``H=640``, in every artefact that has them.
        pytorch: also the PyTorch model of the first artefact's provenance, as baseline.
        reference: that model as a MODEL string, like the next one implying `pytorch`; a
            factory must be named here (`models.recorded`).
        weights: its checkpoint, which must be named here if it has one.
        batch_size: pictures read at a time; cut to what each artefact takes.
        limit: use only so many pictures, drawn at random but always the same.
        max_drop: largest fall of the metric below the baseline for which the report passes, such as
            0.005 for half a point.
        runtime: runtime instead of the one each file implies.
        device: ``cpu`` or ``cuda``.

    Raises:
        BadInput: an artefact or the data cannot be read, the data lacks what the metric needs or
            has other classes than the network, the outputs are not what it judges, or the artefacts
            want different preprocessing.
        MissingCapability: this machine cannot run an artefact, or lacks what the metric needs.
    """
    paths = [Path(a) for a in ([artefacts] if isinstance(artefacts, str | Path) else artefacts)]
    if not paths:
        raise BadInput("no artefact to evaluate", "name at least one .onnx or .engine file")
    pytorch = pytorch or (reference, weights) != (None, None)
    if max_drop is not None and len(paths) + pytorch < 2:
        raise BadInput(
            f"{paths[0]}: has nothing to drop below",
            "add --pytorch, or name the baseline's artefact first",
        )
    metric_unit(metric).check_drop(max_drop or 0.0)
    opened = open_artefacts(paths, sizes)
    with ExitStack() as stack:
        contestants = [
            _Contestant(
                str(one.path),
                stack.enter_context(open_rounded(one, runtime=runtime, device=device)),
                one.provenance,
            )
            for one in opened
        ]
        speaker = opened[0] if preprocessing is not None else _speaker(opened)
        task = open_metric(metric, data, speaker.preparation(data, preprocessing))
        if pytorch:
            from cbam_deploy.models.recorded import reference_identity

            identity = reference_identity(paths[0], opened[0].provenance, reference, weights)
            takes = contestants[0].runner.inputs
            runner = stack.enter_context(_pytorch(identity, task.source, takes, device))
            contestants.insert(0, _Contestant(PYTORCH, runner, opened[0].provenance))
        for contestant in contestants:
            contestant.enter(task)
        images = _run(contestants, task, batch_size, limit)
        networks = _results(contestants)
        return AccuracyReport(
            data=data,
            images=images,
            skipped=tuple(task.source.skipped),
            networks=networks,
            max_drop=max_drop,
            environment=environment(),
            metric=metric,
            notes=task.notes,
            figures=task.figures([(one.name, one.judge) for one in contestants]),
        )


class _Contestant:
    """One network, the judge of its outputs, and the time it took."""

    def __init__(self, name: str, runner: Runner, provenance: Provenance | None) -> None:
        self.name = name
        self.runner = runner
        self._class_names = provenance.class_names if provenance else ()
        self.images = 0
        self.seconds = 0.0

    def enter(self, task: Metric) -> None:
        """Get a judge; raises `BadInput` where the network is of another kind."""
        outputs = tuple(self.runner.outputs)
        self.judge = task.judge(Network(self.name, outputs, self._class_names))

    def add(self, batch: Batch, source: ImageSource) -> None:
        """Run a batch and have its outputs judged."""
        feeds = network_feeds(batch.inputs, source, self.runner.inputs)
        outputs = infer_in_range(self._timed, feeds, self.runner.batch_range, self.name)
        self.judge.add(outputs, batch.indices)
        self.images += len(batch)

    def _timed(self, feeds: Feeds) -> Arrays:
        if not self.seconds:
            self.runner.infer(feeds)  # The first run sets up memory; it is not part of the speed.
        begin = time.perf_counter()
        outputs = self.runner.infer(feeds)
        self.seconds += time.perf_counter() - begin
        return outputs


def _run(contestants: list[_Contestant], task: Metric, batch_size: int, limit: int | None) -> int:
    """Take the pictures through every network; return their number."""
    # Folders come class by class: the first pictures would all be of the same class.
    seed = None if limit is None else 0
    total = min(len(task.source), limit or len(task.source))
    done = 0
    with progress() as bar:
        shown = bar.add_task("evaluate", total=total)
        for batch in task.source.batches(batch_size, limit=limit, shuffle_seed=seed):
            for contestant in contestants:
                contestant.add(batch, task.source)
            done += len(batch)
            bar.update(shown, advance=len(batch))
    return done


def _results(contestants: Sequence[_Contestant]) -> tuple[NetworkScore, ...]:
    first = contestants[0]
    scores = [one.judge.score() for one in contestants]
    values = [score.readings[0].value for score in scores]
    return tuple(
        NetworkScore(
            name=one.name,
            runtime=one.runner.name,
            score=score,
            drop=(values[0] or 0.0) - (value or 0.0),
            disagreements=one.judge.disagreements(first.judge),
            images_per_second=one.images / one.seconds,
            classes=one.judge.classes,
        )
        for one, score, value in zip(contestants, scores, values, strict=True)
    )


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
    identity: ModelIdentity, source: ImageSource, takes: Sequence[TensorSpec], device: str | None
) -> Runner:
    from cbam_deploy.runtimes.pytorch import PyTorchRunner

    inputs = [
        TensorSpec(
            spec.name,
            ("batch", *(spec.shape[1:] if source.ready else source.preprocessing.shape)),
            spec.dtype if is_levels(spec.dtype) else "float32",  # Of FP16 it is the reference.
        )
        for spec in takes
    ]
    return PyTorchRunner(identity, inputs, device or "cpu")
