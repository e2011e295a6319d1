"""Export a PyTorch model to an ONNX file: traced, gates fused, checked, its provenance recorded.

FP16 and INT8 are a second step (`convert`) from the FP32 file to the one that is put in place.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import nn

from cbam_deploy.command_files import check_apart
from cbam_deploy.errors import BadInput
from cbam_deploy.exporters.convert import CALIBRATION_IMAGES, check_options, convert
from cbam_deploy.exporters.export_check import ExportError, check_export
from cbam_deploy.exporters.export_result import ExportResult
from cbam_deploy.exporters.gates.fusion import FusionReport, fuse_model
from cbam_deploy.exporters.gates.inlining import inline
from cbam_deploy.exporters.half.conversion import IoDtype
from cbam_deploy.exporters.int8.calibration import Method
from cbam_deploy.gates.description import GateSpec
from cbam_deploy.graphs.gate_functions import gate_counts
from cbam_deploy.graphs.onnx_file import read_provenance, set_provenance, write_model
from cbam_deploy.models import (
    load_identified,
    resolve_identity,
    resolve_preprocessing,
    state_dict_sha256,
)
from cbam_deploy.models.factory import unwrapped
from cbam_deploy.models.foreign_code import foreign_code
from cbam_deploy.models.weight_check import check_values, tensors_of
from cbam_deploy.numerics.tolerances import OUTPUTS, Tolerance, tolerance_for
from cbam_deploy.outputs import check_place, scratch_folder
from cbam_deploy.preprocessing import Preprocessing
from cbam_deploy.progress import progress
from cbam_deploy.provenance import ModelIdentity, Provenance, file_sha256, package_versions
from cbam_deploy.tracing.network_inputs import NetworkInputs, parse_inputs, pictures
from cbam_deploy.tracing.torch_graph import trace

_PACKAGES = ("cbam-deploy", "torch", "onnx", "onnx-ir", "onnxscript")


@dataclass(frozen=True)
class _Subject:
    """What is exported: the module, what to call it, and its history so far."""

    module: nn.Module
    label: str
    output: str | None
    provenance: Provenance
    inputs: NetworkInputs


def export_onnx(
    model: str | nn.Module,
    output: str | Path,
    *,
    attention: str | None = None,
    weights: str | Path | None = None,
    stem: str | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
    inputs: Sequence[str] = (),
    gate: GateSpec | None = None,
    seed: int = 0,
    initial_gates: bool = False,
    fuse: bool = True,
    preprocessing: Preprocessing | None = None,
    precision: Literal["fp32", "fp16", "int8", "int8+fp32"] = "fp32",
    calibration: str | None = None,
    method: Method = "percentile",
    images: int = CALIBRATION_IMAGES,
    io_dtype: IoDtype = "fp32",
    tolerance: float | None = None,
    portable: bool = False,
) -> ExportResult:
    """Export a model to the ONNX file `output`.

    The graph takes ``input`` [batch, 3, S, S] float32 with a dynamic batch, or what `inputs` says;
    a network of the zoo gives ``logits`` [batch, num_classes], others their outputs in any number.
    The file is put in place only after the ONNX checker and a comparison with PyTorch in ONNX
    Runtime. The same model and seed give the same bytes.

    Args:
        model: MODEL as in the command line, or a module. A module is copied; its file cannot name
            what to compare it with later.
        output: file to write.
        attention: ``cbam``, ``se`` or ``none``. This and the next four, left None, are what the
            checkpoint records, else the defaults: cbam, imagenet, 1000 classes, 224 pixels.
        weights: checkpoint; None exports the initial weights of `seed`.
        stem: ``imagenet`` or ``cifar``.
        num_classes: outputs of the classifier.
        image_size: S, in pixels.
        inputs: one text for each input of a network that takes something else, such as
            ``image:Nx3xH=640xW=640``; `network_inputs` says what can be written.
        gate: another variant of the gate.
        seed: of the initial weights, and of what `precision` draws.
        initial_gates: let gates keep their initial weights where the checkpoint has none.
        fuse: whether to make each gate one node.
        preprocessing: how inputs are made from pictures, where that is not recorded.
        precision: ``fp32``, or what `convert` takes; the next four are as there.
        calibration: SOURCE of typical pictures; INT8 needs it.
        method: how INT8 ranges are found.
        images: how many pictures to calibrate on.
        io_dtype: type of network inputs and outputs.
        tolerance: error over the largest output to allow between the FP32 file and PyTorch; it is
            recorded. None allows what FP32 explains (`cbam_deploy.numerics.tolerances`).
        portable: write gates as standard operators in the end, as `inline` does, for tools that
            know no functions.

    Raises:
        BadInput: an option is wrong or contradicts another, the model or its checkpoint cannot be
            loaded, torch cannot export it, a SOURCE has no readable picture, or `output` cannot be
            written.
        CheckFailed: the file would compute something else than the model.
        MissingCapability: a package for reading pictures is missing.
    """
    begin = time.perf_counter()
    output = Path(output)
    check_place(output, artefact=True)
    check_apart(output, weights=weights)
    if tolerance is not None:
        tolerance_for("fp32", OUTPUTS, Tolerance(max_relative=tolerance))
    given = parse_inputs(inputs) if inputs else None
    if given is not None and image_size is not None:
        raise BadInput(
            "an image size and inputs were given", "say how large pictures are in --input alone"
        )
    asked = ModelIdentity(
        name=model if isinstance(model, str) else type(model).__name__,
        attention=attention,
        gate=gate,
        num_classes=num_classes,
        stem=stem,
        seed=seed,
        weights=None if weights is None else str(weights),
        initial_gates=initial_gates,
    )
    if isinstance(model, nn.Module):
        asked.refuse_options("a module", "build it as it shall be, or give MODEL as a name")
    load = partial(_subject, model, asked, image_size, given, preprocessing)
    if precision != "fp32":
        check_options(precision, calibration, io_dtype)
    elif calibration is not None or io_dtype != "fp32":
        raise BadInput(
            "an FP32 file takes no calibration and no FP16 inputs", "add --precision fp16 or int8"
        )
    with scratch_folder() as folder:
        fp32, fused = (folder / name / output.name for name in ("fp32", "fused"))
        for path in (fp32, fused):
            path.parent.mkdir()
        last = fused if portable else output
        first = last if precision == "fp32" else fp32
        exported = _export(load, first, fuse, tolerance, begin)
        if precision != "fp32":
            converted = convert(
                exported.path,
                last,
                precision=precision,
                calibration=calibration,
                method=method,
                images=images,
                io_dtype=io_dtype,
                seed=seed,
            )
            exported = replace(exported, provenance=converted.provenance, conversion=converted)
        if portable:
            inline(last, output)
    return _placed(exported, output, begin)


def _placed(exported: ExportResult, path: Path, begin: float) -> ExportResult:
    """What was exported, as the file `path` in the end."""
    written: dict[str, Any] = {
        "path": path,
        "sha256": file_sha256(path),
        "bytes": path.stat().st_size,
    }
    conversion, provenance = exported.conversion, read_provenance(path)
    assert provenance is not None
    if conversion is not None:
        conversion = replace(conversion, **written, provenance=provenance)
    seconds = time.perf_counter() - begin
    return replace(
        exported, **written, seconds=seconds, provenance=provenance, conversion=conversion
    )


def _export(
    load: Callable[[], _Subject], output: Path, fuse: bool, tolerance: float | None, begin: float
) -> ExportResult:
    """Write what `load` gives in FP32."""
    with progress() as bar:
        task = bar.add_task("loading the model", total=4)
        subject = load()
        bar.update(task, advance=1, description=f"exporting {subject.label}")
        graph = trace(subject.module, subject.inputs, subject.output, subject.label)
        bar.update(task, advance=1, description="fusing gates")
        report = fuse_model(graph) if fuse else FusionReport(0, (), ())
        provenance = replace(subject.provenance, gates=gate_counts(graph), tolerance=tolerance)
        set_provenance(graph, provenance)
        bar.update(task, advance=1, description="comparing with PyTorch")
        errors: list[ExportError] = []

        def verify(path: Path) -> None:
            errors.append(
                check_export(path, subject.module, subject.inputs, subject.label, tolerance)
            )

        write_model(graph, output, verify)
    return ExportResult(
        path=output,
        sha256=file_sha256(output),
        bytes=output.stat().st_size,
        gates=provenance.gates,
        refused=report.refused,
        error=errors[0],
        seconds=time.perf_counter() - begin,
        provenance=provenance,
    )


def _subject(
    model: str | nn.Module,
    asked: ModelIdentity,
    image_size: int | None,
    inputs: NetworkInputs | None,
    preprocessing: Preprocessing | None,
) -> _Subject:
    """`model` as it is, a module, or as `asked` for by name."""
    identity, recorded = (asked, None) if isinstance(model, nn.Module) else resolve_identity(asked)
    if inputs is not None:
        image_size = inputs.picture_size
    if preprocessing is None and (inputs is None or image_size is not None):
        preprocessing = resolve_preprocessing(identity, recorded, image_size=image_size)
    if isinstance(model, nn.Module):
        with foreign_code(f"{asked.name}: copying it"):
            module = copy.deepcopy(unwrapped(model)).float().cpu().eval()
        check_values(module, None, asked.name)
    else:
        module, identity = load_identified(identity)
        if identity.weights is None:
            identity = replace(identity, weights_sha256=state_dict_sha256(tensors_of(module)))
        module = module.float().eval()
    provenance = Provenance(
        model=None if isinstance(model, nn.Module) else identity,
        preprocessing=preprocessing,
        sizes=inputs.sizes if inputs else {},
        class_names=recorded.class_names if recorded else (),
        versions=package_versions(*_PACKAGES),
    )
    return _Subject(
        module=module,
        label=asked.name,
        output=None if identity.num_classes is None else "logits",
        provenance=provenance,
        inputs=_inputs(inputs, image_size, preprocessing),
    )


def _inputs(
    given: NetworkInputs | None, image_size: int | None, preprocessing: Preprocessing | None
) -> NetworkInputs:
    """What the network takes: as given, else pictures as they are preprocessed."""
    if given is not None and (preprocessing is None or image_size is None):
        return given
    assert preprocessing is not None
    if image_size not in (None, preprocessing.image_size):
        raise BadInput(
            f"image size {image_size} contradicts the preprocessing's {preprocessing.image_size}",
            "give one of the two",
        )
    return given or pictures(preprocessing.image_size)
