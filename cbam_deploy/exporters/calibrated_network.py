"""An FP32 network, calibrated once, that becomes files in any choice of precisions.

`convert` makes one of them: all in the precision asked for, or what an accuracy budget or a search
leaves in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from cbam_deploy.errors import BadInput
from cbam_deploy.exporters.conversion_result import Precision
from cbam_deploy.exporters.half.conversion import (
    HalfReport,
    IoDtype,
    Ranges,
    settle_types,
    to_half,
)
from cbam_deploy.exporters.half.formats import BF16, FP16
from cbam_deploy.exporters.half.rules import is_float
from cbam_deploy.exporters.int8.calibration import (
    Calibration,
    Method,
    calibrate,
    calibration_batches,
    calibration_inputs,
)
from cbam_deploy.exporters.int8.quantized_types import FP8, INT8, QuantizedType
from cbam_deploy.exporters.mixed_precision import STEPS, Choice, MixedPrecision
from cbam_deploy.graphs.gate_functions import gate_counts
from cbam_deploy.graphs.onnx_file import set_provenance, write_model
from cbam_deploy.graphs.shapes import forget_names_of_sizes
from cbam_deploy.graphs.signature import graph_precision
from cbam_deploy.numerics.tensors import Feeds
from cbam_deploy.outputs import scratch_folder
from cbam_deploy.preprocessing import Preprocessing
from cbam_deploy.provenance import Provenance, package_versions
from cbam_deploy.report.units import MetricUnit

if TYPE_CHECKING:
    from cbam_deploy.data import ImageSource
    from cbam_deploy.exporters.int8.budget import BudgetReport
    from cbam_deploy.exporters.int8.quantization import QuantizationReport

HALF_ONLY = ("fp16", "bf16")  # Precisions that quantize nothing.
Measure = Callable[[Path, Preprocessing | None], float]
_PACKAGES = ("cbam-deploy", "onnx", "onnx-ir", "onnxruntime")


@dataclass(frozen=True)
class ConversionRequest:
    """What was asked for."""

    source: Path
    history: Provenance
    precision: Precision
    method: Method
    io_dtype: IoDtype
    pictures: ImageSource | None
    preprocessing: Preprocessing | None
    images: int
    seed: int
    trained: Provenance | None

    def batches(self, model: ir.Model) -> Iterator[Feeds]:
        """Samples to calibrate `model` on."""
        assert self.pictures is not None
        inputs = calibration_inputs(model)
        return calibration_batches(self.pictures, inputs, images=self.images, seed=self.seed)

    @property
    def kind(self) -> QuantizedType | None:
        """The type of 8 bits that is asked for; None where nothing is quantized."""
        if self.precision in HALF_ONLY:
            return None
        return FP8 if self.precision == "fp8" else INT8

    @property
    def total(self) -> int:
        """How many there will be, at most."""
        return 0 if self.pictures is None else min(self.images, len(self.pictures))


@dataclass(frozen=True)
class QuantizedNetwork:
    """A model whose float side is FP32 still, and what is known about it."""

    model: ir.Model
    quantization: QuantizationReport | None
    calibration: Calibration | None
    ranges: Ranges | None


@dataclass(frozen=True)
class CalibratedNetwork:
    """An FP32 network that is ready to be converted, in any choice of precisions.

    Attributes:
        model: as `int8.quantization.prepare` gives it, where it becomes INT8.
        calibration: of what INT8 scales are made from, or what FP16 is checked on.
        ranges: of activations, for FP16's range check.
    """

    request: ConversionRequest
    model: ir.Model
    calibration: Calibration | None
    ranges: Ranges | None

    def quantized(self, choice: Choice) -> QuantizedNetwork:
        """A copy with what the choice quantizes in 8 bits."""
        if self.request.kind is None:
            return QuantizedNetwork(self.model.clone(), None, self.calibration, self.ranges)
        from cbam_deploy.exporters.int8.quantization import insert

        assert self.calibration is not None
        inserted = insert(
            self.model,
            self.calibration,
            keep_float=choice.unquantized,
            kind=self.request.kind,
        )
        return QuantizedNetwork(*inserted, self.calibration, self.ranges)

    def mixed(self) -> MixedPrecision:
        """For who chooses."""

        def make(choice: Choice) -> ir.Model:
            made = self.quantized(choice)
            finish(self.request, made, choice)
            return made.model

        return MixedPrecision(self.model, STEPS[self.request.precision], make)


def calibrated(request: ConversionRequest, model: ir.Model, *, searched: bool) -> CalibratedNetwork:
    """Calibrate what the precision needs; of a network to be searched, FP16's ranges too."""
    kind = request.kind
    if kind is None:
        found = _activation_ranges(request, model)
        return CalibratedNetwork(request, model, found, None if found is None else found.ranges)
    from cbam_deploy.exporters.int8.placement import calibrated_tensors, quantized_nodes
    from cbam_deploy.exporters.int8.quantization import prepare, trained_ranges

    prepared = prepare(model, kind)
    if request.trained is not None:
        found = trained_ranges(prepared, request.trained.trained_scales)
        return CalibratedNetwork(request, prepared, found, found.ranges)
    chosen = quantized_nodes(prepared, kind=kind)
    if not chosen:
        raise BadInput(
            f"{request.source}: has no layer that there are {kind.name} kernels for",
            "use int8 or fp16",
        )
    calibration = calibrate(
        prepared,
        calibrated_tensors(chosen),
        request.batches(prepared),
        method=request.method,
        images=request.total,
    )
    wide = _activation_ranges(request, prepared) if searched else None
    return CalibratedNetwork(request, prepared, calibration, (wide or calibration).ranges)


def _activation_ranges(request: ConversionRequest, model: ir.Model) -> Calibration | None:
    """Range of every activation, where there are pictures."""
    if request.pictures is None:
        return None
    settle_types(model)
    computed = [value for node in model.graph for value in node.outputs]
    names = [value.name for value in (*model.graph.inputs, *computed) if is_float(value)]
    return calibrate(
        model,
        [name for name in names if name],
        request.batches(model),
        method="minmax",
        images=request.total,
    )


def within_budget(
    network: CalibratedNetwork, max_drop: float, measure: Measure, unit: MetricUnit
) -> tuple[Choice, BudgetReport]:
    """The choice that gives as few layers back to float as an accuracy budget allows."""
    from cbam_deploy.exporters.int8.budget import meet_budget

    request, mixed = network.request, network.mixed()
    assert network.calibration is not None

    def accuracy(kept: frozenset[str]) -> float:
        with scratch_folder() as folder:
            path = folder / "candidate.onnx"
            write_model(mixed.make(Choice({"int8": kept})), path)
            return measure(path, request.preprocessing)

    budget = meet_budget(
        network.model,
        network.calibration,
        baseline=measure(request.source, request.preprocessing),
        max_accuracy_drop=max_drop,
        evaluate=accuracy,
        sample=lambda: request.batches(network.model),
        unit=unit,
    )
    return Choice({"int8": frozenset(budget.given_back)}), budget


def finish(
    request: ConversionRequest, made: QuantizedNetwork, choice: Choice
) -> tuple[HalfReport | None, Provenance]:
    """Give the model's float side 16 bits, unless it is to stay FP32, and record its history."""
    half, calibration = None, made.calibration
    if request.precision != "int8+fp32":
        half = to_half(
            made.model,
            keep_fp32=choice.fp32,
            io_dtype=request.io_dtype,
            ranges=made.ranges,
            half=BF16 if request.precision == "bf16" else FP16,
        )
    forget_names_of_sizes(made.model.graph)
    facts: dict[str, Any] = {}
    if request.trained is not None:
        facts = request.trained.calibration
    elif calibration is not None and request.pictures is not None:
        facts = {
            "source": request.pictures.name,
            "images": calibration.images,
            "seed": request.seed,
            "method": calibration.method,
            "preprocessing": request.pictures.prepared_by,
        }
    provenance = replace(
        request.history,
        precision=graph_precision(made.model),
        gates=gate_counts(made.model),
        calibration=facts,
        versions={**request.history.versions, **package_versions(*_PACKAGES)},
    )
    set_provenance(made.model, provenance)
    return half, provenance
