"""INT8 or FP8 by post-training quantization: symmetric Q/DQ in the ONNX file, for TensorRT.

A weight's scale is max|w| / 127 for each output channel, an activation's is t / 127 with t by
calibration (`calibration`); in FP8 it is 448 in place of 127. `placement` tells what is quantized,
`qdq` puts Q and DQ there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from cbam_deploy.errors import BadInput
from cbam_deploy.exporters.half.rules import check_single_precision, is_standard
from cbam_deploy.exporters.int8.calibration import Calibration, Images, Method, calibrate
from cbam_deploy.exporters.int8.channels import IdleChannels, named
from cbam_deploy.exporters.int8.feature_maps import float_feature_maps
from cbam_deploy.exporters.int8.placement import (
    QuantizedNode,
    borrowed_scales,
    calibrated_tensors,
    quantized_nodes,
)
from cbam_deploy.exporters.int8.qdq import SMALLEST_SCALE, insert_pairs
from cbam_deploy.exporters.int8.quantized_types import INT8, QuantizedType
from cbam_deploy.graphs.opset import ADDS_ONLY_FROM, raise_opset
from cbam_deploy.report.content import Section, Table
from cbam_deploy.report.result import Result

# Of fewer pictures a report says so: ranges then follow single ones.
FEW_IMAGES = 16


@dataclass(frozen=True)
class QuantizationReport(Result):
    """What was quantized.

    Attributes:
        method: of calibration, or ``trained``.
        images: number of pictures calibrated on; 0 for trained scales.
        quantized: the operations that run in 8 bits.
        kept_float: names of the operations that would, and were kept in float.
        scales: of activations, by tensor.
        float_feature_maps: feature maps that travel as float all the same.
        idle_channels: channels of activations that never changed on those pictures, by tensor.
        type: ``INT8`` or ``FP8``.
    """

    schema: ClassVar[str] = "cbam_deploy.quantization"

    method: Method | Literal["trained"]
    images: int
    quantized: tuple[QuantizedNode, ...]
    kept_float: tuple[str, ...]
    scales: dict[str, float]
    float_feature_maps: tuple[str, ...]
    idle_channels: dict[str, IdleChannels] = field(default_factory=dict)
    type: str = "INT8"

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready data."""
        return {**super().to_json(), "quantized": [node.node for node in self.quantized]}

    def sections(self) -> tuple[Section, ...]:
        """What computes in 8 bits and what does not."""
        counts = Counter(node.operator for node in self.quantized)
        listed = ", ".join(f"{count} {operator}" for operator, count in counts.most_common())
        trained = self.method == "trained"
        facts = (
            ("calibration", "trained" if trained else f"{self.method} over {self.images} pictures"),
            ("quantized", listed or "nothing"),
            ("kept in float", ", ".join(self.kept_float) or "nothing"),
            ("float feature maps", str(len(self.float_feature_maps))),
            ("dead channels", named({name: one.dead for name, one in self.idle_channels.items()})),
            (
                "constant channels",
                named({name: one.constant for name, one in self.idle_channels.items()}),
            ),
        )
        notes = () if trained or self.images >= FEW_IMAGES else (_too_few(self.images),)
        return (Section(self.type, tables=(Table.facts(facts),), notes=notes),)


def quantize(
    source: ir.Model,
    batches: Iterable[Images],
    *,
    method: Method = "percentile",
    keep_float: Collection[str] = (),
    kind: QuantizedType = INT8,
) -> tuple[ir.Model, QuantizationReport]:
    """Calibrate and quantize; `source` stays as it is.

    Args:
        source: a float32 network.
        batches: network inputs, float32 [N, C, H, W] each; gone through once.
        method: ``minmax``, ``entropy`` or ``percentile``.
        keep_float: names of nodes (convolutions, gates, additions, ...) to leave in float.
        kind: INT8 or FP8.

    Raises:
        BadInput: the network cannot be quantized (see `prepare`), there is no picture, or one is
            of the wrong size.
    """
    model = prepare(source, kind)
    tensors = calibrated_tensors(quantized_nodes(model, keep_float, kind))
    calibration = calibrate(model, tensors, batches, method=method)
    return insert(model, calibration, keep_float=keep_float, kind=kind)


def trained_ranges(model: ir.Model, scales: Mapping[str, float]) -> Calibration:
    """What calibration would have to find for an INT8 file with exactly these `scales`.

    They are taken in their order. Names count without their numbers, such as ``mul`` of ``mul_34``:
    torch gives others when axes are free.

    Args:
        model: as `prepare` gives it.
        scales: of activations, in the order of `placement.calibrated_tensors`; borrowed ones
            (`placement.borrowed_scales`) left out.

    Raises:
        BadInput: they are not those of the network's INT8 tensors.
    """
    chosen = quantized_nodes(model)
    borrowed = borrowed_scales(chosen)
    wanted = [name for name in calibrated_tensors(chosen) if name not in borrowed]
    if [name.rstrip("_0123456789") for name in scales] != [
        name.rstrip("_0123456789") for name in wanted
    ]:
        raise BadInput(
            f"the {len(scales)} trained scales are not those of this ONNX graph, which has"
            f" {len(wanted)} INT8 tensors",
            "export as it was trained: gates fused, and with the same version of torch",
        )
    found = dict(zip(wanted, scales.values(), strict=True))
    found |= {name: found[source] for name, source in borrowed.items()}
    ranges = {name: (-INT8.largest * one, INT8.largest * one) for name, one in found.items()}
    return Calibration("trained", 0, ranges)


def prepare(source: ir.Model, kind: QuantizedType = INT8) -> ir.Model:
    """A copy of the network with named nodes, initializers for constants, and shapes.

    Raises:
        BadInput: it is quantized already, not in float32, older than the opset of `kind`, or has no
            convolution.
    """
    _check(source, kind)
    copy = source.clone()
    raise_opset(copy, kind.opset)
    model = common.LiftConstantsToInitializersPass()(copy).model
    model = common.NameFixPass()(model).model
    return common.ShapeInferencePass()(model).model


def insert(
    model: ir.Model,
    calibration: Calibration,
    *,
    keep_float: Collection[str] = (),
    kind: QuantizedType = INT8,
) -> tuple[ir.Model, QuantizationReport]:
    """Put Q and DQ into a copy of the network.

    Args:
        model: as `prepare` gives it.
        calibration: ranges of at least `placement.calibrated_tensors`.
        keep_float: names of nodes to leave in float: their weights stay float, and what they read
            is not rounded for them, though it may be for others who read it.
        kind: INT8 or FP8.

    Raises:
        BadInput: a name in `keep_float` is not that of an operation that could run in 8 bits.
    """
    possible = quantized_nodes(model, kind=kind)
    names, keep_float = {operation.node for operation in possible}, frozenset(keep_float)
    for name in keep_float:
        if name not in names:
            raise BadInput(
                f"there is no node {name!r} to keep in float",
                f"one of the {len(names)} that {kind.name} concerns: "
                f"{', '.join(sorted(names)[:3])}, ...",
            )
    chosen = tuple(operation for operation in possible if operation.node not in keep_float)
    scales = activation_scales(calibration, chosen, kind)
    quantized = model.clone()
    kept = tuple(operation.node for operation in possible if operation.node in keep_float)
    insert_pairs(quantized.graph, chosen, scales, frozenset(kept), kind)
    report = QuantizationReport(
        method=calibration.method,
        images=calibration.images,
        quantized=chosen,
        kept_float=kept,
        scales=scales,
        float_feature_maps=float_feature_maps(quantized),
        idle_channels={name: one for name, one in calibration.idle.items() if name in scales},
        type=kind.name,
    )
    return quantized, report


def activation_scales(
    calibration: Calibration, chosen: Iterable[QuantizedNode], kind: QuantizedType = INT8
) -> dict[str, float]:
    """The scale of each activation that `chosen` read or write, by tensor."""
    chosen = tuple(chosen)
    scales = {}
    for name in calibrated_tensors(chosen):
        scale = max(calibration.magnitude(name) / kind.largest, SMALLEST_SCALE)
        scales[name] = float(np.float32(scale))
    return scales | {name: scales[like] for name, like in borrowed_scales(chosen).items()}


def fake_quantize(values: NDArray[np.float32], scale: NDArray[Any] | float) -> NDArray[np.float32]:
    """What is left of `values` after Q and DQ; `scale` broadcasts against them."""
    step = np.asarray(scale, np.float32)
    return np.asarray(np.clip(np.rint(values / step), -128, 127) * step, np.float32)


def _too_few(images: int) -> str:
    what = "1 picture" if images == 1 else f"{images} pictures"
    return (
        f"Ranges from {what} follow what happens to be on them; give {FEW_IMAGES} or more that are "
        "typical (--images)."
    )


def _check(model: ir.Model, kind: QuantizedType) -> None:
    check_single_precision(model, "the network")
    opset = model.opset_imports.get("", 1)
    if opset < ADDS_ONLY_FROM.get(kind.opset, kind.opset):
        raise BadInput(
            f"the network is of opset {opset}; {kind.name} needs {kind.opset} or later",
            "export it again with a later opset",
        )
    if not any(is_standard(node, "Conv") for node in model.graph):
        raise BadInput(
            "the network has no convolution to quantize", "8 bits are for convolutional networks"
        )
