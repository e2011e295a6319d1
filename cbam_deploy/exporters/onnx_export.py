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

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass
from torch import nn

from cbam_deploy.command_files import check_apart
from cbam_deploy.errors import BadInput
from cbam_deploy.exporters.conversion_result import ConvertResult, Precision
from cbam_deploy.exporters.convert import CALIBRATION_IMAGES, check_options, convert
from cbam_deploy.exporters.export_check import ExportError, check_export
from cbam_deploy.exporters.export_result import ExportResult
from cbam_deploy.exporters.gates.fusion import FusionReport, fuse_model
from cbam_deploy.exporters.gates.inlining import inline
from cbam_deploy.exporters.half.conversion import IoDtype
from cbam_deploy.exporters.int8.calibration import Method
from cbam_deploy.exporters.int8.quantized_types import FP8, INT8
from cbam_deploy.exporters.node_counts import count_nodes
from cbam_deploy.foreign_code import foreign_code
from cbam_deploy.gates.description import GateSpec
from cbam_deploy.graphs.gate_functions import gate_counts
from cbam_deploy.graphs.names import name_outputs
from cbam_deploy.graphs.older_opset import lower_opset
from cbam_deploy.graphs.onnx_file import read_model, read_provenance, set_provenance, write_model
from cbam_deploy.graphs.opset import check_opset, converted_to
from cbam_deploy.models import (
    default_image_size,
    load_identified,
    load_state,
    resolve_identity,
    resolve_preprocessing,
    state_dict_sha256,
)
from cbam_deploy.models.factory import is_factory, unwrapped
from cbam_deploy.models.weight_check import check_values, tensors_of
from cbam_deploy.numerics.tolerances import OUTPUTS, Tolerance, tolerance_for
from cbam_deploy.outputs import check_place, scratch_folder
from cbam_deploy.preprocessing import Preprocessing
from cbam_deploy.preprocessing.choice import Asked, PictureInput, choose, understood
from cbam_deploy.preprocessing.own_function import recorded
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
    output_names: Sequence[str] = (),
    opset: int | None = None,
    gate: GateSpec | None = None,
    seed: int = 0,
    initial_gates: bool = False,
    fuse: bool = True,
    preprocessing: Asked | None = None,
    precision: Literal["fp32"] | Precision | None = None,
    calibration: str | None = None,
    method: Method | None = None,
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
        output_names: one for each output, in order; none keeps ``logits``, or torch's names.
        opset: version of ONNX's operators, from 11 on; None is torch's own. What is written in
            another one is compared with PyTorch like every file.
        gate: another variant of the gate.
        seed: of the initial weights, and of what `precision` draws.
        initial_gates: let gates keep their initial weights where the checkpoint has none.
        fuse: whether to make each gate one node.
        preprocessing: how inputs are made from pictures (`preprocessing.choice.Asked`); None for
            what the checkpoint records, or ImageNet's for a network of the zoo. Of another network
            nothing is recorded then.
        precision: ``fp32``, or what `convert` takes; the next four are as there. None is ``fp32``,
            and ``int8+fp32`` for a checkpoint whose INT8 scales were trained: what training saw.
        calibration: SOURCE of typical pictures; INT8 and FP8 need it, but for trained scales.
        method: how their ranges are found.
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
    check_opset(opset)
    trace_as = partial(_traced, output_names=tuple(output_names), opset=opset)
    load = partial(_subject, model, asked, image_size, given, preprocessing)
    trained = None if weights is None else _with_trained_scales(weights)
    precision = precision or ("int8+fp32" if trained else "fp32")
    if not precision.startswith("int8"):
        trained = None
    if precision != "fp32":
        check_options(precision, calibration, io_dtype, trained)
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
        exported = _export(load, trace_as, first, fuse, tolerance, begin)
        if precision != "fp32":
            converted = convert(
                exported.path,
                last,
                precision=precision,
                calibration=calibration,
                preprocessing=preprocessing,
                method=method,
                images=images,
                io_dtype=io_dtype,
                seed=seed,
                called=str(output),
                trained=trained,
            )
            exported = replace(exported, provenance=converted.provenance, conversion=converted)
        if portable:
            inline(last, output)
            if exported.conversion is not None:
                exported = replace(exported, conversion=_inlined(exported.conversion, output))
    return _placed(exported, output, begin)


def _with_trained_scales(weights: str | Path) -> Provenance | None:
    """What a checkpoint records, if INT8 scales were trained with its weights."""
    recorded = load_state(weights).provenance
    return recorded if recorded is not None and recorded.trained_scales else None


def _inlined(conversion: ConvertResult, path: Path) -> ConvertResult:
    """The same with the nodes of the inlined file `path` counted."""
    model, report = read_model(path), conversion.quantization
    ShapeInferencePass()(model)
    quantized = {operation.node for operation in report.quantized} if report else set()
    type_ = FP8 if conversion.precision == "fp8" else INT8
    return replace(conversion, nodes=count_nodes(model.graph, quantized, type_))


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
    load: Callable[[], _Subject],
    trace_as: Callable[[_Subject], ir.Model],
    output: Path,
    fuse: bool,
    tolerance: float | None,
    begin: float,
) -> ExportResult:
    """Write what `load` gives in FP32."""
    with progress() as bar:
        task = bar.add_task("loading the model", total=4)
        subject = load()
        bar.update(task, advance=1, description=f"exporting {subject.label}")
        graph = trace_as(subject)
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


def _traced(subject: _Subject, *, output_names: Sequence[str], opset: int | None) -> ir.Model:
    """The graph of the subject, with outputs of these names, in this opset."""
    graph = trace(subject.module, subject.inputs, subject.output, subject.label)
    if opset is not None and opset < graph.opset_imports[""]:
        lower_opset(graph, opset)
    elif opset is not None and opset > graph.opset_imports[""]:
        graph = converted_to(graph, opset)
    if output_names:
        name_outputs(graph.graph, output_names, subject.label)
    return graph


def _subject(
    model: str | nn.Module,
    asked: ModelIdentity,
    image_size: int | None,
    inputs: NetworkInputs | None,
    said: Asked | None,
) -> _Subject:
    """`model` as it is, a module, or as `asked` for by name."""
    if image_size is not None and image_size < 1:
        raise BadInput(f"image size {image_size}", "give a positive number of pixels")
    identity, checkpoint = asked, None
    if not isinstance(model, nn.Module):
        identity, checkpoint = resolve_identity(asked)
    preprocessing = _preprocessing(identity, checkpoint, image_size, inputs, said)
    taken = inputs or pictures(_picture_shape(identity, preprocessing, image_size))
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
        preprocessing=None if preprocessing is None else recorded(preprocessing),
        sizes=inputs.sizes if inputs else {},
        class_names=checkpoint.class_names if checkpoint else (),
        versions=package_versions(*_PACKAGES),
    )
    return _Subject(
        module=module,
        label=asked.name,
        output=None if identity.num_classes is None else "logits",
        provenance=provenance,
        inputs=taken,
    )


def _preprocessing(
    identity: ModelIdentity,
    checkpoint: Provenance | None,
    image_size: int | None,
    inputs: NetworkInputs | None,
    said: Asked | None,
) -> Preprocessing | None:
    """How pictures are prepared: as the person says, or as the checkpoint or the zoo has it."""
    if said is not None:
        if inputs is None:
            return understood(said, (None, 3, image_size, image_size))
        first = inputs.specs[0]
        return choose(
            said, None, PictureInput(identity.name, first.name, first.shape, inputs.sizes)
        )
    known = checkpoint is not None and checkpoint.preprocessing is not None
    if not known and (is_factory(identity.name) or identity.attention is None):
        return None  # Nothing is known of a network that is not of the zoo.
    if inputs is not None and inputs.picture_size is None:
        return None
    size = image_size if inputs is None else inputs.picture_size
    return resolve_preprocessing(identity, checkpoint, image_size=size)


def _picture_shape(
    identity: ModelIdentity, preprocessing: Preprocessing | None, image_size: int | None
) -> tuple[int, int, int]:
    """Of the pictures that the network takes, where no inputs are given."""
    if preprocessing is None or preprocessing.function is not None:
        size = image_size or default_image_size(identity.stem)
        return (3, size, size)
    if image_size is not None and preprocessing.frame != (image_size, image_size):
        raise BadInput(
            f"image size {image_size} contradicts the preprocessing's"
            f" {'x'.join(map(str, preprocessing.frame))}",
            "give one of the two",
        )
    return preprocessing.shape
