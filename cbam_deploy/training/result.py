"""What a training run comes to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from cbam_deploy.provenance import Provenance
from cbam_deploy.report.content import Figure, KeyFigure, Section, Table
from cbam_deploy.report.plots import curves_plot
from cbam_deploy.report.result import Result
from cbam_deploy.report.units import duration, percent

_SHOWN = 10  # classes


@dataclass(frozen=True)
class Epoch:
    """One epoch; losses are mean cross-entropies, accuracies top-1 in 0..1.

    Attributes:
        number: counted from 1.
        lr: learning rate.
        train_loss: over the augmented pictures, as the weights were at each step.
        train_accuracy: likewise.
        val_loss: over the validation pictures after the epoch, None without such.
        val_accuracy: likewise.
        seconds: wall-clock time.
    """

    number: int
    lr: float
    train_loss: float
    train_accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    seconds: float


def best_epoch(epochs: tuple[Epoch, ...]) -> Epoch:
    """The epoch of highest validation accuracy, of equal ones that of lowest loss, then the first.

    Without validation it is the last.
    """
    if epochs[-1].val_accuracy is None:
        return epochs[-1]
    return max(epochs, key=lambda epoch: (epoch.val_accuracy or 0.0, -(epoch.val_loss or 0.0)))


@dataclass(frozen=True)
class TrainResult(Result):
    """A finished run.

    Attributes:
        output: folder of the run.
        weights: file of the best epoch's weights, in it.
        provenance: the model, its preprocessing and classes, as recorded in `weights`.
        epochs: what happened in each epoch.
        started_from: where the weights before the first epoch came from.
        pictures: number of those to learn from.
        held_out: number of those to be tested on.
        skipped: name and reason of each picture of both that could not be read, of this process.
    """

    schema: ClassVar[str] = "cbam_deploy.training"

    output: str
    weights: str
    provenance: Provenance
    epochs: tuple[Epoch, ...]
    started_from: str
    pictures: int
    held_out: int
    skipped: tuple[tuple[str, str], ...] = ()

    @property
    def best(self) -> Epoch:
        """The epoch whose weights were kept."""
        return best_epoch(self.epochs)

    @property
    def seconds(self) -> float:
        """Wall-clock time of all epochs, those before a resumption included."""
        return sum(epoch.seconds for epoch in self.epochs)

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready data."""
        best = {"best_epoch": self.best.number, "best_val_accuracy": self.best.val_accuracy}
        return {**super().to_json(), **best, "seconds": self.seconds}

    def sections(self) -> tuple[Section, ...]:
        """What was trained, the accuracy reached, and both over the epochs."""
        model, best = self.provenance.model, self.best
        scales = len(self.provenance.trained_scales)
        validated = "" if best.val_accuracy is None else percent(best.val_accuracy)
        taken = KeyFigure("Training time", duration(self.seconds), self._epochs)
        note = f"held-out pictures, after epoch {best.number}, whose weights were kept"
        reached = (KeyFigure("Top-1 accuracy", validated, note),) if validated else ()
        facts = (
            ("model", f"{model.name}, attention {model.attention or 'its own'}" if model else ""),
            ("classes", _listed(self.provenance.class_names)),
            ("pictures", f"{self.pictures:,}, and {self.held_out:,} held out"),
            ("skipped", f"{len(self.skipped):,}, which cannot be read" if self.skipped else ""),
            ("started from", self.started_from),
            ("INT8", f"{scales} activations with trained scales" if scales else ""),
            ("epochs", f"{len(self.epochs)} in {duration(self.seconds)}"),
            ("best epoch", str(best.number)),
            ("validation accuracy", validated),
            ("training accuracy", percent(best.train_accuracy)),
            ("weights", self.weights),
        )
        return (
            Section(
                title="Training",
                key_figures=(*reached, taken),
                figures=(
                    self._curves("accuracy", "top-1 accuracy in %", 100.0),
                    self._curves("loss", "cross-entropy", 1.0),
                ),
                tables=(Table.facts(facts),),
            ),
        )

    @property
    def _epochs(self) -> str:
        return "one epoch" if len(self.epochs) == 1 else f"{len(self.epochs)} epochs"

    def _curves(self, figure: str, unit: str, scale: float) -> Figure:
        curves = {}
        for key, label in (("val", "held-out pictures"), ("train", "training pictures, augmented")):
            values = [getattr(epoch, f"{key}_{figure}") for epoch in self.epochs]
            if any(value is not None for value in values):
                curves[label] = [math.nan if value is None else scale * value for value in values]
        ends = "; ".join(
            f"{values[0]:.3g} to {values[-1]:.3g} on {label}" for label, values in curves.items()
        )
        numbers = [epoch.number for epoch in self.epochs]
        return Figure(
            partial(curves_plot, numbers, curves, xlabel="epoch", unit=unit),
            f"{figure.capitalize()} over {self._epochs}.",
            f"{figure.capitalize()} by epoch, from {ends}.",
        )


def _listed(names: tuple[str, ...]) -> str:
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)}: {', '.join(names[:_SHOWN])}{rest}"
