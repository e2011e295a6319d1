"""Mean intersection over union of segmented pictures with masks."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cbam_deploy.data.listing import MASKS
from cbam_deploy.data.masks import IGNORED, Mask, read_mask
from cbam_deploy.data.placement import placement
from cbam_deploy.data.targets import open_targets, picture_size
from cbam_deploy.errors import BadInput
from cbam_deploy.preprocessing import Preprocessing
from cbam_deploy.report.units import MetricUnit
from cbam_deploy.validation.metrics.metric import (
    Indices,
    Judge,
    KnownMetric,
    Network,
    Outputs,
    Reading,
    Score,
)


class MeanIou(KnownMetric):
    """Over all pixels of all pictures: of each class TP / (TP + FP + FN), and the mean of these.

    A class that neither masks nor predictions have does not count. The network's scores are brought
    to the mask, bilinearly (`segmented`), so that each of its pixels counts once.
    """

    unit: ClassVar[MetricUnit] = MetricUnit("mIoU")
    notes = (
        "Scores are interpolated to the pixels of the masks; those that are 255, or that the"
        " preprocessing cuts off, do not count.",
    )

    def __init__(self, data: str, preprocessing: Preprocessing) -> None:
        self._targets = open_targets(data, preprocessing, name=MASKS, suffix=".png")
        self.source = self._targets.source

    def judge(self, network: Network) -> Judge:
        """For networks with an output of scores [N, classes, H', W']."""
        maps = [spec.name for spec in network.outputs if len(spec.shape) == 4]
        if not maps:
            shapes = "; ".join(f"{one.name} {list(one.shape)}" for one in network.outputs)
            raise BadInput(
                f"{network.name}: gives no scores [N, classes, height, width] but {shapes}",
                "export the scores of the classes, before their argmax",
            )
        return _Judge(self, network, maps[0])

    def mask(self, index: int) -> Mask:
        """Classes [H, W] of a picture; raises `BadInput`."""
        picture = self.source.names[index]
        return read_mask(self._targets.path(index), picture, picture_size(picture))

    def mask_file(self, index: int) -> str:
        """Where that is read from."""
        return str(self._targets.path(index))


class _Judge(Judge):
    def __init__(self, metric: MeanIou, network: Network, output: str) -> None:
        self._metric = metric
        self._network = network
        self._output = output
        self._confusion = np.zeros((0, 0), np.int64)  # [class of the mask, class predicted]

    def add(self, outputs: Outputs, indices: Indices) -> None:
        scores = outputs[self._output]
        classes = scores.shape[1]
        if not len(self._confusion):
            self._check(classes)
            self._confusion = np.zeros((classes, classes), np.int64)
        for one, index in zip(scores, indices.tolist(), strict=True):
            mask = self._metric.mask(index)
            self._check_mask(mask, classes, index)
            predicted = segmented(one, mask.shape, self._metric.source.preprocessing)
            counts = (mask != IGNORED) & (predicted >= 0)
            pairs = mask[counts].astype(np.int64) * classes + predicted[counts]
            self._confusion += np.bincount(pairs, minlength=classes**2).reshape(classes, classes)

    def _check(self, classes: int) -> None:
        known = self._network.class_names
        if classes < 2 or (known and len(known) != classes):
            names = f", and records the names of {len(known)}" if known else ""
            raise BadInput(
                f"{self._network.name}: gives scores of {classes} classes{names}",
                "export scores [N, classes, height, width] with one channel for each class",
            )

    def _check_mask(self, mask: Mask, classes: int, index: int) -> None:
        wrong = mask[(mask >= classes) & (mask != IGNORED)]
        if wrong.size:
            raise BadInput(
                f"{self._metric.mask_file(index)}: has class {int(wrong[0])}, and"
                f" {self._network.name} tells {classes} apart, from 0 on",
                f"give masks of the network's classes; {IGNORED} marks pixels that do not count",
            )

    def score(self) -> Score:
        shared = self._confusion.diagonal()
        union = self._confusion.sum(0) + self._confusion.sum(1) - shared
        if not union.any():
            raise BadInput(
                f"{self._metric.source.name}: no pixel of its masks counts",
                "give masks with classes other than 255",
            )
        ious = [int(s) / int(u) if u else None for s, u in zip(shared, union, strict=True)]
        mean = float(np.mean([iou for iou in ious if iou is not None]))
        names = self._network.class_names or [f"class {number}" for number in range(len(ious))]
        return Score(
            (Reading("miou", self._metric.unit, mean),), dict(zip(names, ious, strict=True))
        )


def segmented(
    scores: NDArray[Any], size: tuple[int, int], preprocessing: Preprocessing
) -> NDArray[np.int64]:
    """The class with the largest score at each pixel of the picture, -1 where it was cut off.

    Args:
        scores: [classes, H', W'] over the network's input, of any resolution.
        size: height and width of the picture.
        preprocessing: how the picture became the input.

    Returns:
        int64 [H, W]; NaN among a pixel's scores counts as the largest.
    """
    import torch

    placed = placement((size[1], size[0]), preprocessing)
    # Middles of pixels as grid_sample has them: -1 and 1 are the ends of the input.
    x, y = (
        2 * ((np.arange(count) + 0.5) * scale + offset) / end - 1
        for count, scale, offset, end in zip(
            size[::-1], placed.scale, placed.offset, placed.frame, strict=True
        )
    )
    grid = torch.from_numpy(np.stack(np.meshgrid(x, y), axis=-1)[None]).float()
    sampled = torch.nn.functional.grid_sample(
        torch.from_numpy(np.asarray(scores, np.float32))[None],
        grid,
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    found = sampled[0].argmax(0).numpy()
    inside = (np.abs(y) <= 1)[:, None] & (np.abs(x) <= 1)[None]
    return np.where(inside, found, -1)
