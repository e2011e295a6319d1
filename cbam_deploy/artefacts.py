"""An artefact, opened once: what it is, where it comes from, what it takes, in which precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from cbam_deploy.errors import BadInput
from cbam_deploy.numerics.sizes import free_axes, typical_sizes
from cbam_deploy.numerics.tensors import TensorSpec, batch_range
from cbam_deploy.preprocessing import Preprocessing
from cbam_deploy.preprocessing.choice import Asked, PictureInput, choose
from cbam_deploy.provenance import Provenance

if TYPE_CHECKING:
    import onnx_ir as ir

    from cbam_deploy.data import ImageSource
    from cbam_deploy.data.open_source import Split
    from cbam_deploy.engines.manifest import Manifest

ArtefactT = TypeVar("ArtefactT", bound="Artefact")


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """A file that was read and checked; whoever has it need not read the file again.

    Attributes:
        path: as given.
        provenance: None for a file of another program.
        precision: one of `provenance.PRECISIONS`: as recorded, else as the graph has it.
        inputs: specs of the network inputs.
        outputs: specs of the network outputs.
        batch_range: smallest and largest batch, None for no upper end.
        opt_batch: the batch an engine is fastest at; None for an ONNX file.
        sizes: of free axes but the batch, by name: typical ones, or those an engine is fastest at.
        called: what messages call it where its path means nothing to the person.
    """

    path: Path
    provenance: Provenance | None
    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch_range: tuple[int, int | None]
    opt_batch: int | None = None
    sizes: dict[str, int]
    called: str | None = None

    @property
    def title(self) -> str:
        """What messages call it."""
        return self.called or str(self.path)

    def sized(self: ArtefactT, texts: Sequence[str]) -> ArtefactT:
        """The same with the sizes that ``--size`` says; raises `BadInput` like `parse_sizes`."""
        said = typical_sizes(texts, free_axes(self.inputs), self.title)
        return replace(self, sizes={**self.sizes, **said})

    @property
    def recorded_preprocessing(self) -> Preprocessing | None:
        """How its pictures are prepared, as far as the file says so."""
        return self.provenance.preprocessing if self.provenance else None

    def samples(
        self, source: str, asked: Asked | None = None, *, split: Split = "all"
    ) -> ImageSource:
        """SOURCE, prepared as this network takes it; tensors are taken as they are.

        Raises:
            BadInput: as `preprocessing` and `data.open_source`.
            MissingCapability: Pillow or scikit-learn is not installed.
        """
        from cbam_deploy.data import open_source

        return open_source(source, self.preparation(source, asked), split=split)

    def preparation(self, source: str, asked: Asked | None = None) -> Preprocessing:
        """How the pictures of SOURCE are prepared, as `preprocessing` says; of tensors anything."""
        from cbam_deploy.data.tensors import are_tensors

        return Preprocessing() if are_tensors(source) else self.preprocessing(asked)

    @property
    def image_size(self) -> int | None:
        """Side of its pictures in pixels, as far as the file says so."""
        recorded = self.recorded_preprocessing
        return recorded.image_size if recorded else None

    def preprocessing(self, asked: Asked | None = None) -> Preprocessing:
        """How its pictures are prepared: as asked, else as recorded, else by ImageNet's protocol.

        Raises:
            BadInput: as `preprocessing.choice.choose`.
        """
        first = self.inputs[0]
        of = PictureInput(self.title, first.name, first.shape, self.sizes)
        return choose(asked, self.recorded_preprocessing, of)


@dataclass(frozen=True, kw_only=True)
class OnnxFile(Artefact):
    """An ONNX file.

    Attributes:
        model: its graph, shared by all who have the artefact: change a clone.
    """

    model: ir.Model = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Engine(Artefact):
    """A TensorRT engine.

    Attributes:
        manifest: verified: it describes the engine's bytes.
    """

    manifest: Manifest = field(repr=False)


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


def open_artefact(artefact: str | Path) -> OnnxFile | Engine:
    """Open an ``.onnx`` file, or an ``.engine`` file by its manifest.

    Raises:
        BadInput: the file is missing, malformed, altered since it was built, of another kind, or
            has weights that are no numbers.
    """
    path = Path(artefact)
    return open_engine(path) if artefact_kind(path) == "engine" else open_onnx(path)


def open_artefacts(
    artefacts: Sequence[str | Path], sizes: Sequence[str] = ()
) -> list[OnnxFile | Engine]:
    """Open several, with the sizes that ``--size`` says in each that has such an axis.

    Raises:
        BadInput: as `open_artefact` and `parse_sizes`; an axis must be free in one of them.
    """
    opened = [open_artefact(artefact) for artefact in artefacts]
    free = {axis: None for one in opened for axis in free_axes(one.inputs)}
    said = typical_sizes(sizes, free, ", ".join(map(str, artefacts)))
    return [replace(one, sizes={**one.sizes, **said}) for one in opened]


def open_onnx(path: Path, *, to_run: bool = True, lowered: bool = False) -> OnnxFile:
    """Open an ONNX file of any name.

    Args:
        path: the file.
        to_run: refuse weights that are no numbers.
        lowered: take gates too that TensorRT's builder alone runs.

    Raises:
        BadInput: the file is missing, malformed or refused.
    """
    from cbam_deploy.graphs.onnx_file import read_model, read_provenance
    from cbam_deploy.graphs.signature import graph_precision, specs_of
    from cbam_deploy.graphs.weights import check_weights

    model = read_model(path, lowered=lowered)
    if to_run:
        check_weights(model, path)
    provenance = read_provenance(model)
    inputs = specs_of(model.graph.inputs)
    return OnnxFile(
        path=path,
        provenance=provenance,
        precision=provenance.precision if provenance else graph_precision(model),
        inputs=inputs,
        outputs=specs_of(model.graph.outputs),
        batch_range=batch_range(inputs),
        sizes=known_sizes(inputs, provenance),
        model=model,
    )


def known_sizes(inputs: Sequence[TensorSpec], provenance: Provenance | None) -> dict[str, int]:
    """Typical sizes of free axes but the batch: as recorded, and as large as its pictures are."""
    if provenance is None:
        return {}
    pictures, sizes = provenance.preprocessing, dict(provenance.sizes)
    if pictures is None or pictures.function is not None or not inputs:
        return sizes
    of_pictures = zip(inputs[0].shape[1:], pictures.shape, strict=False)
    if len(inputs[0].shape) == 4:
        sizes = {axis: size for axis, size in of_pictures if isinstance(axis, str)} | sizes
    return sizes


def open_engine(path: Path) -> Engine:
    """Open an engine of any name by its manifest.

    Raises:
        BadInput: engine or manifest are missing, malformed or altered since they were built.
    """
    from cbam_deploy.engines.manifest import read_manifest

    manifest = read_manifest(path)
    return Engine(
        path=path,
        provenance=manifest.provenance,
        precision=manifest.precision,
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        batch_range=manifest.batch_range,
        opt_batch=next(iter(manifest.profile.values())).opt[0],
        sizes=manifest.opt_sizes,
        manifest=manifest,
    )
