"""What a run says while it goes on: the pictures it has, each epoch, and what it cannot read."""

from __future__ import annotations

import logging

import numpy as np

from cbam_deploy.data.source import ImageSource
from cbam_deploy.progress import announce
from cbam_deploy.report.units import duration
from cbam_deploy.training.result import Epoch

_FEW_STEPS = 10  # Fewer of them in an epoch hardly move the weights, and BatchNorm's statistics.
_MOST_NAMED = 20
_log = logging.getLogger(__name__)


def announce_sets(train_set: ImageSource, val_set: ImageSource | None, batch_size: int) -> None:
    """Say how many pictures and classes there are; warn where they make few steps an epoch."""
    assert train_set.labels is not None
    classes = len(train_set.class_names)
    counts = np.bincount(train_set.labels, minlength=classes)
    least, most = counts.min(), counts.max()
    each = f"{least:,} each" if least == most else f"{least:,} to {most:,} each"
    held_out = "none held out" if val_set is None else f"{len(val_set):,} held out"
    announce(f"{len(train_set):,} pictures in {classes:,} classes of {each}, {held_out}")
    steps = len(train_set) // batch_size
    if steps < _FEW_STEPS:
        _log.warning(
            "an epoch has %s of %d pictures; give a smaller --batch-size for more",
            "one step" if steps < 2 else f"{steps} steps",
            min(batch_size, len(train_set)),
        )


def announce_epoch(epoch: Epoch, epochs: int) -> None:
    """Say what an epoch came to, in one line."""
    tested = (
        ""
        if epoch.val_loss is None or epoch.val_accuracy is None
        else f"; held out: loss {epoch.val_loss:.4f}, accuracy {epoch.val_accuracy:.2%}"
    )
    announce(
        f"epoch {epoch.number}/{epochs}: loss {epoch.train_loss:.4f},"
        f" accuracy {epoch.train_accuracy:.2%}{tested}; {duration(epoch.seconds)}"
    )


class UnreadablePictures:
    """Warns of each picture that cannot be read, once, by its name.

    Args:
        sources: what the pictures are of.
    """

    def __init__(self, *sources: ImageSource | None) -> None:
        self._sources = [source for source in sources if source is not None]
        self._said: set[tuple[str, str]] = set()

    @property
    def found(self) -> tuple[tuple[str, str], ...]:
        """Name and reason of each so far."""
        return tuple(entry for source in self._sources for entry in source.skipped)

    def warn(self) -> None:
        """Name those that are new; where there are many, only count the rest."""
        new = [entry for entry in self.found if entry not in self._said]
        named = new[: max(_MOST_NAMED - len(self._said), 0)]
        for name, reason in named:
            _log.warning("%s: left out, it cannot be read (%s)", name, reason)
        if len(new) > len(named):
            _log.warning("%d pictures cannot be read; --report names all", len(self.found))
        self._said.update(new)
