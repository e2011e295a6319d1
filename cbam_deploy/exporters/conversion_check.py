"""Does a freshly converted file run, and still compute what it was converted from?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from cbam_deploy.artefacts import known_sizes
from cbam_deploy.errors import BadInput, CheckFailed, MissingCapability, in_one_line
from cbam_deploy.exporters.half.rounding import round_in_fp32
from cbam_deploy.graphs.onnx_file import read_model, read_provenance
from cbam_deploy.graphs.signature import graph_precision, specs_of

if TYPE_CHECKING:
    from cbam_deploy.data import ImageSource
    from cbam_deploy.numerics.tensors import Feeds
    from cbam_deploy.runtimes.base import Runner

# A file below these is broken. FP16 rounds to 11 bits: CBAM-ResNet-50 keeps a cosine of 0.99999.
# BF16 rounds to 8, which is 64 times as far from 1. INT8 and FP8 keep 8 bits and 4 of a tensor's
# largest value, and how much of that a network bears differs: 20 dB of noise are a cosine of 0.995.
# Whether a file is good is for `validate` and `evaluate` to say. Inlining changes only the order in
# which sums are taken.
SMALLEST_COSINE = {"fp16": 0.999, "bf16": 0.936, "int8": 0.5, "fp8": 0.5, "inlined": 0.9999}
# Of FP8, where a sum that falls to the other side of a half is off by up to a sixteenth.
INLINED_FP8 = 0.99
PICTURES = 2
FREE_SIZE = 64
_HINT = {
    "fp16": "give --calibration, so that tensors beyond FP16's range are found and kept in FP32",
    "bf16": "use fp16 with --calibration, or the FP32 file",
    "int8": "calibrate on more pictures, or give --max-accuracy-drop and --data",
    "fp8": "calibrate on more pictures, or use fp16",
    "inlined": "keep the file as it is, and say so to the project: this should not happen",
}
_ELSE = {
    "fp16": "use the FP32 file: ONNX Runtime does not take this network in FP16",
    "bf16": "use fp16, or the FP32 file: ONNX has no such network in BF16",
    "int8": "give --precision int8+fp32, or use the FP32 file",
    "fp8": "use fp16, or the FP32 file: ONNX Runtime does not take this network in FP8",
    "inlined": "keep the file as it is: ONNX Runtime does not take it inlined",
}


def check_conversion(
    source: Path,
    converted: Path,
    precision: str,
    pictures: ImageSource | None,
    seed: int,
    title: str | None = None,
) -> float:
    """Compare two files in ONNX Runtime on a few pictures, or on seeded noise without any.

    Values of 16 bits are rounded as a GPU would (`half.rounding`). The file itself is run once as
    it is, but for BF16, which ONNX Runtime has no kernels for; ONNX's checker judges its types.

    Args:
        source: the FP32 file, or the one that was inlined.
        converted: the file made from it.
        precision: ``fp16``, ``bf16``, ``int8`` or ``fp8``; or ``inlined``, of the precision that
            `source` has.
        pictures: to compare on.
        seed: of the noise.
        title: what messages call `source`; None for its path.

    Returns:
        The smallest cosine over the outputs.

    Raises:
        CheckFailed: ONNX Runtime cannot load or run the converted file, or an output is NaN or
            infinite where the source's is not, or further from it than `SMALLEST_COSINE` allows.
    """
    from cbam_deploy.numerics.metrics import tensor_error
    from cbam_deploy.runtimes.onnxruntime import OnnxRuntimeRunner

    title = title or str(source)
    made = "inlined," if precision == "inlined" else f"in {precision},"
    model = read_model(converted)
    sizes = known_sizes(specs_of(model.graph.inputs), read_provenance(model))
    kind = graph_precision(model)
    least = SMALLEST_COSINE[precision]
    if (precision, kind) == ("inlined", "fp8"):
        least = INLINED_FP8
    rounding = _rounding(model)
    with (
        OnnxRuntimeRunner(_rounding(read_model(source)), folder=source.parent, precision=kind)
        if precision == "inlined" and kind in ("bf16", "fp8")
        else OnnxRuntimeRunner(source)
    ) as before:
        if precision == "inlined":  # Whatever sizes a file leaves free, both are run on the same.
            free = [size for spec in before.inputs for size in spec.shape[1:]]
            sizes = {str(size): FREE_SIZE for size in free if not isinstance(size, int)} | sizes
        feeds = _feeds(before, pictures, seed, sizes)
        expected = before.infer(feeds)
    try:
        if kind == "bf16":
            _check_types(converted)
        else:
            _run(OnnxRuntimeRunner(converted), feeds)
        judged = OnnxRuntimeRunner(
            rounding, folder=converted.parent, precision=kind, exact_biases=True
        )
        actual = _run(judged, feeds)
    except (BadInput, MissingCapability) as error:
        reason = error.message.partition(": ")[2]
        raise CheckFailed(
            f"{title}: {made} {reason}; nothing was written", _ELSE[precision]
        ) from error
    smallest = 1.0
    for name, reference in expected.items():
        found = tensor_error(name, reference, actual[name])
        if found.nonfinite > found.reference_nonfinite:
            raise CheckFailed(
                f"{title}: {made} output {name} has {found.nonfinite} NaN or infinite"
                f" of {found.elements} elements; nothing was written",
                _HINT[precision],
            )
        smallest = min(smallest, found.cosine)
        if not found.cosine >= least:
            raise CheckFailed(
                f"{title}: {made} output {name} has a cosine of {found.cosine:.4f} to"
                f" that before, below {least}; nothing was written",
                _HINT[precision],
            )
    return smallest


def _rounding(model: ir.Model) -> onnx.ModelProto:
    round_in_fp32(model)
    return ir.to_proto(model)


def _check_types(converted: Path) -> None:
    """Raise `BadInput` unless every node of the file has types that ONNX defines it for."""
    try:
        onnx.checker.check_model(converted, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise BadInput(f"{converted}: ONNX refuses it ({in_one_line(error)})", "") from error


def _run(network: Runner, feeds: Feeds) -> dict[str, NDArray[Any]]:
    with network as runner:
        return runner.infer(
            {spec.name: feeds[spec.name].astype(spec.dtype) for spec in runner.inputs}
        )


def _feeds(
    runner: Runner, pictures: ImageSource | None, seed: int, sizes: Mapping[str, int]
) -> Feeds:
    from cbam_deploy.data.feeds import InputStream

    low, high = runner.batch_range
    batch = max(low, min(PICTURES, high or PICTURES))
    return next(InputStream(runner.inputs, pictures, seed, batch, None, sizes).batches(batch))
