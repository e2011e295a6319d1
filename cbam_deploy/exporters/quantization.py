"""INT8 by post-training quantization: symmetric Q/DQ in the ONNX file, placed for TensorRT.

A value x becomes clip(round(x / scale), -128, 127), halves to even, and comes back as that integer
times scale; zero points are 0. A weight's scale is max|w| / 127 for each output channel, an
activation's is t / 127 with t by calibration (`calibration`). `placement` tells what is quantized;
``onnxruntime.quantization`` quantizes the weights and puts Q and DQ into the graph.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from cbam_deploy.errors import BadInput
from cbam_deploy.exporters.calibration import Calibration, Images, Method, calibrate
from cbam_deploy.exporters.feature_maps import float_feature_maps
from cbam_deploy.exporters.placement import Place, calibrated_tensors, places

if TYPE_CHECKING:
    from rich.table import Table

# QuantizeLinear has an axis, so weights can have scales by channel, from this version on.
OLDEST_OPSET = 13
# FP16 must hold every scale to within half an INT8 step of the largest value, because what is not
# quantized becomes FP16 next. This concerns weights of channels, and activations, below 0.002.
SMALLEST_SCALE = 2.0**-17


@dataclass(frozen=True)
class QuantizationReport:
    """What was quantized.

    Attributes:
        method: of calibration.
        images: number of pictures calibrated on.
        quantized: the operations that run in INT8.
        kept_float: names of the operations that would run in INT8, and were kept in float.
        scales: of activations, by tensor.
        float_feature_maps: feature maps that travel as float all the same.
    """

    method: Method
    images: int
    quantized: tuple[Place, ...]
    kept_float: tuple[str, ...]
    scales: dict[str, float]
    float_feature_maps: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready data."""
        return {
            "schema": "cbam_deploy.quantization",
            "schema_version": 1,
            "method": self.method,
            "images": self.images,
            "quantized": [place.node for place in self.quantized],
            "kept_float": list(self.kept_float),
            "scales": self.scales,
            "float_feature_maps": list(self.float_feature_maps),
        }

    def __rich__(self) -> Table:
        from collections import Counter

        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        counts = Counter(place.operator for place in self.quantized)
        listed = ", ".join(f"{count} {operator}" for operator, count in counts.most_common())
        table.add_row("[bold]calibration[/]", f"{self.method} over {self.images} pictures")
        table.add_row("[bold]in INT8[/]", listed or "nothing")
        table.add_row("[bold]kept in float[/]", ", ".join(self.kept_float) or "nothing")
        table.add_row("[bold]float feature maps[/]", str(len(self.float_feature_maps)))
        return table


def quantize(
    source: ir.Model | str | Path,
    batches: Iterable[Images],
    *,
    method: Method = "percentile",
    keep_float: Collection[str] = (),
    images: int | None = None,
) -> tuple[ir.Model, QuantizationReport]:
    """Calibrate and quantize; `source` stays as it is.

    Args:
        source: a float32 network, or its file.
        batches: network inputs, float32 [N, C, H, W] each; gone through once.
        method: ``minmax``, ``entropy`` or ``percentile``.
        keep_float: names of nodes (convolutions, gates, additions, ...) to leave in float.
        images: how many pictures there will be, for the progress bar.

    Raises:
        BadInput: the network cannot be quantized (see `prepare`), there is no picture, or one is
            of the wrong size.
    """
    model = prepare(source)
    tensors = calibrated_tensors(places(model, keep_float))
    calibration = calibrate(model, tensors, batches, method=method, images=images)
    return insert(model, calibration, keep_float=keep_float)


def prepare(source: ir.Model | str | Path) -> ir.Model:
    """A copy of the network with named nodes, initializers for constants, and shapes.

    Raises:
        BadInput: it is quantized already, not in float32, older than opset 13, or has no
            convolution.
    """
    if isinstance(source, ir.Model):
        model = source.clone()
    else:
        from cbam_deploy.exporters.onnx_file import read_model

        model = read_model(source)
    _check(model)
    model = common.LiftConstantsToInitializersPass()(model).model
    model = common.NameFixPass()(model).model
    return common.ShapeInferencePass()(model).model


def insert(
    model: ir.Model, calibration: Calibration, *, keep_float: Collection[str] = ()
) -> tuple[ir.Model, QuantizationReport]:
    """Put Q and DQ into a copy of the network.

    Args:
        model: as `prepare` gives it.
        calibration: ranges of at least `placement.calibrated_tensors`.
        keep_float: names of nodes to leave in float: their weights stay float, and what they read
            is not rounded for them, though it may be for others who read it.

    Raises:
        BadInput: a name in `keep_float` is not that of an operation that could run in INT8.
    """
    possible = places(model)
    names = {place.node for place in possible}
    for name in keep_float:
        if name not in names:
            raise BadInput(
                f"there is no node {name!r} to keep in float",
                f"one of the {len(names)} that INT8 concerns: {', '.join(sorted(names)[:3])}, ...",
            )
    chosen = tuple(place for place in possible if place.node not in keep_float)
    scales = activation_scales(calibration, chosen)
    quantized = _quantized(model, chosen, scales) if chosen else model.clone()
    kept = tuple(place.node for place in possible if place.node in keep_float)
    _read_unrounded(quantized, kept, {place.writes for place in chosen if place.writes})
    report = QuantizationReport(
        method=calibration.method,
        images=calibration.images,
        quantized=chosen,
        kept_float=kept,
        scales=scales,
        float_feature_maps=float_feature_maps(quantized),
    )
    return quantized, report


def activation_scales(calibration: Calibration, chosen: Iterable[Place]) -> dict[str, float]:
    """The step between two INT8 values of each activation that `chosen` read or write."""
    chosen = tuple(chosen)
    scales = {}
    for name in calibrated_tensors(chosen):
        scale = max(calibration.magnitude(name) / 127, SMALLEST_SCALE)
        scales[name] = float(np.float32(scale))
    for place in chosen:
        if place.same_scale and place.writes is not None:
            scales[place.writes] = scales[place.reads[0]]
    return scales


def fake_quantize(values: NDArray[np.float32], scale: NDArray[Any] | float) -> NDArray[np.float32]:
    """What is left of `values` after Q and DQ; `scale` broadcasts against them."""
    step = np.asarray(scale, np.float32)
    return np.asarray(np.clip(np.rint(values / step), -128, 127) * step, np.float32)


def _check(model: ir.Model) -> None:
    operators = {node.op_type for node in model.graph}
    if operators & {"QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger"}:
        raise BadInput(
            "the network is quantized already", "start from the float32 file it was made from"
        )
    weights = {value.dtype for value in model.graph.initializers.values()}
    if weights & {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}:
        raise BadInput(
            "the network has 16-bit weights", "quantize the float32 file it was made from"
        )
    opset = model.opset_imports.get("", OLDEST_OPSET)
    if opset < OLDEST_OPSET:
        raise BadInput(
            f"the network is of opset {opset}; INT8 needs {OLDEST_OPSET} or later",
            "export it again with a later opset",
        )
    if "Conv" not in operators:
        raise BadInput(
            "the network has no convolution to quantize", "INT8 is for convolutional networks"
        )


def _quantized(model: ir.Model, chosen: tuple[Place, ...], scales: Mapping[str, float]) -> ir.Model:
    """The graph with Q and DQ, by ONNX Runtime's quantizer at our places."""
    import onnx
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.quant_utils import QuantType

    ranges = {
        name: (np.float32(-127 * scale), np.float32(127 * scale)) for name, scale in scales.items()
    }
    proto = ir.to_proto(model)
    _declare_float(proto, ranges)
    # It would write the model to a file and read it back, for shapes that are there already.
    proto.metadata_props.append(
        onnx.StringStringEntryProto(key="onnx.infer", value="onnxruntime.quant")
    )
    operators = {place.operator for place in chosen}
    with _our_operators(operators, {place.node: place for place in chosen}):
        quantizer = QDQQuantizer(
            proto,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, ranges),
            nodes_to_quantize=[place.node for place in chosen],
            nodes_to_exclude=[],
            op_types_to_quantize=list(operators),
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "MinimumRealRange": 254 * SMALLEST_SCALE,
            },
        )
        quantizer.quantize_model()
    result = ir.from_proto(quantizer.model.model)
    result.graph.sort()
    result.producer_name, result.producer_version = model.producer_name, model.producer_version
    result.metadata_props.pop("onnx.infer", None)
    return common.ShapeInferencePass()(result).model


@contextmanager
def _our_operators(operators: Iterable[str], by_node: dict[str, Place]) -> Iterator[None]:
    """Let ONNX Runtime's quantizer ask `by_node` what to quantize at a node."""
    from onnxruntime.quantization.operators.qdq_base_operator import QDQOperatorBase
    from onnxruntime.quantization.registry import QDQRegistry

    class Placed(QDQOperatorBase):  # type: ignore[misc]
        def quantize(self) -> None:
            place = by_node[self.node.name]
            for name in place.reads:
                self.quantizer.quantize_activation_tensor(name)
            if place.weight is not None:
                self.quantizer.quantize_weight_tensor_per_channel(place.weight, place.axis)
            if place.same_scale:
                self.quantizer.quantize_output_same_as_input(
                    place.writes, place.reads[0], place.node
                )
            elif place.writes is not None:
                self.quantizer.quantize_activation_tensor(place.writes)

    before = dict(QDQRegistry)
    QDQRegistry.update(dict.fromkeys(operators, Placed))
    try:
        yield
    finally:
        QDQRegistry.clear()
        QDQRegistry.update(before)


def _declare_float(proto: Any, names: Iterable[str]) -> None:
    """Say that tensors are float32 where shape inference could not."""
    import onnx

    graph = proto.graph
    known = {value.name for value in (*graph.value_info, *graph.input, *graph.output)}
    graph.value_info.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in names
        if name not in known
    )


def _read_unrounded(model: ir.Model, kept: Collection[str], int8_results: set[str]) -> None:
    """Let the nodes named `kept` read activations from before Q and DQ.

    What a quantized operation writes as INT8 (`int8_results`) has no other form.
    """
    for node in model.graph:
        if node.name in kept:
            for index, value in enumerate(node.inputs):
                original = _before_rounding(value)
                if original is not None and original.name not in int8_results:
                    node.replace_input_with(index, original)


def _before_rounding(value: ir.Value | None) -> ir.Value | None:
    """The tensor whose rounded copy `value` is; None where it is no such copy."""
    dequantize = value.producer() if value is not None else None
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return None
    integers = dequantize.inputs[0]
    quantize_node = integers.producer() if integers is not None else None
    return quantize_node.inputs[0] if quantize_node is not None else None
