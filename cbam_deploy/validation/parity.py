"""Hold an artefact against the PyTorch model or ONNX file it was made from, on the same inputs."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cbam_deploy.artefacts import Artefact, OnnxFile, open_artefact
from cbam_deploy.comparison.file_reference import FileProgram, FileReference, file_reference
from cbam_deploy.comparison.layer_report import Layers
from cbam_deploy.data.builtin import BUILTIN
from cbam_deploy.data.feeds import InputStream, default_batches
from cbam_deploy.data.tensors import are_tensors
from cbam_deploy.errors import BadInput, MissingCapability
from cbam_deploy.exporters.half.rounded_runner import open_rounded
from cbam_deploy.library_errors import said_of_the_file
from cbam_deploy.machine import environment
from cbam_deploy.numerics.feeds import check_batch
from cbam_deploy.numerics.tolerances import (
    LAYERS,
    OUTPUTS,
    Tolerance,
    tolerance_for,
)
from cbam_deploy.preprocessing.choice import Asked, idle_preprocessing
from cbam_deploy.runtimes.base import Runner
from cbam_deploy.validation.pair import Pair
from cbam_deploy.validation.parity_report import BatchParity, ParityReport

if TYPE_CHECKING:
    from torch import nn

    from cbam_deploy.comparison.layer_report import LayerReport
    from cbam_deploy.comparison.reference import Reference
    from cbam_deploy.data import ImageSource

_log = logging.getLogger(__name__)
# Few, as every value inside is held in memory; more than one, because a gate's hidden layer may
# have a single unit, whose value near zero in one sample would be all rounding error.
_LAYER_SAMPLES = 4


@said_of_the_file
def validate(
    artefact: str | Path,
    *,
    reference: str | nn.Module | None = None,
    weights: str | Path | None = None,
    data: str | None = None,
    preprocessing: Asked | None = None,
    sizes: Sequence[str] = (),
    batch_sizes: Sequence[int] | None = None,
    layers: Layers | None = None,
    max_abs: float | None = None,
    max_relative: float | None = None,
    min_cosine: float | None = None,
    min_snr_db: float | None = None,
    min_top1: float | None = None,
    min_channel_snr_db: float | None = None,
    seed: int = 0,
    runtime: str | None = None,
    device: str | None = None,
    limit: int = 16,
) -> ParityReport:
    """Compare `artefact` with its reference on the CPU: every output, at several batch sizes.

    The reference is PyTorch in FP32, or an ONNX file in ONNX Runtime; figures are in float64. BF16
    and FP8 files are also held against PyTorch rounded the same way (`rounded_reference`).

    ONNX Runtime on a CPU rounds values of 16 bits as a GPU does (`exporters.half.rounded_runner`).

    Args:
        artefact: an ``.onnx`` or ``.engine`` file.
        reference: MODEL string, module, or path of an ``.onnx`` file; None rebuilds the model of
            the artefact's provenance.
        weights: checkpoint for the reference instead of the recorded one.
        data: SOURCE of pictures. None means noise; for INT8 and FP8, whose ranges are those of
            pictures, the recorded calibration source where that is built in, else ``photos``.
        preprocessing: how inputs are made from them (`preprocessing.choice.Asked`); None for what
            the artefact records, else ImageNet's.
        sizes: of free axes that pictures do not settle, such as ``H=640``.
        batch_sizes: None means both ends of what the artefact takes, and one between.
        layers: also compare values inside an ONNX file: of its fused ``gates``, or ``all``.
        max_abs: bound on an output's error. This and the next five replace bounds of the
            precision's own tolerance; `cbam_deploy.numerics.tolerances` defines them.
        max_relative: bound on the error over the largest reference value.
        min_cosine: bound on the cosine.
        min_snr_db: bound on the signal-to-noise ratio, in dB.
        min_top1: bound on the top-1 agreement, between 0 and 1.
        min_channel_snr_db: bound on the signal-to-noise ratio of each channel by itself, in dB.
        seed: of the noise.
        runtime: runtime instead of the one the file implies.
        device: ``cpu`` or ``cuda``, for the artefact; the reference stays on the CPU.
        limit: pictures per batch size; at least one batch is always compared.

    Raises:
        BadInput: the artefact, the reference or the data cannot be read, do not belong together,
            or an option does not fit them.
        MissingCapability: this machine cannot run the artefact.
    """
    from cbam_deploy.comparison.reference import open_reference
    from cbam_deploy.validation.rounded_reference import rounded_like

    opened = open_artefact(artefact).sized(sizes)
    path = opened.path
    if layers is not None and not isinstance(opened, OnnxFile):
        raise BadInput(
            f"{path}: an engine does not give out the values inside it",
            "compare the layers of the ONNX file that it was built from",
        )
    bounds = Tolerance(max_abs, max_relative, min_cosine, min_snr_db, min_top1, min_channel_snr_db)
    tolerance = tolerance_for(opened.precision, OUTPUTS, bounds)
    batches_of = _batch_sizes(opened, batch_sizes)
    with ExitStack() as stack:
        other: Reference | FileReference
        if is_file(reference):
            if weights is not None:
                raise BadInput(f"{reference}: has weights of its own", "leave --weights out")
            other = stack.enter_context(
                file_reference(Path(str(reference)), str(path), opened.inputs, opened.outputs)
            )
        else:
            other = open_reference(path, opened.provenance, reference, weights)
            if as_trained := _as_trained(other, opened):
                other = as_trained
                if layers is not None:
                    raise BadInput(
                        f"{path}: its values are rounded as training rounded them; inside the"
                        " network in PyTorch they have no such names",
                        "leave --layers out, or name another ONNX file with --reference",
                    )
        of_file = isinstance(other, FileReference)
        # What a person bounds, and what other precisions are held to, does not follow from FP64.
        relax = opened.precision == "fp32" and max_relative is None and not of_file
        with open_rounded(opened, runtime=runtime, device=device) as runner:
            inputs = _inputs(runner, opened, data, preprocessing, seed, limit)
            rounded, remark = rounded_like(opened, other, inputs)
            pair = Pair(path, runner, other, tolerance, relax, rounded)
            batches = pair.compare_all(batches_of, inputs)
        _check_top1_applies(path, min_top1, batches)
        return ParityReport(
            artefact=str(path),
            runtime=runner.name,
            reference=other.label,
            precision=opened.precision,
            inputs=inputs.label,
            tolerance=tolerance,
            batches=batches,
            layers=_layers(opened, other, inputs, layers, runtime, device)
            if layers is not None and isinstance(opened, OnnxFile)
            else None,
            environment=environment(),
            reference_kind="ONNX Runtime" if of_file else "PyTorch",
            remark=remark,
        )


def _as_trained(reference: Reference, artefact: Artefact) -> Reference | None:
    """`reference` with its INT8 rounding, where `artefact` has it from training; else None.

    Weights trained with rounding are held against that: without it they compute something else.
    """
    from cbam_deploy.models import load_state

    identity, history = reference.identity, artefact.provenance
    if identity is None or identity.weights is None or history is None:
        return None
    if artefact.precision != "int8" or "trained_epochs" not in history.calibration:
        return None
    recorded = load_state(identity.weights).provenance
    if recorded is None or not recorded.trained_scales:
        return None
    from cbam_deploy.training.quantization import trained_network

    module = trained_network(reference.module, identity, recorded)
    return replace(reference, module=module, label=f"{reference.label}, rounded as in training")


def is_file(reference: object) -> bool:
    """Whether a reference is an ONNX file, not a MODEL or a module."""
    return isinstance(reference, str | Path) and str(reference).endswith(".onnx")


def _layers(
    artefact: OnnxFile,
    reference: Reference | FileReference,
    inputs: InputStream,
    layers: Layers,
    runtime: str | None,
    device: str | None,
) -> LayerReport:
    from cbam_deploy.comparison.layers import Program, ReferenceProgram, compare_layers

    smallest, largest = artefact.batch_range
    batch = max(smallest, _LAYER_SAMPLES if largest is None else min(_LAYER_SAMPLES, largest))
    feeds = next(inputs.batches(batch))
    program: Program = (
        FileProgram(reference, feeds)
        if isinstance(reference, FileReference)
        else ReferenceProgram(reference, feeds, inputs.specs)
    )
    return compare_layers(
        artefact.model,
        program,
        title=str(artefact.path),
        layers=layers,
        tolerance=LAYERS[artefact.precision],
        open_runner=lambda values: open_rounded(
            artefact, runtime=runtime, device=device, extra_outputs=values
        ),
    )


def _inputs(
    runner: Runner,
    artefact: Artefact,
    data: str | None,
    preprocessing: Asked | None,
    seed: int,
    limit: int,
) -> InputStream:
    if data is None and artefact.precision in ("int8", "fp8"):
        source = _pictures_for_8_bits(artefact, preprocessing)
    else:
        if data is not None and preprocessing is not None and are_tensors(data):
            raise BadInput(
                f"{data}: tensors are taken as they are", "leave --preprocess out, or give pictures"
            )
        if data is None and preprocessing is not None:
            raise idle_preprocessing()
        source = None if data is None else artefact.samples(data, preprocessing)
    return InputStream(runner.inputs, source, seed, limit, artefact.image_size, artefact.sizes)


def _pictures_for_8_bits(artefact: Artefact, preprocessing: Asked | None) -> ImageSource | None:
    """What the ranges of such a file were found on, else photos; None where it takes neither."""
    precision = artefact.precision.upper()
    calibration = artefact.provenance.calibration if artefact.provenance else {}
    recorded = str(calibration.get("source", ""))
    # A folder that a file names is opened only when the person names it too.
    for source in (*(one for one in BUILTIN if one == recorded and one != "photos"), "photos"):
        try:
            found = artefact.samples(source, preprocessing)
            next(InputStream(artefact.inputs, found, 0, 1, None).batches(1))
        except (BadInput, MissingCapability) as error:
            reason = error.message
            continue
        _log.warning(
            "%s: noise is no test of %s, whose ranges are those of pictures; compared on %s."
            " Say others with --data",
            artefact.path,
            precision,
            source,
        )
        return found
    _log.warning(
        "%s: noise is no test of %s, whose ranges are those of pictures, and there are none (%s)."
        " Give some with --data",
        artefact.path,
        precision,
        reason,
    )
    return None


def _batch_sizes(artefact: Artefact, asked: Sequence[int] | None) -> tuple[int, ...]:
    if asked is None:
        return default_batches(*artefact.batch_range, artefact.opt_batch)
    if not asked:
        raise BadInput("no batch size to compare at", "give at least one")
    hint = "choose a batch size within, or build with another profile"
    for batch in asked:
        check_batch(batch, artefact.batch_range, str(artefact.path), hint)
    return tuple(dict.fromkeys(asked))


def _check_top1_applies(path: Path, min_top1: float | None, batches: Iterable[BatchParity]) -> None:
    agreements = [o.error.top1_agreement for batch in batches for o in batch.outputs]
    if min_top1 is not None and not any(a is not None for a in agreements):
        raise BadInput(
            f"{path}: has no output [N, classes] that a bound on top-1 agreement could hold for",
            "leave that bound out",
        )
