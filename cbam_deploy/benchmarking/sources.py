"""What `bench` is asked to measure: artefacts by file, and the PyTorch model behind the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from cbam_deploy.artefacts import Artefact
from cbam_deploy.data.feeds import noise
from cbam_deploy.errors import BadInput
from cbam_deploy.numerics.feeds import check_batch
from cbam_deploy.numerics.tensors import Arrays, TensorSpec
from cbam_deploy.provenance import Provenance, file_sha256
from cbam_deploy.runtimes.base import Runner

PYTORCH = "pytorch"
SourceT = TypeVar("SourceT", bound="Source")


@dataclass(frozen=True)
class Source:
    """One thing to measure, and all that is needed to open it, in this process or another.

    Attributes:
        name: what reports call it.
        artefact: path of the file; for PyTorch, of the file whose model is rebuilt.
        runtime: as given on the command line; None to follow from the file.
        device: ``cpu``, ``cuda`` or None to follow from the file.
        threads: CPU threads, None for the runtime's own choice.
        provenance: what the file says of itself; like the next one, once it was opened.
        sizes: of free axes but the batch, by name.
    """

    name: str
    artefact: str
    runtime: str | None = None
    device: str | None = None
    threads: int | None = None
    provenance: Provenance | None = None
    sizes: dict[str, int] = field(default_factory=dict)

    def described_by(self: SourceT, artefact: Artefact) -> SourceT:
        """This source with what its file, once opened, says of itself."""
        return replace(self, provenance=artefact.provenance, sizes=artefact.sizes)

    @property
    def sha256(self) -> str | None:
        """Hash of the file; None for a PyTorch model."""
        return file_sha256(self.artefact)

    def open(self, artefact: Artefact | None = None) -> Runner:
        """A runner, not yet activated.

        Args:
            artefact: the file; None where it was opened, and so checked, before.

        Raises:
            BadInput: the file is malformed, or has no PyTorch model behind it.
            MissingCapability: this machine cannot run it.
        """
        from cbam_deploy.runtimes import open_runtime

        return open_runtime(
            artefact or self.artefact,
            runtime=self.runtime,
            device=self.device,
            threads=self.threads,
            checked=artefact is None,
        )

    def check_batches(self, runner: Runner, batches: Sequence[int]) -> None:
        """Refuse batch sizes that `runner`, whose inputs are known, does not take.

        Raises:
            BadInput: it names the source, the batch and the range.
        """
        hint = "choose other --batch sizes, or build for a wider range"
        for batch in batches:
            check_batch(batch, runner.batch_range, self.name, hint)

    def feeds(self, runner: Runner, batch: int, seed: int) -> Arrays:
        """Seeded noise for an activated `runner` of this source.

        Raises:
            BadInput: the size of an input is not known.
        """
        recorded = self.provenance.preprocessing if self.provenance else None
        image_size = recorded.image_size if recorded else None
        return noise(runner.inputs, batch, seed=seed, image_size=image_size, sizes=self.sizes)


@dataclass(frozen=True)
class PyTorchSource(Source):
    """The PyTorch model that an artefact was made from, as named or rebuilt from its provenance.

    Attributes:
        inputs: specs of what it takes, in FP32 with a free batch.
        outputs: names of what it returns.
        reference: MODEL that the person named; None for the artefact's own, if that is of the zoo.
        weights: checkpoint that the person named.
    """

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[str, ...] = ()
    reference: str | None = None
    weights: str | None = None

    @property
    def sha256(self) -> None:
        """No file, no hash."""
        return

    def like(self, runner: Runner, feeds: Arrays) -> PyTorchSource:
        """This source with the inputs and outputs of its artefact's `runner` and `feeds`."""
        inputs = tuple(
            TensorSpec(
                spec.name,
                (_batch(spec), *feeds[spec.name].shape[1:]),
                _full_width(spec.dtype),
            )
            for spec in runner.inputs
        )
        return replace(self, inputs=inputs, outputs=tuple(spec.name for spec in runner.outputs))

    def open(self, artefact: Artefact | None = None) -> Runner:  # noqa: ARG002
        """A runner of the rebuilt model, not yet activated; raises as for a file."""
        from cbam_deploy.models.recorded import reference_identity
        from cbam_deploy.runtimes.pytorch import PyTorchRunner

        return PyTorchRunner(
            reference_identity(self.artefact, self.provenance, self.reference, self.weights),
            self.inputs,
            self.device or "cpu",
            output_names=self.outputs,
            threads=self.threads,
        )


def _batch(spec: TensorSpec) -> int | str:
    """``batch`` for a free first axis, by whatever name, else its size."""
    return "batch" if isinstance(spec.shape[0], str) else spec.shape[0]


def _full_width(dtype: str) -> str:
    return "float32" if dtype.startswith("float") else dtype


def list_sources(
    artefacts: Sequence[str | Path],
    *,
    pytorch: bool,
    reference: str | None = None,
    weights: str | Path | None = None,
    relative_to: str | Path | None,
    runtimes: Sequence[str],
    device: str | None,
    threads: int | None,
) -> tuple[list[Source], str | None]:
    """The sources to measure, and the name of the baseline among them.

    Files are named by their file name, or by their path as given where two share one; each is there
    once for each of `runtimes` that runs it. A baseline that is not among `artefacts` comes first.
    ``"pytorch"`` as baseline means the PyTorch model.

    Raises:
        BadInput: nothing to measure, a file given twice or missing, or no such baseline.
    """
    if not artefacts:
        raise BadInput("no artefact to measure", "name at least one .onnx or .engine file")
    paths = [Path(artefact) for artefact in artefacts]
    baseline = None if relative_to in (None, PYTORCH) else Path(str(relative_to))
    if baseline is not None and not any(_same_file(baseline, path) for path in paths):
        paths.insert(0, baseline)
    _check_files(paths)
    names = _names(paths)
    sources = [
        Source(name, str(path), runtime, device, threads)
        for name, path in zip(names, paths, strict=True)
        for runtime in _running(path, runtimes)
    ]
    if pytorch:
        checkpoint = None if weights is None else str(weights)
        sources.append(
            PyTorchSource(
                PYTORCH,
                str(Path(artefacts[0])),
                device=device,
                threads=threads,
                reference=reference,
                weights=checkpoint,
            )
        )
    if relative_to is None:
        return sources, None
    if baseline is None and not pytorch:
        raise BadInput("the PyTorch model is the baseline but is not measured", "add --pytorch")
    if len(sources) == 1:
        raise BadInput(
            f"{relative_to}: is the baseline and the only thing to measure",
            "name the artefacts to compare with it",
        )
    if baseline is None:
        return sources, PYTORCH
    return sources, next(
        name for name, path in zip(names, paths, strict=True) if _same_file(baseline, path)
    )


def _running(path: Path, runtimes: Sequence[str]) -> tuple[str | None, ...]:
    """Those of `runtimes` that run such a file; the first, to be refused, where none does."""
    from cbam_deploy.runtimes import RUNTIMES

    if len(set(runtimes)) != len(runtimes):
        raise BadInput(f"runtimes {', '.join(runtimes)}: one is given twice", "name each once")
    known = {row.name for row in RUNTIMES}
    fitting = {row.name for row in RUNTIMES if row.suffix == path.suffix}
    return tuple(name for name in runtimes if name in fitting or name not in known) or (
        runtimes[0] if runtimes else None,
    )


def _check_files(paths: Sequence[Path]) -> None:
    for index, path in enumerate(paths):
        if not path.is_file():
            what = "is a directory" if path.is_dir() else "no such file"
            raise BadInput(f"{path}: {what}", "check the path")
        if any(_same_file(path, earlier) for earlier in paths[:index]):
            raise BadInput(f"{path}: given twice", "name each artefact once")


def _same_file(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _names(paths: Sequence[Path]) -> list[str]:
    names = [path.name for path in paths]
    return [
        str(path) if names.count(name) > 1 else name
        for name, path in zip(names, paths, strict=True)
    ]
