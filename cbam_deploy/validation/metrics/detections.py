"""Boxes out of a detector's outputs: read, without duplicates, in pixels of the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cbam_deploy.data.placement import Placement
from cbam_deploy.errors import BadInput
from cbam_deploy.numerics.tensors import TensorSpec
from cbam_deploy.validation.metrics.metric import Outputs

# As Ultralytics evaluates: the precision is measured at every score, so next to none is left out.
LEAST_SCORE = 0.001
MOST_OVERLAP = 0.7
MOST_BOXES = 300
_MOST_CANDIDATES = 30_000
_SLACK = 0.01  # What INT8 and FP16 may leave of the bounds 0 and 1.
_SHAPES = (
    "judged are [N, 4 + classes, A], or [N, A, 4] and [N, A, classes], with scores between 0 and 1"
    " and boxes in pixels of the input; a function of your own may judge others"
)


@dataclass(frozen=True)
class Detections:
    """What a network finds in one picture, the surest first.

    Attributes:
        boxes: left, top, right and bottom in pixels of the picture, float64 [K, 4].
        classes: of the network, int64 [K].
        scores: float64 [K].
    """

    boxes: NDArray[np.float64]
    classes: NDArray[np.int64]
    scores: NDArray[np.float64]


@dataclass(frozen=True)
class DetectorOutputs:
    """Which outputs hold boxes and scores.

    Attributes:
        network: its name, for messages.
        boxes: name of an output.
        scores: name of another, or of the same, whose first four rows are the boxes.
        corners: whether boxes are left, top, right, bottom; else centre x and y, width, height.
    """

    network: str
    boxes: str
    scores: str
    corners: bool

    def read(self, outputs: Outputs) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Corners [N, A, 4] in pixels of the input, and scores [N, A, classes].

        Raises:
            BadInput: scores are not between 0 and 1.
        """
        boxes = outputs[self.boxes].astype(np.float64)
        scores = outputs[self.scores].astype(np.float64)
        if self.boxes == self.scores:
            boxes, scores = np.moveaxis(boxes[:, :4], 1, 2), np.moveaxis(scores[:, 4:], 1, 2)
        finite = scores[np.isfinite(scores)]
        if finite.size and not -_SLACK <= finite.min() <= finite.max() <= 1 + _SLACK:
            raise BadInput(
                f"{self.network}: output {self.scores} has scores from {finite.min():.2g} to"
                f" {finite.max():.2g}, not between 0 and 1",
                _SHAPES,
            )
        if not self.corners:
            half = boxes[..., 2:] / 2
            boxes = np.concatenate([boxes[..., :2] - half, boxes[..., :2] + half], axis=-1)
        return boxes, scores


def detector_outputs(network: str, outputs: Sequence[TensorSpec], corners: bool) -> DetectorOutputs:
    """The outputs of a detector, by their shapes.

    Raises:
        BadInput: no shape is that of boxes.
    """
    maps = [spec for spec in outputs if len(spec.shape) == 3]
    boxes = [spec for spec in maps if spec.shape[2] == 4]
    if len(maps) > 1 and boxes:
        scores = next(spec for spec in maps if spec is not boxes[0])
        if scores.shape[1] == boxes[0].shape[1]:
            return DetectorOutputs(network, boxes[0].name, scores.name, corners)
    joined = next((spec for spec in maps if _is_joined(spec)), None)
    if joined is not None and not boxes:
        return DetectorOutputs(network, joined.name, joined.name, corners)
    shapes = "; ".join(f"{spec.name} {list(spec.shape)}" for spec in outputs)
    raise BadInput(f"{network}: gives no boxes but {shapes}", _SHAPES)


def _is_joined(spec: TensorSpec) -> bool:
    """Whether it may be [N, 4 + classes, A]: there are always more places than classes."""
    _, rows, places = spec.shape
    known = isinstance(rows, int) and isinstance(places, int)
    return not isinstance(rows, int) or (rows > 4 and (not known or rows < int(places)))


def detections(
    boxes: NDArray[np.float64],
    scores: NDArray[np.float64],
    placed: Placement,
    size: tuple[int, int],
) -> Detections:
    """What is found in one picture.

    Args:
        boxes: corners [A, 4] in pixels of the input.
        scores: [A, classes]; a box may be of several classes.
        placed: where the picture lies in the input.
        size: width and height of the picture.
    """
    place, kind = np.nonzero(scores > LEAST_SCORE)
    usable = np.isfinite(boxes[place]).all(axis=1)
    place, kind = place[usable], kind[usable]
    surest = np.argsort(-scores[place, kind], kind="stable")[:_MOST_CANDIDATES]
    place, kind = place[surest], kind[surest]
    kept = without_duplicates(boxes[place], kind)
    place, kind = place[kept], kind[kept]
    corners = placed.in_picture(boxes[place].reshape(-1, 2, 2)).clip(0, size)
    return Detections(corners.reshape(-1, 4), kind, scores[place, kind])


def without_duplicates(boxes: NDArray[np.float64], classes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Non-maximum suppression: indices of the boxes that no surer one of their class covers.

    Args:
        boxes: corners [K, 4], the surest first.
        classes: int64 [K].

    Returns:
        int64 of `MOST_BOXES` or fewer, in the order of the boxes.
    """
    areas = (boxes[:, 2:] - boxes[:, :2]).clip(0).prod(axis=1)
    remaining = np.arange(len(boxes))
    kept: list[int] = []
    while remaining.size and len(kept) < MOST_BOXES:
        best, remaining = remaining[0], remaining[1:]
        kept.append(int(best))
        low = np.maximum(boxes[best, :2], boxes[remaining, :2])
        high = np.minimum(boxes[best, 2:], boxes[remaining, 2:])
        shared = (high - low).clip(0).prod(axis=1)
        # Not a quotient: an empty box covers nothing, and overlaps itself by 0 of 0.
        covered = shared > MOST_OVERLAP * (areas[best] + areas[remaining] - shared)
        remaining = remaining[~(covered & (classes[remaining] == classes[best]))]
    return np.array(kept, np.int64)
