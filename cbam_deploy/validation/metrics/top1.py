"""Top-1 and top-5 accuracy over pictures in folders of classes."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cbam_deploy.data.class_names import match_classes, normalized
from cbam_deploy.data.open_source import open_source
from cbam_deploy.data.source import ImageSource
from cbam_deploy.errors import BadInput
from cbam_deploy.preprocessing import Preprocessing
from cbam_deploy.report.units import TOP1, MetricUnit
from cbam_deploy.validation.metrics.metric import (
    Indices,
    Judge,
    KnownMetric,
    Network,
    Outputs,
    Reading,
    Score,
)

Labels = NDArray[np.int64]


class Top1(KnownMetric):
    """Share of pictures whose class has the largest logit; top-5: is among the five largest."""

    unit: ClassVar[MetricUnit] = TOP1

    def __init__(self, data: str, preprocessing: Preprocessing) -> None:
        # A folder without train and test parts gives everything.
        self.source = open_source(data, preprocessing, split="test")
        if self.source.labels is None:
            raise BadInput(
                f"{data}: has no labels to compare with",
                "give a folder with one subfolder of pictures per class, or digits",
            )

    def judge(self, network: Network) -> Judge:
        """For networks whose first output is logits [N, classes]."""
        if len(network.outputs[0].shape) != 2:
            raise BadInput(
                f"{network.name}: is no classifier from one image tensor to logits [N, classes]",
                "judge it by another --metric; 'cbam-deploy validate' compares any networks",
            )
        return _Judge(network, self.source)


class _Judge(Judge):
    def __init__(self, network: Network, source: ImageSource) -> None:
        assert source.labels is not None
        self._network = network
        self._source = source
        self._labels = source.labels
        self._class_of_label: Labels = np.empty(0, np.int64)
        self._ranks: list[Labels] = []
        self._predicted: list[NDArray[np.object_]] = []
        self.classes = "by name" if network.class_names else "by order"

    def add(self, outputs: Outputs, indices: Indices) -> None:
        logits = outputs[self._network.outputs[0].name].astype(np.float64)
        if not self._ranks:
            self._match(logits.shape[1])
        self._ranks.append(ranks(logits, self._class_of_label[self._labels[indices]]))
        chosen = self._names[logits.argmax(axis=1)]
        # Of a row with NaN the network says nothing, which is no name.
        self._predicted.append(np.where(np.isnan(logits).any(axis=1), "", chosen))

    def _match(self, classes: int) -> None:
        known, source = self._network.class_names, self._source
        self._class_of_label = match_classes(
            self._network.name, known, classes, source.class_names, source.name
        )
        self._count = classes
        # As the folders have it, so that networks of another order can be compared.
        names = [normalized(name) for name in known or source.class_names]
        self._names = np.array(names, object)
        self._names[self._class_of_label] = source.class_names

    def score(self) -> Score:
        found = np.concatenate(self._ranks)
        shares = [int(np.count_nonzero(found < most)) / len(found) for most in (1, 5)]
        return Score(
            (
                Reading("top1", TOP1, shares[0]),
                Reading("top5", MetricUnit("top-5"), shares[1] if self._count >= 5 else None),
            )
        )

    def disagreements(self, other: Judge) -> int | None:
        assert isinstance(other, _Judge)
        own, others = np.concatenate(self._predicted), np.concatenate(other._predicted)
        return int(np.count_nonzero(own != others))


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
