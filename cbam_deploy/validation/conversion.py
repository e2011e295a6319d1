"""Convert a file as far as its accuracy on pictures with targets allows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cbam_deploy.exporters import convert as conversion
from cbam_deploy.exporters.conversion_result import ConvertResult, Precision
from cbam_deploy.exporters.half.conversion import IoDtype
from cbam_deploy.exporters.int8.calibration import Method
from cbam_deploy.preprocessing import Preprocessing
from cbam_deploy.preprocessing.choice import Asked
from cbam_deploy.validation.accuracy import evaluate
from cbam_deploy.validation.metrics import metric_unit


def convert(
    source: str | Path,
    output: str | Path,
    *,
    precision: Precision = "fp16",
    calibration: str | None = None,
    preprocessing: Asked | None = None,
    sizes: Sequence[str] = (),
    method: Method | None = None,
    images: int = conversion.CALIBRATION_IMAGES,
    io_dtype: IoDtype = "fp32",
    max_accuracy_drop: float | None = None,
    data: str | None = None,
    metric: str = "top1",
    seed: int = 0,
) -> ConvertResult:
    """Convert an FP32 ONNX file; the same file, pictures and seed give the same bytes.

    The converted file is compared with `source` in ONNX Runtime before it is put in place.

    Args:
        source: an FP32 file, best with its gates fused.
        output: file to write.
        precision: ``fp16``, ``bf16``, ``int8``, ``int8+fp32`` or ``fp8``.
        calibration: SOURCE of typical pictures.
        preprocessing: how inputs are made from pictures.
        sizes: typical size of free axes, such as ``H=640``.
        method: how INT8 and FP8 ranges are found.
        images: how many pictures to calibrate on.
        io_dtype: type of network inputs and outputs.
        max_accuracy_drop: how far the metric on `data` may fall with INT8, such as 0.005 for half
            a point; the noisiest layers are given back to float until it holds.
        data: SOURCE with what the metric needs, for `max_accuracy_drop`.
        metric: what the network is judged by, as in `evaluate`.
        seed: of everything random.

    Raises:
        BadInput: an option is wrong or missing, `source` cannot be read, is converted already or
            has nothing to convert, a SOURCE has no readable picture, or `output` cannot be written.
        CheckFailed: the converted file is broken, or the budget cannot be met.
        MissingCapability: a package for reading pictures, or for the metric, is missing.
    """

    def value(path: Path, prepared: Preprocessing | None) -> float:
        assert data is not None
        judged = evaluate(path, data=data, metric=metric, preprocessing=prepared, sizes=sizes)
        return judged.networks[0].value

    return conversion.convert(
        source,
        output,
        precision=precision,
        calibration=calibration,
        preprocessing=preprocessing,
        sizes=sizes,
        method=method,
        images=images,
        io_dtype=io_dtype,
        max_accuracy_drop=max_accuracy_drop,
        measure=None if data is None else value,
        unit=metric_unit(metric),
        seed=seed,
    )
