"""What a training run comes to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from cbam_deploy.provenance import Provenance

if TYPE_CHECKING:
    from cbam_deploy.report.tables import Table

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
class TrainResult:
    """A finished run.

    Attributes:
        output: folder of the run.
        weights: file of the best epoch's weights, in it.
        provenance: the model, its preprocessing and classes, as recorded in `weights`.
        epochs: what happened in each epoch.
        started_from: where the weights before the first epoch came from.
    """

    output: str
    weights: str
    provenance: Provenance
    epochs: tuple[Epoch, ...]
    started_from: str

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
        return {
            "output": self.output,
            "weights": self.weights,
            "started_from": self.started_from,
            "provenance": self.provenance.to_json(),
            "best_epoch": self.best.number,
            "best_val_accuracy": self.best.val_accuracy,
            "seconds": self.seconds,
            "epochs": [asdict(epoch) for epoch in self.epochs],
        }

    def __rich__(self) -> Table:
        from cbam_deploy.report.tables import Table

        table = Table("", "", show_header=False, title="Training")
        best = self.best
        model = self.provenance.model
        if model is not None:
            table.add_row("model", f"{model.name}, attention {model.attention or 'its own'}")
        table.add_row("classes", _listed(self.provenance.class_names))
        table.add_row("started from", self.started_from)
        table.add_row("epochs", f"{len(self.epochs)} in {self.seconds:.0f} s")
        table.add_row("best epoch", str(best.number))
        if best.val_accuracy is not None:
            table.add_row("validation accuracy", f"{best.val_accuracy:.2%}")
        table.add_row("training accuracy", f"{best.train_accuracy:.2%}")
        table.add_row("weights", self.weights)
        return table


def _listed(names: tuple[str, ...]) -> str:
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)}: {', '.join(names[:_SHOWN])}{rest}"
