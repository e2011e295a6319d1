"""The result of a measurement by a metric: one row per network, the first is the baseline."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from cbam_deploy.report.content import Figure, KeyFigure, Section, Table
from cbam_deploy.report.result import Result
from cbam_deploy.report.units import MISSING, MetricUnit, digits
from cbam_deploy.validation.metrics.metric import Score

_ROUNDING = 1e-12  # Values are quotients of counts in float64.
_MOST_ON_TERMINAL = 24  # Classes.


@dataclass(frozen=True)
class NetworkScore:
    """One network's score.

    Attributes:
        name: path of the artefact as given, or ``pytorch``.
        runtime: name of the runner, such as ``onnxruntime-cpu``.
        score: what the metric says of it.
        drop: the baseline's value less this one's; negative where this one is better.
        disagreements: pictures for which the baseline gives another answer; None where that means
            nothing.
        images_per_second: pictures over the time in the network, transfers of inputs and outputs
            included, reading, preprocessing and judging not.
        classes: how they were found among those of the data: ``by name``, or ``by order`` for
            a network that does not know the names of its classes; empty where there are none.
    """

    name: str
    runtime: str
    score: Score
    drop: float
    disagreements: int | None
    images_per_second: float
    classes: str

    @property
    def value(self) -> float:
        """Of the metric."""
        value = self.score.readings[0].value
        assert value is not None
        return value

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready data: each figure by its key."""
        per_class = [
            {"class": name, "value": value} for name, value in self.score.per_class.items()
        ]
        return {
            "name": self.name,
            "runtime": self.runtime,
            **{reading.key: reading.value for reading in self.score.readings},
            "drop": self.drop,
            **({} if self.disagreements is None else {"disagreements": self.disagreements}),
            "images_per_second": self.images_per_second,
            **({"classes": self.classes} if self.classes else {}),
            **({"per_class": per_class} if per_class else {}),
        }


@dataclass(frozen=True)
class AccuracyReport(Result):
    """Scores over the same pictures.

    Attributes:
        data: SOURCE as given.
        images: number of pictures.
        skipped: name and reason of each picture that could not be read.
        networks: the first is the baseline.
        max_drop: largest fall of the metric that passes; None to accept any.
        environment: the machine and the versions (`machine.environment`).
        metric: name of the metric.
        notes: what a reader must know to understand the values.
        figures: pictures of what was judged, for a page; not in the JSON.
    """

    title: ClassVar[str] = "Accuracy"
    schema: ClassVar[str] = "cbam_deploy.accuracy"

    data: str
    images: int
    skipped: tuple[tuple[str, str], ...]
    networks: tuple[NetworkScore, ...]
    max_drop: float | None
    environment: dict[str, Any]
    metric: str = "top1"
    notes: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = field(default=(), repr=False)

    @property
    def unit(self) -> MetricUnit:
        """How the metric's values are written."""
        return self.networks[0].score.readings[0].unit

    @property
    def passed(self) -> bool:
        """Whether no network falls further below the baseline than allowed."""
        return not self._too_low()

    @property
    def subtitle(self) -> str:
        """The files and the pictures."""
        return f"{', '.join(network.name for network in self.networks)} on {self.data}"

    def failure(self) -> tuple[str, str]:
        """What to tell a person when the check did not hold: a message and a hint."""
        assert self.max_drop is not None
        worst = max(self._too_low(), key=lambda network: network.drop)
        allowed = self.unit.points(self.max_drop).removesuffix(" points")
        return (
            f"{worst.name}: {self.unit.label} {self.unit.text(worst.value)} is"
            f" {self.unit.points(worst.drop)} below {self.networks[0].name}, {allowed} are allowed",
            "find the layer at fault with 'cbam-deploy validate --layers', or raise --max-drop",
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready data."""
        found = super().to_json()
        del found["figures"]
        return found

    def sections(self) -> tuple[Section, ...]:
        """The figures of every network, how far each differs from the first, and each class."""
        skipped = f", {len(self.skipped)} unreadable ones skipped" if self.skipped else ""
        label = f"{self.unit.label[0].upper()}{self.unit.label[1:]}"
        overall = Section(
            title="Accuracy",
            intro=f"{self.images:,} pictures of {self.data}{skipped}{self._matching()}.",
            passed=None if self.max_drop is None else self.passed,
            key_figures=tuple(
                KeyFigure(
                    f"{label}{' accuracy' * (self.metric == 'top1')}",
                    self.unit.text(n.value),
                    f"{n.name} ({n.runtime})",
                )
                for n in self.networks[:3]
            ),
            figures=self.figures,
            tables=(self._table(),),
            notes=self.notes,
        )
        classes = self.networks[0].score.per_class
        return (overall, self._by_class(tuple(classes))) if classes else (overall,)

    def _table(self) -> Table:
        too_low = self._too_low()
        readings = self.networks[0].score.readings
        counted = any(network.disagreements is not None for network in self.networks)
        points = "points" if self.unit.share else "change"
        return Table(
            columns=(
                "network",
                "runtime",
                *(reading.unit.label for reading in readings),
                points,
                *(["disagree"] * counted),
                "images/s",
            ),
            rows=tuple(
                (
                    network.name,
                    network.runtime,
                    *(one.unit.text(one.value) for one in network.score.readings),
                    self.unit.signed(-network.drop) if number else "",
                    *([str(network.disagreements) if number else ""] * counted),
                    digits(network.images_per_second),
                )
                for number, network in enumerate(self.networks)
            ),
            caption=(
                f"Points: percentage points of {self.unit.label} against the first network."
                if self.unit.share
                else f"Change: of {self.unit.label} against the first network; more is better."
            )
            + " Disagree: pictures for which it predicts another class than the first." * counted,
            text_columns=2,
            emphasized=tuple(i for i, network in enumerate(self.networks) if network in too_low),
            spare=("images/s", *(reading.unit.label for reading in readings[:0:-1])),
        )

    def _by_class(self, classes: tuple[str, ...]) -> Section:
        return Section(
            title=f"{self.unit.label} of each class",
            tables=(
                Table(
                    columns=("class", *(network.name for network in self.networks)),
                    rows=tuple(
                        (name, *(self._of_class(one, name) for one in self.networks))
                        for name in classes
                    ),
                    caption=f"{MISSING}: the pictures have none of it.",
                ),
            ),
            background=len(classes) > _MOST_ON_TERMINAL,
        )

    def _of_class(self, network: NetworkScore, name: str) -> str:
        value = network.score.per_class.get(name)
        return MISSING if value is None else self.unit.text(value)

    def _matching(self) -> str:
        ordered = [network.name for network in self.networks if network.classes == "by order"]
        if not any(network.classes for network in self.networks):
            return ""
        if not ordered:
            return "; classes matched by name"
        if len(ordered) == len(self.networks):
            return "; classes matched by order"
        return f"; classes matched by name, for {', '.join(ordered)} by order"

    def _too_low(self) -> list[NetworkScore]:
        if self.max_drop is None:
            return []
        return [one for one in self.networks if one.drop > self.max_drop + _ROUNDING]
