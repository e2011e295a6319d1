"""What an artefact says of itself: where it comes from, in which precision, for which batches."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cbam_deploy.errors import BadInput
from cbam_deploy.provenance import Provenance

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Origin:
    """Read from the file itself, before anything runs.

    Attributes:
        provenance: None for a file of another program.
        precision: ``fp32``, ``fp16`` or ``int8``.
        batch_range: smallest and largest batch, None for no upper end.
        opt_batch: the batch an engine is fastest at; None for an ONNX file.
        sizes: of free axes but the batch, by name: typical ones, or those an engine is fastest at.
    """

    provenance: Provenance | None
    precision: str
    batch_range: tuple[int, int | None]
    opt_batch: int | None = None
    sizes: dict[str, int] = field(default_factory=dict)


def artefact_kind(artefact: Path) -> Literal["onnx", "engine"]:
    """Which kind of artefact a file is, by its suffix.

    Raises:
        BadInput: there is no such file, or it is of another kind.
    """
    if not artefact.exists():
        raise BadInput(f"{artefact}: no such file", "check the path")
    if artefact.suffix == ".onnx":
        return "onnx"
    if artefact.suffix == ".engine":
        return "engine"
    raise BadInput(
        f"{artefact}: is neither an .onnx nor an .engine file",
        "give an artefact of export or build-engine",
    )


def read_origin(artefact: Path) -> Origin:
    """The origin of an ``.onnx`` file, or of an ``.engine`` file from its verified manifest.

    Raises:
        BadInput: the file is missing, malformed, altered since it was built, of another kind, or
            has weights that are no numbers.
    """
    if artefact_kind(artefact) == "engine":
        from cbam_deploy.engines.manifest import read_manifest

        manifest = read_manifest(artefact)
        shapes = next(iter(manifest.profile.values()))
        return Origin(
            manifest.provenance,
            manifest.precision,
            manifest.batch_range,
            shapes.opt[0],
            manifest.opt_sizes,
        )
    from cbam_deploy.graphs.onnx_file import read_model, read_provenance
    from cbam_deploy.graphs.weights import check_weights

    model = read_model(artefact)
    check_weights(model, artefact)
    provenance = read_provenance(model)
    precision = provenance.precision if provenance else graph_precision(model)
    sizes = provenance.sizes if provenance else {}
    return Origin(provenance, precision, _graph_batch_range(model), sizes=sizes)


def graph_precision(model: ir.Model) -> str:
    """The precision a graph computes in, judged by its nodes and weights.

    ``int8`` if anything is quantized, else ``fp16`` if any weight is, else ``fp32``.
    """
    import onnx_ir as ir

    if any(node.op_type == "QuantizeLinear" for node in model.graph):
        return "int8"
    if any(value.dtype == ir.DataType.FLOAT16 for value in model.graph.initializers.values()):
        return "fp16"
    return "fp32"


def _graph_batch_range(model: ir.Model) -> tuple[int, int | None]:
    """The fixed first axis of the first input, if it is fixed."""
    for value in model.graph.inputs[:1]:
        if value.shape is not None and len(value.shape) and isinstance(value.shape[0], int):
            return value.shape[0], value.shape[0]
    return 1, None
