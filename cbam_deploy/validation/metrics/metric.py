"""What a metric is: pictures with targets, and a judge of each network's outputs for them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cbam_deploy.data.source import ImageSource
from cbam_deploy.numerics.tensors import TensorSpec
from cbam_deploy.preprocessing import Preprocessing
from cbam_deploy.report.content import Figure
from cbam_deploy.report.units import MetricUnit

Outputs = Mapping[str, NDArray[Any]]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Network:
    """What is known of a network before it runs.

    Attributes:
        name: for messages: its file, or ``pytorch``.
        outputs: their specs.
        class_names: as it records them; empty where it does not.
    """

    name: str
    outputs: tuple[TensorSpec, ...]
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class Reading:
    """One figure of a metric: its key in JSON, how it is written, and its value."""

    key: str
    unit: MetricUnit
    value: float | None


@dataclass(frozen=True)
class Score:
    """What a metric says of one network.

    Attributes:
        readings: the first is the metric itself.
        per_class: its value for each class by name, None for a class without a value.
    """

    readings: tuple[Reading, ...]
    per_class: dict[str, float | None] = field(default_factory=dict)


class Judge(ABC):
    """Judges the outputs of one network, batch by batch.

    Attributes:
        classes: how the network's classes were found among those of the data: ``by name`` or
            ``by order``; empty where there are none, or nothing is known before the first batch.
    """

    classes: str = ""

    @abstractmethod
    def add(self, outputs: Outputs, indices: Indices) -> None:
        """Take in the outputs, [N, ...] each, for the pictures `indices` [N] of the source.

        Raises:
            BadInput: outputs and targets do not go together.
        """

    @abstractmethod
    def score(self) -> Score:
        """The result over everything added; raises `BadInput` where there is none."""

    def disagreements(self, _other: Judge) -> int | None:
        """Pictures for which two networks give another answer; None where that means nothing."""
        return None


class Metric(ABC):
    """Pictures and targets of a SOURCE; each network gets a judge of its own.

    Attributes:
        unit: how values are written.
        source: the pictures.
        notes: what a reader must know to understand the values.
    """

    unit: ClassVar[MetricUnit]
    source: ImageSource
    notes: tuple[str, ...] = ()

    @abstractmethod
    def judge(self, network: Network) -> Judge:
        """A judge of that network; raises `BadInput` where its outputs are of another kind."""

    def figures(self, _judges: Sequence[tuple[str, Judge]]) -> tuple[Figure, ...]:
        """Pictures of what was judged, by the networks' names, for a page."""
        return ()


class KnownMetric(Metric):
    """A metric with a name of its own."""

    @abstractmethod
    def __init__(self, data: str, preprocessing: Preprocessing) -> None:
        """Open SOURCE; raises `BadInput` or `MissingCapability`."""
