"""The result of an accuracy measurement: one row per network, the first is the baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from cbam_deploy.report.content import KeyFigure, Section, Table
from cbam_deploy.report.result import Result
from cbam_deploy.report.units import digits, percent


@dataclass(frozen=True)
class NetworkAccuracy:
    """One network's accuracy.

    Attributes:
        name: path of the artefact as given, or ``pytorch``.
        runtime: name of the runner, such as ``onnxruntime-cpu``.
        top1: share of pictures whose class has the largest logit, between 0 and 1.
        top5: share of pictures whose class is among the five largest; None below five classes.
        drop: the baseline's top-1 less this one's; negative where this one is better.
        disagreements: pictures for which the baseline predicts another class.
        images_per_second: pictures over the time in the network, transfers of inputs and outputs
            included, reading and preprocessing not.
        classes: how they were found among the folders: ``by name``, or ``by order`` for a network
            that does not know the names of its classes.
    """

    name: str
    runtime: str
    top1: float
    top5: float | None
    drop: float
    disagreements: int
    images_per_second: float
    classes: str


@dataclass(frozen=True)
class AccuracyReport(Result):
    """Accuracies over the same pictures.

    Attributes:
        data: SOURCE as given.
        images: number of pictures.
        skipped: name and reason of each picture that could not be read.
        networks: the first is the baseline.
        max_drop: largest fall in top-1 that passes; None to accept any.
        environment: the machine and the versions (`machine.environment`).
    """

    title: ClassVar[str] = "Accuracy"
    schema: ClassVar[str] = "cbam_deploy.accuracy"

    data: str
    images: int
    skipped: tuple[tuple[str, str], ...]
    networks: tuple[NetworkAccuracy, ...]
    max_drop: float | None
    environment: dict[str, Any]

    @property
    def passed(self) -> bool:
        """Whether no network falls further below the baseline than allowed."""
        return not self._too_low()

    def failure(self) -> tuple[str, str]:
        """What to tell a person when the check did not hold: a message and a hint."""
        assert self.max_drop is not None
        worst = max(self._too_low(), key=lambda network: network.drop)
        return (
            f"{worst.name}: top-1 {worst.top1:.2%} is {100 * worst.drop:.2f} points below "
            f"{self.networks[0].name}, {100 * self.max_drop:.2f} are allowed",
            "find the layer at fault with 'cbam-deploy validate --layers', or raise --max-drop",
        )

    def sections(self) -> tuple[Section, ...]:
        """Top-1 and top-5 of every network, and how far each differs from the first."""
        skipped = f", {len(self.skipped)} unreadable ones skipped" if self.skipped else ""
        return (
            Section(
                title="Accuracy",
                intro=(
                    f"{self.images:,} pictures of {self.data}{skipped};"
                    f" classes matched {self._matching()}."
                ),
                passed=None if self.max_drop is None else self.passed,
                key_figures=tuple(
                    KeyFigure("Top-1 accuracy", percent(n.top1), f"{n.name} ({n.runtime})")
                    for n in self.networks[:3]
                ),
                tables=(self._table(),),
            ),
        )

    def _table(self) -> Table:
        too_low = self._too_low()
        return Table(
            columns=("network", "runtime", "top-1", "top-5", "points", "disagree", "images/s"),
            rows=tuple(
                (
                    network.name,
                    network.runtime,
                    percent(network.top1),
                    percent(network.top5),
                    f"{0 - 100 * network.drop:+.2f}" if number else "",
                    str(network.disagreements) if number else "",
                    digits(network.images_per_second),
                )
                for number, network in enumerate(self.networks)
            ),
            caption="Points: percentage points of top-1 against the first network. "
            "Disagree: pictures for which it predicts another class than the first.",
            text_columns=2,
            emphasized=tuple(i for i, network in enumerate(self.networks) if network in too_low),
            spare=("images/s", "top-5"),
        )

    def _matching(self) -> str:
        ordered = [network.name for network in self.networks if network.classes == "by order"]
        if not ordered:
            return "by name"
        return (
            "by order"
            if len(ordered) == len(self.networks)
            else (f"by name, for {', '.join(ordered)} by order")
        )

    def _too_low(self) -> list[NetworkAccuracy]:
        if self.max_drop is None:
            return []
        return [network for network in self.networks if network.drop > self.max_drop]
