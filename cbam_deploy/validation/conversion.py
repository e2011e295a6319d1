"""Convert a file as far as its accuracy on labelled pictures allows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cbam_deploy.exporters import convert as conversion
from cbam_deploy.exporters.conversion_result import ConvertResult
from cbam_deploy.validation.accuracy import evaluate


def convert(
    source: str | Path, output: str | Path, *, data: str | None = None, **options: Any
) -> ConvertResult:
    """`exporters.convert.convert`, with accuracy measured as `evaluate` does it.

    Args:
        source: an FP32 file.
        output: file to write.
        data: SOURCE with labels, for `max_accuracy_drop`.
        options: what else that function takes, by the names and with the defaults it has there:
            `precision`, `calibration`, `method`, `images`, `io_dtype`, `max_accuracy_drop`, `seed`.

    Raises:
        BadInput, CheckFailed, MissingCapability: as there, and as `evaluate`.
    """

    def top1(path: Path) -> float:
        assert data is not None
        return evaluate(path, data=data).networks[0].top1

    measure = None if data is None else top1
    return conversion.convert(source, output, measure=measure, **options)
