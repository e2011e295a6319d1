"""What networks are judged by: a metric is a module here and a row of `METRICS`."""

from __future__ import annotations

from cbam_deploy.errors import BadInput
from cbam_deploy.preprocessing import Preprocessing
from cbam_deploy.report.units import MetricUnit
from cbam_deploy.validation.metrics.average_precision import (
    AveragePrecision,
    AveragePrecisionOfCorners,
)
from cbam_deploy.validation.metrics.mean_iou import MeanIou
from cbam_deploy.validation.metrics.metric import KnownMetric, Metric
from cbam_deploy.validation.metrics.own_function import OwnFunction
from cbam_deploy.validation.metrics.top1 import Top1

METRICS: dict[str, type[KnownMetric]] = {
    "top1": Top1,
    "miou": MeanIou,
    "map": AveragePrecision,
    "map-xyxy": AveragePrecisionOfCorners,
}


def metric_unit(name: str) -> MetricUnit:
    """How the values of a metric are written; raises `BadInput` for one that there is not."""
    return OwnFunction.unit if ":" in name else _known(name).unit


def open_metric(name: str, data: str, preprocessing: Preprocessing) -> Metric:
    """A metric, with the pictures and targets of SOURCE that it judges by.

    Args:
        name: a key of `METRICS`, or ``package.module:function`` or ``path/file.py:function`` as the
            person wrote it: that is imported.
        data: SOURCE.
        preprocessing: how network inputs are made from the pictures.

    Raises:
        BadInput: there is no such metric, or SOURCE does not hold what it needs.
        MissingCapability: a package that it needs is not installed.
    """
    if ":" in name:
        return OwnFunction(name, data, preprocessing)
    return _known(name)(data, preprocessing)


def _known(name: str) -> type[KnownMetric]:
    if name not in METRICS:
        raise BadInput(
            f"metric {name!r} is unknown",
            f"choose {', '.join(METRICS)}, or package.module:function of your own",
        )
    return METRICS[name]
