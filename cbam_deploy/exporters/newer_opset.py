"""Files of older opsets, converted upward as far as a precision needs it, with proof."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import onnx_ir as ir

from cbam_deploy.artefacts import OnnxFile
from cbam_deploy.data.feeds import InputStream
from cbam_deploy.errors import BadInput
from cbam_deploy.exporters.half.conversion import QUANTIZED_HALF_OPSET
from cbam_deploy.exporters.half.formats import BF16
from cbam_deploy.exporters.int8.quantized_types import FP8, INT8
from cbam_deploy.graphs.gate_body_opsets import CAST_LIKE_SINCE
from cbam_deploy.graphs.gate_functions import gate_nodes
from cbam_deploy.graphs.onnx_file import write_model
from cbam_deploy.graphs.opset import ADDS_ONLY_FROM, converted_to
from cbam_deploy.numerics.metrics import tensor_error
from cbam_deploy.numerics.tolerances import OUTPUTS, check
from cbam_deploy.outputs import scratch_folder
from cbam_deploy.runtimes.onnxruntime import OnnxRuntimeRunner

if TYPE_CHECKING:
    from cbam_deploy.data import ImageSource

_SAMPLES = 2


def needed_opset(model: ir.Model, precision: str) -> int:
    """The oldest opset that a file in `precision` can have."""
    if precision == "int8+fp32":
        return INT8.opset
    if precision == "bf16":
        return BF16.opset
    if precision in ("int8", "fp8"):
        return max(QUANTIZED_HALF_OPSET, FP8.opset if precision == "fp8" else INT8.opset)
    return CAST_LIKE_SINCE if gate_nodes(model) else 1


def in_newer_opset(
    opened: OnnxFile, precision: str, pictures: ImageSource | None, seed: int
) -> OnnxFile:
    """`opened` in an opset that `precision` can have, which changes nothing that it computes.

    Args:
        opened: an FP32 file.
        precision: one of `convert`.
        pictures: to compare on, before and after; None for noise.
        seed: of the noise.

    Raises:
        BadInput: it cannot be converted, or computes something else in the newer opset.
    """
    model, needed = opened.model, needed_opset(opened.model, precision)
    current = model.opset_imports.get("", 1)
    if current >= min(needed, ADDS_ONLY_FROM.get(needed, needed)):
        return opened
    try:
        converted = converted_to(model, needed)
    except BadInput as error:
        raise BadInput(f"{opened.title}: {error.message}", error.hint) from error
    with scratch_folder() as folder:
        write_model(converted, folder / "converted.onnx")
        with (
            OnnxRuntimeRunner(opened.path) as before,
            OnnxRuntimeRunner(folder / "converted.onnx") as after,
        ):
            low, high = before.batch_range
            batch = max(low, min(_SAMPLES, high or _SAMPLES))
            stream = InputStream(before.inputs, pictures, seed, batch, None, opened.sizes)
            feeds = next(stream.batches(batch))
            expected, actual = before.infer(feeds), after.infer(feeds)
    for name, reference in expected.items():
        if faults := check(tensor_error(name, reference, actual[name]), OUTPUTS["fp32"]):
            raise BadInput(
                f"{opened.title}: in opset {needed} instead of {current}, output {name} is another:"
                f" {faults[0]}",
                f"export the model again with opset {needed}",
            )
    return replace(opened, model=converted)
