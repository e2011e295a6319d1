"""Convert the precision of an ONNX file: FP32 to FP16 or BF16, or to INT8 or FP8.

TensorRT takes every type from the ONNX file, so this is where precision is decided. The converted
file is compared with the original in ONNX Runtime before it is put in place.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import onnx_ir as ir

from cbam_deploy.artefacts import open_onnx
from cbam_deploy.command_files import check_apart
from cbam_deploy.data.tensors import are_tensors
from cbam_deploy.errors import BadInput
from cbam_deploy.exporters.calibrated_network import (
    HALF_ONLY,
    ConversionRequest,
    Measure,
    calibrated,
    finish,
    within_budget,
)
from cbam_deploy.exporters.conversion_check import check_conversion
from cbam_deploy.exporters.conversion_result import ConvertResult, Precision
from cbam_deploy.exporters.half.conversion import IoDtype
from cbam_deploy.exporters.half.rules import (
    FROM_FP32,
    PRODUCTS,
    check_single_precision,
    is_standard,
    is_weight,
)
from cbam_deploy.exporters.int8.calibration import Method, calibration_inputs
from cbam_deploy.exporters.int8.quantized_types import INT8
from cbam_deploy.exporters.mixed_precision import Choice, Chooser
from cbam_deploy.exporters.newer_opset import in_newer_opset
from cbam_deploy.exporters.node_counts import count_nodes
from cbam_deploy.graphs.gate_functions import foreign_operators, gate_nodes
from cbam_deploy.graphs.onnx_file import write_model
from cbam_deploy.library_errors import said_of_the_file
from cbam_deploy.outputs import check_place
from cbam_deploy.preprocessing.choice import Asked
from cbam_deploy.preprocessing.own_function import recorded
from cbam_deploy.provenance import Provenance, file_sha256
from cbam_deploy.report.units import TOP1, MetricUnit

CALIBRATION_IMAGES = 64


@said_of_the_file
def convert(
    source: str | Path,
    output: str | Path,
    *,
    precision: Precision = "fp16",
    calibration: str | None = None,
    preprocessing: Asked | None = None,
    sizes: Sequence[str] = (),
    method: Method | None = None,
    images: int = CALIBRATION_IMAGES,
    io_dtype: IoDtype = "fp32",
    max_accuracy_drop: float | None = None,
    measure: Measure | None = None,
    unit: MetricUnit = TOP1,
    seed: int = 0,
    called: str | None = None,
    chooser: Chooser | None = None,
    trained: Provenance | None = None,
) -> ConvertResult:
    """Convert an FP32 ONNX file; the same file, pictures and seed give the same bytes.

    Args:
        source: an FP32 file, best with its gates fused.
        output: file to write.
        precision: ``fp16`` or ``bf16``; ``int8`` or ``fp8``, where what is not quantized is FP16;
            or ``int8+fp32``.
        calibration: SOURCE of typical pictures; of a set with splits, the training split. INT8 and
            FP8 need it. For FP16 and BF16 it is what activations are checked on: nodes whose
            tensors pass half of the format's range stay in FP32.
        preprocessing: how inputs are made from pictures (`preprocessing.choice.Asked`), recorded in
            the file; None for what `source` records, else ImageNet's, which is not recorded.
        sizes: typical size of free axes, such as ``H=640``; recorded in the file.
        method: how ranges are found: ``minmax``, ``entropy`` or ``percentile``; None for the last,
            in FP8 for the first: its steps grow with the values, so clipping them wins nothing.
        images: how many pictures to calibrate on, drawn by `seed`.
        io_dtype: type of network inputs and outputs, ``fp32``, or ``fp16`` where the rest is that.
        max_accuracy_drop: how far what `measure` returns may fall with INT8, such as 0.005 for half
            a point; the noisiest layers are given back to float until it holds.
        measure: the value of a metric for an ONNX file, the larger the better, and for how its
            pictures are prepared; None where nothing says that.
        unit: how such values are written.
        seed: of everything random.
        called: what messages call `source`, where its path means nothing to the person.
        chooser: gives who chooses which nodes stay in a higher precision, in place of a budget, for
            the file and how its pictures are prepared; None for none but those that the range check
            keeps.
        trained: of the checkpoint that `source` was exported from, where its scales were trained
            with it: INT8 takes them instead of calibrating.

    Raises:
        BadInput: an option is wrong or missing, `source` cannot be read, is converted already or
            has nothing to convert, a SOURCE has no readable picture, or `output` cannot be written.
        CheckFailed: the converted file is broken (`conversion_check`), or the budget cannot be met.
        MissingCapability: a package for reading pictures is missing.
    """
    begin = time.perf_counter()
    source, output = Path(source), Path(output)
    check_options(precision, calibration, io_dtype, trained)
    if precision == "fp8" and method == "entropy":
        raise BadInput(
            "method entropy chooses among the even levels of INT8, which FP8 has not",
            "use minmax or percentile",
        )
    if method is None:
        method = "minmax" if precision == "fp8" else "percentile"
    _check_budget(precision, max_accuracy_drop, measure)
    unit.check_drop(max_accuracy_drop or 0.0)
    check_place(output, artefact=True)
    check_apart(output, source=source)
    opened = replace(open_onnx(source), called=called)
    model, history = opened.model, opened.provenance or Provenance()
    if sizes:
        opened = opened.sized(sizes)
        history = replace(history, sizes=opened.sizes)
    _check_convertible(opened.title, model, history)
    if preprocessing is not None:
        preprocessing = opened.preprocessing(preprocessing)
        history = replace(history, preprocessing=recorded(preprocessing))
        opened = replace(opened, provenance=history)  # What was said once is not said again.
    pictures = None
    if calibration is not None:
        calibration_inputs(model)
        pictures = opened.samples(calibration, preprocessing, split="train")
        if preprocessing is None and not are_tensors(calibration):
            preprocessing = pictures.preprocessing
    choose = None if chooser is None else chooser(opened, preprocessing)
    model = in_newer_opset(opened, precision, pictures, seed).model
    request = ConversionRequest(
        source, history, precision, method, io_dtype, pictures, preprocessing, images, seed, trained
    )
    network = calibrated(request, model, searched=choose is not None)
    choice, budget = Choice(), None
    if choose is not None:
        choice = choose(network.mixed())
    elif max_accuracy_drop is not None and measure is not None:
        choice, budget = within_budget(network, max_accuracy_drop, measure, unit)
    made = network.quantized(choice)
    half, provenance = finish(request, made, choice)
    report = made.quantization
    quantized = {operation.node for operation in report.quantized} if report else set()
    cosines: list[float] = []

    def verify(path: Path) -> None:
        kind = precision.partition("+")[0]
        cosines.append(check_conversion(source, path, kind, pictures, seed, opened.title))

    write_model(made.model, output, verify)
    return ConvertResult(
        path=output,
        sha256=file_sha256(output),
        bytes=output.stat().st_size,
        source_bytes=source.stat().st_size,
        precision=precision,
        half=half,
        quantization=made.quantization,
        budget=budget,
        calibration=provenance.calibration,
        skipped=tuple(pictures.skipped) if pictures is not None else (),
        cosine=cosines[0],
        seconds=time.perf_counter() - begin,
        provenance=provenance,
        nodes=count_nodes(made.model.graph, quantized, request.kind or INT8),
    )


def check_options(
    precision: str, calibration: str | None, io_dtype: str, trained: Provenance | None = None
) -> None:
    """Refuse what cannot be converted to, before the work begins; raises `BadInput`."""
    for option, value, choices in (
        ("precision", precision, get_args(Precision)),
        ("I/O type", io_dtype, get_args(IoDtype)),
    ):
        if value not in choices:
            raise BadInput(f"{option} {value!r} is unknown", f"choose {', '.join(choices)}")
    if precision in ("int8+fp32", "bf16") and io_dtype == "fp16":
        other = "int8" if precision == "int8+fp32" else "fp16"
        raise BadInput(
            f"{precision} has no FP16 inputs and outputs", f"use {other}, or --io-dtype fp32"
        )
    if trained is not None and calibration is not None:
        raise BadInput(
            "the checkpoint's INT8 scales were trained; calibration would replace them",
            "leave --calibration out; or export in fp32, and convert that file",
        )
    if precision not in HALF_ONLY and calibration is None and trained is None:
        raise BadInput(
            f"{precision} needs pictures to calibrate on",
            "give --calibration: a folder of typical pictures, digits or photos",
        )


def _check_budget(precision: str, max_accuracy_drop: float | None, measure: Measure | None) -> None:
    if max_accuracy_drop is None and measure is None:
        return
    if not precision.startswith("int8"):
        raise BadInput(
            "an accuracy budget is for INT8",
            f"compare {precision.upper()} files with evaluate --max-drop",
        )
    if max_accuracy_drop is None or measure is None:
        raise BadInput(
            "an accuracy budget needs both the drop and the data to measure it on",
            "give --max-accuracy-drop together with --data",
        )


def _check_convertible(title: str, model: ir.Model, history: Provenance) -> None:
    """Refuse a file that is no FP32 network of convolutions or matrix products."""
    check_single_precision(model, title)
    if history.precision != "fp32":
        raise BadInput(f"{title}: is recorded as {history.precision} already", FROM_FP32)
    foreign = foreign_operators(model)
    gate = next((node for node in gate_nodes(model) if node.op_type in foreign), None)
    if gate is not None:
        raise BadInput(
            f"{title}: gate {gate.name or gate.outputs[0].name} is not ours to convert: "
            f"{foreign[gate.op_type]}",
            "convert it with the version that made it, or export the network again with this one",
        )
    if not any(is_standard(node, *PRODUCTS) and _reads_weight(node) for node in model.graph):
        raise BadInput(
            f"{title}: has no convolution or matrix product with FP32 weights to convert",
            "give an exported network",
        )


def _reads_weight(node: ir.Node) -> bool:
    return any(
        value is not None
        and (is_weight(value) or is_standard(value.producer(), "Constant"))
        and value.dtype == ir.DataType.FLOAT
        for value in node.inputs
    )
