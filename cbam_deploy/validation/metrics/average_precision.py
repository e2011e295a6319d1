"""Mean average precision of detectors, as COCO defines it, by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from cbam_deploy.data.class_names import match_classes
from cbam_deploy.data.objects import Objects, open_objects
from cbam_deploy.data.placement import placement
from cbam_deploy.data.targets import picture_size
from cbam_deploy.errors import BadInput, imports_for
from cbam_deploy.preprocessing import Preprocessing
from cbam_deploy.report.content import Figure
from cbam_deploy.report.units import MetricUnit
from cbam_deploy.validation.metrics.detections import (
    Detections,
    detections,
    detector_outputs,
)
from cbam_deploy.validation.metrics.metric import (
    Indices,
    Judge,
    KnownMetric,
    Network,
    Outputs,
    Reading,
    Score,
)

_LEAST_SIDE = 2  # Pixels; boxes that are all smaller are no pixels but parts of the picture.


class AveragePrecision(KnownMetric):
    """COCO's AP: the mean over classes, and over IoU from 50% to 95% in steps of 5%.

    Boxes are centre x and y, width and height, as detectors of the YOLO family give them.
    """

    unit: ClassVar[MetricUnit] = MetricUnit("mAP")
    corners: ClassVar[bool] = False

    def __init__(self, data: str, preprocessing: Preprocessing) -> None:
        with imports_for("mAP needs pycocotools", "detection"):
            import pycocotools.cocoeval  # noqa: F401
        self.objects = open_objects(data, preprocessing)
        self.source = self.objects.source
        if preprocessing.fit == "crop":
            self.notes = ("Objects that the preprocessing crops away count as missed.",)

    def judge(self, network: Network) -> Judge:
        """For networks with boxes and scores (`detections.detector_outputs`)."""
        return BoxJudge(self, network)

    def figures(self, judges: Sequence[tuple[str, Judge]]) -> tuple[Figure, ...]:
        """The first pictures with the objects and what each network finds."""
        from cbam_deploy.validation.metrics.box_figure import box_figure

        named = [(name, judge) for name, judge in judges if isinstance(judge, BoxJudge)]
        return (box_figure(self.source, named),)


class AveragePrecisionOfCorners(AveragePrecision):
    """The same for boxes that are left, top, right and bottom."""

    corners: ClassVar[bool] = True


class BoxJudge(Judge):
    """Keeps what a detector finds in each picture.

    Attributes:
        names: of the data's classes, by which `true` and `found` number them.
        true: objects of each picture, by its index.
        found: detections of each picture, by its index.
    """

    def __init__(self, metric: AveragePrecision, network: Network) -> None:
        self._metric = metric
        self._network = network
        self._outputs = detector_outputs(network.name, network.outputs, metric.corners)
        self._label_of_class: dict[int, int] = {}
        self._largest = 0.0
        self.names: Sequence[str] = ()
        self.true: dict[int, Objects] = {}
        self.found: dict[int, Detections] = {}

    def add(self, outputs: Outputs, indices: Indices) -> None:
        """Keep what is found in each picture, and what lies in it."""
        boxes, scores = self._outputs.read(outputs)
        if not self.names:
            self._match(scores.shape[2])
        source = self._metric.source
        self._largest = max(self._largest, float(np.nan_to_num(boxes).max(initial=0)))
        for place, index in enumerate(indices.tolist()):
            size = picture_size(source.names[index])
            placed = placement(size, source.preprocessing)
            self.true[index] = self._objects(index)
            self.found[index] = self._labelled(
                detections(boxes[place], scores[place], placed, size)
            )

    def _match(self, classes: int) -> None:
        known, names = self._network.class_names, self._metric.objects.class_names
        where = self._metric.source.name
        if not names:  # Numbers mean the network's own classes.
            names = known or tuple(f"class {number}" for number in range(classes))
        matched = match_classes(self._network.name, known, classes, names, where)
        self.classes = "by name" if known and self._metric.objects.class_names else "by order"
        self._label_of_class = {own: label for label, own in enumerate(matched.tolist())}
        self.names = names

    def _objects(self, index: int) -> Objects:
        objects, path = self._metric.objects.objects(index)
        if objects.classes.size and objects.classes.max() >= len(self.names):
            raise BadInput(
                f"{path}: has class {objects.classes.max()}, and there are {len(self.names)},"
                " from 0 on",
                "label the classes of the network, in its order",
            )
        return objects

    def _labelled(self, found: Detections) -> Detections:
        """`found` with classes as the data numbers them; others than its own count for nothing."""
        labels = np.array([self._label_of_class.get(own, -1) for own in found.classes.tolist()])
        kept = labels >= 0 if len(labels) else np.zeros(0, bool)
        return Detections(found.boxes[kept], labels[kept].astype(np.int64), found.scores[kept])

    def score(self) -> Score:
        """AP over IoU 50% to 95%, AP at 50%, and the first of each class."""
        name = self._network.name
        if not any(len(objects.classes) for objects in self.true.values()):
            raise BadInput(
                f"{self._metric.source.name}: has no objects to find", "give pictures with objects"
            )
        if 0 < self._largest < _LEAST_SIDE:
            raise BadInput(
                f"{name}: output {self._outputs.boxes} has no box beyond {self._largest:.2g},"
                " as if in parts of the picture",
                "give boxes in pixels of the network's input",
            )
        precision = coco_precision(self.true, self.found, len(self.names))
        by_class = [_mean(precision[:, :, number]) for number in range(len(self.names))]
        return Score(
            (
                Reading("map", self._metric.unit, _mean(precision)),
                Reading("map50", MetricUnit("mAP50"), _mean(precision[0])),
            ),
            dict(zip(self.names, by_class, strict=True)),
        )


def _mean(precision: Any) -> float | None:
    """Over what there is: COCO says -1 for classes without objects."""
    there = precision[precision > -1]
    return float(there.mean()) if there.size else None


def coco_precision(true: dict[int, Objects], found: dict[int, Detections], classes: int) -> Any:
    """Precision by IoU threshold (10), recall (101) and class, -1 for one without objects.

    Of all sizes of objects, with up to 100 boxes a picture.

    Args:
        true: objects of each picture.
        found: detections of the same pictures; classes number those of `true`.
        classes: how many there are.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    # Identifiers begin with 1: an object of identifier 0 would never count as found.
    pictures = [{"id": number} for number in range(1, len(true) + 1)]
    kinds = [{"id": number} for number in range(classes)]

    def listed(of: dict[int, Any], facts: Any) -> Any:
        rows = [
            {"image_id": number, **row}
            for number, index in enumerate(true, start=1)
            for row in facts(of[index])
        ]
        data = COCO()
        annotations = [{"id": number, **row} for number, row in enumerate(rows, start=1)]
        data.dataset = {"images": pictures, "categories": kinds, "annotations": annotations}
        data.createIndex()
        return data

    with contextlib.redirect_stdout(io.StringIO()):  # It reports its progress there.
        measured = COCOeval(listed(true, _true_rows), listed(found, _found_rows), "bbox")
        measured.evaluate()
        measured.accumulate()
    return measured.eval["precision"][:, :, :, 0, -1]


def _true_rows(objects: Objects) -> list[dict[str, Any]]:
    rows = zip(objects.boxes, objects.classes, objects.crowd, strict=True)
    return [{**_box(box, kind), "iscrowd": int(crowd)} for box, kind, crowd in rows]


def _found_rows(found: Detections) -> list[dict[str, Any]]:
    rows = zip(found.boxes, found.classes, found.scores, strict=True)
    return [{**_box(box, kind), "score": float(score)} for box, kind, score in rows]


def _box(corners: Any, kind: Any) -> dict[str, Any]:
    left, top, right, bottom = corners.tolist()
    width, height = right - left, bottom - top
    return {
        "category_id": int(kind),
        "bbox": [left, top, width, height],
        "area": width * height,
    }
