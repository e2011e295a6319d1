"""`package`: artefacts as a folder that a server loads as it is."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from cbam_deploy.artefacts import Engine, OnnxFile, artefact_kind, open_engine, open_onnx
from cbam_deploy.data.feeds import InputStream
from cbam_deploy.errors import BadInput
from cbam_deploy.gates.operators import is_lowered
from cbam_deploy.library_errors import said_of_the_file
from cbam_deploy.numerics.sizes import free_axes, typical_sizes
from cbam_deploy.numerics.tensors import Feeds
from cbam_deploy.plugins.native_library import LIBRARY, plugin_library
from cbam_deploy.preprocessing.choice import Asked, idle_preprocessing
from cbam_deploy.provenance import file_sha256
from cbam_deploy.serving.containers import check_builds, check_loads, server_tensorrt
from cbam_deploy.serving.deepstream import CONFIG, KINDS, network_type, nvinfer_files
from cbam_deploy.serving.files import Files, write_files
from cbam_deploy.serving.package_report import Package, PackagedModel
from cbam_deploy.serving.triton_config import (
    Backend,
    Serving,
    add_warmup,
    ensemble_config,
    labels_of,
    network_config,
    preferred_batches,
    preprocessing_config,
)
from cbam_deploy.serving.triton_repository import (
    ensemble_files,
    network_files,
    preprocessing_files,
)

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

Opened = OnnxFile | Engine
BackendChoice = Literal["auto", "python"]
PICTURES_SUFFIX = "-pictures"
_PREPROCESSING_SUFFIX = "-preprocessing"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@said_of_the_file
def package(
    artefacts: str | Path | Sequence[str | Path],
    *,
    triton: str | Path | None = None,
    deepstream: str | Path | None = None,
    model_name: str | None = None,
    backend: BackendChoice = "auto",
    model_version: int = 1,
    max_batch: int | None = None,
    instances: int = 1,
    threads: int | None = None,
    device: str | None = None,
    pictures: bool = False,
    container: str | None = None,
    tensorrt: str | None = None,
    plugin: str | Path | None = None,
    data: str | None = None,
    preprocessing: Asked | None = None,
    sizes: Sequence[str] = (),
    seed: int = 0,
) -> Package:
    """Write a folder that Triton or DeepStream serves.

    Args:
        artefacts: an ONNX file, an engine, or one of each.
        triton: folder of Triton's model repository; models of other names stay in it.
        deepstream: folder for nvinfer's configuration and what it names.
        model_name: of the model, by default that of the first file. Of two files, ``-onnx`` and
            ``-engine`` are added for Triton.
        backend: ``python`` runs an ONNX file in ONNX Runtime in Triton's Python backend, where a
            server has no other; ``auto`` takes Triton's own backend for the kind of file.
        model_version: number of the version in Triton's repository.
        max_batch: largest batch; by default the engine's, or 64 for an ONNX file in Triton and 1
            in DeepStream.
        instances: copies of the model that Triton runs at once.
        threads: CPU threads of each, ONNX Runtime's choice by default.
        device: ``cpu`` or ``cuda``, Triton's choice by default.
        pictures: also write an ensemble that takes encoded pictures and prepares them.
        container: month of Triton's container, such as ``25.08``, for its TensorRT.
        tensorrt: TensorRT of the server, such as ``10.9``.
        plugin: the plugin library, where an artefact needs it; by default this machine's.
        data: SOURCE of the sample that Triton warms up with; noise by default.
        preprocessing: how pictures become inputs, by default as recorded.
        sizes: of free axes, such as ``H=640``, for the warm-up.
        seed: of the noise.

    Raises:
        BadInput: an artefact cannot be served so, or something cannot be written.
        MissingCapability: tritonclient is not installed, or a plugin library is needed and there
            is no compiler to build it.
    """
    if (triton is None) == (deepstream is None):
        raise BadInput(
            "a package is for one server",
            "give --triton FOLDER or --deepstream FOLDER, one at a time; or --check HOST:PORT",
        )
    if backend not in get_args(BackendChoice):
        raise BadInput(
            f"backend {backend!r} is unknown", f"one of {', '.join(get_args(BackendChoice))}"
        )
    paths = [artefacts] if isinstance(artefacts, str | Path) else list(artefacts)
    opened = _opened(paths, sizes, lowered=deepstream is not None)
    server = server_tensorrt(container, tensorrt)
    for artefact in opened:
        if isinstance(artefact, Engine):
            check_loads(artefact, server, "Triton" if deepstream is None else "nvinfer")
        elif artefact.provenance is not None and artefact.provenance.lowered is not None:
            check_builds(artefact, artefact.provenance.lowered, server)
    name = _checked_name(model_name or opened[0].path.stem)
    library, notes = _library(opened, None if plugin is None else Path(plugin))
    if deepstream is not None:
        given = {
            "--pictures": pictures,
            "--backend": backend != "auto",
            "--model-version": model_version != 1,
            "--instances": instances != 1,
            "--threads": threads is not None,
            "--device": device is not None,
            "--data": data is not None,
        }
        for option in filter(given.get, given):
            raise BadInput(f"{option} is for Triton", f"leave {option} out")
        return _for_deepstream(
            Path(deepstream), name, opened, preprocessing, max_batch, library, notes
        )
    if preprocessing is not None and data is None and not pictures:
        raise idle_preprocessing(or_else="add --pictures, ")
    if threads is not None and all(isinstance(one, Engine) for one in opened):
        raise BadInput("--threads is for ONNX files", "leave --threads out")
    serving = Serving(max_batch, instances, device, threads)
    writer = _TritonPackage(
        serving, model_version, data, preprocessing, pictures, seed, library, notes
    )
    for artefact in opened:
        kind = "engine" if isinstance(artefact, Engine) else "onnx"
        writer.add(artefact, f"{name}-{kind}" if len(opened) > 1 else name, backend)
    return writer.write(Path(str(triton)))


class _TritonPackage:
    """A model repository in the making; nothing is written before all of it is there."""

    def __init__(
        self,
        serving: Serving,
        version: int,
        data: str | None,
        preprocessing: Asked | None,
        pictures: bool,
        seed: int,
        library: Path | None,
        notes: Sequence[str],
    ) -> None:
        self._serving, self._version = serving, version
        self._data, self._preprocessing, self._seed = data, preprocessing, seed
        self._pictures = pictures
        self._files: Files = {}
        self._models: list[PackagedModel] = []
        self._libraries: list[str] = []
        self._host_code = False
        self._library = library
        self._notes = list(notes)

    def add(self, artefact: Opened, name: str, asked: str) -> None:
        """One artefact, and the two models that prepare its pictures where they are wanted."""
        backend = _backend(artefact, asked, self._serving.device)
        config = network_config(name, artefact, backend, self._serving)
        largest = config.max_batch_size
        preferred = preferred_batches(artefact, largest)
        sample, warm_up = self._sample(artefact, batched=largest > 0)
        if sample is not None:
            for batch in (1, *preferred):
                add_warmup(config, sample, batch, recorded=self._data is not None)
        library = self._library if _needs_library(artefact) else None
        if library is not None:
            self._libraries.append(f"{name}/{LIBRARY}")
        self._host_code |= isinstance(artefact, Engine) and _carries_code(artefact)
        labels = next(filter(None, (labels_of(artefact, one) for one in artefact.outputs)), ())
        self._files |= network_files(
            config,
            artefact,
            backend,
            self._version,
            labels=labels,
            sample=sample if self._data else None,
            library=library,
        )
        self._models.append(
            PackagedModel(name, str(artefact.path), backend, largest, preferred, warm_up)
        )
        if self._pictures:
            self._add_pictures(artefact, config, labels)

    def _add_pictures(self, artefact: Opened, network: ModelConfig, labels: Sequence[str]) -> None:
        chosen = artefact.preprocessing(self._preprocessing)
        if chosen.function is not None:
            raise BadInput(
                f"{artefact.title}: its pictures are prepared by {chosen.function}, which no server"
                " may run",
                "say the same in steps with --preprocess, or leave --pictures out",
            )
        if len(network.input) != 1:
            raise BadInput(
                f"{artefact.title}: takes {len(network.input)} inputs, of which no picture is all",
                "leave --pictures out",
            )
        name = network.name
        before = preprocessing_config(f"{name}{_PREPROCESSING_SUFFIX}", network, self._serving)
        both = ensemble_config(f"{name}{PICTURES_SUFFIX}", before, network)
        self._files |= preprocessing_files(before, chosen, self._version)
        self._files |= ensemble_files(both, self._version, labels)
        largest = network.max_batch_size
        self._models += [
            PackagedModel(before.name, "", "python", largest),
            PackagedModel(both.name, "", "ensemble", largest),
        ]

    def _sample(self, artefact: Opened, *, batched: bool) -> tuple[Feeds | None, str]:
        """One sample for the warm-up, without its batch where Triton adds that; and what it is."""
        source = artefact.samples(self._data, self._preprocessing) if self._data else None
        stream = InputStream(
            artefact.inputs, source, self._seed, 1, artefact.image_size, artefact.sizes
        )
        try:
            fed = next(stream.batches(artefact.batch_range[0]))
        except BadInput as error:
            if source is not None:
                raise
            self._notes.append(f"no warm-up: {error.message}; {error.hint}")
            return None, "none"
        sample = {name: array[0] for name, array in fed.items()} if batched else fed
        return sample, stream.label if source else "noise"

    def write(self, folder: Path) -> Package:
        """Write everything, and say how it is served."""
        options = (
            [f"plugins={';'.join(str(folder / one) for one in self._libraries)}"]
            if self._libraries
            else []
        )
        if self._host_code:  # The backend takes code inside engines under this name alone.
            options.append("version-compatible=true")
        command = ["tritonserver", f"--model-repository={folder}"]
        command += [f"--backend-config=tensorrt,{option}" for option in options]
        return _written(folder, "Triton", self._models, self._files, command, self._notes)


def _for_deepstream(
    folder: Path,
    name: str,
    opened: Sequence[Opened],
    asked: Asked | None,
    max_batch: int | None,
    library: Path | None,
    notes: Sequence[str],
) -> Package:
    """A folder with nvinfer's configuration."""
    served = opened[-1]
    notes = list(notes)
    if any(isinstance(one, Engine) and _carries_code(one) for one in opened):
        notes.append("the engine has code inside; if nvinfer refuses that, build it without")
    labels = next(filter(None, (labels_of(served, one) for one in served.outputs)), ())
    files = nvinfer_files(
        opened, served.preprocessing(asked), max_batch=max_batch, labels=labels, library=library
    )
    kind = network_type(served)
    notes.append(f"network-type={kind} ({KINDS[kind]}), by the shapes of the outputs")
    batch = int(re.findall(r"^batch-size=(\d+)$", str(files[CONFIG]), re.M)[0])
    models = [PackagedModel(name, str(served.path), "nvinfer", batch)]
    command = ["nvinfer", f"config-file-path={folder / CONFIG}"]
    return _written(folder, "DeepStream", models, files, command, notes)


def _written(
    folder: Path,
    server: str,
    models: Sequence[PackagedModel],
    files: Files,
    command: Sequence[str],
    notes: Sequence[str],
) -> Package:
    write_files(folder, files)
    places = tuple(place for place in files if not place.endswith("/"))
    return Package(
        folder=folder,
        server=server,
        models=tuple(models),
        files=places,
        bytes=sum((folder / place).stat().st_size for place in places),
        command=tuple(command),
        notes=tuple(notes),
    )


def _opened(
    artefacts: Sequence[str | Path], sizes: Sequence[str], *, lowered: bool
) -> list[Opened]:
    """The ONNX file, then the engine."""
    kinds = [artefact_kind(Path(artefact)) for artefact in artefacts]
    if not kinds or len(set(kinds)) < len(kinds):
        raise BadInput(
            f"{len(kinds)} artefacts of kind {', '.join(sorted(set(kinds))) or 'none'}",
            "give an .onnx file, an .engine file, or one of each",
        )
    opened: list[Opened] = [
        open_engine(Path(artefact))
        if kind == "engine"
        else open_onnx(Path(artefact), lowered=lowered)
        for kind, artefact in zip(kinds, artefacts, strict=True)
    ]
    free = {axis: None for one in opened for axis in free_axes(one.inputs)}
    said = typical_sizes(sizes, free, ", ".join(map(str, artefacts)))
    sized = [replace(one, sizes={**one.sizes, **said}) for one in opened]
    return sorted(sized, key=lambda one: isinstance(one, Engine))


def _backend(artefact: Opened, asked: str, device: str | None) -> Backend:
    if isinstance(artefact, Engine):
        if asked == "python":
            raise BadInput(
                f"{artefact.title}: the python backend runs ONNX files, not engines",
                "leave --backend out, or package the ONNX file",
            )
        return "tensorrt"
    if artefact.precision == "bf16" and (asked == "python" or device == "cpu"):
        raise BadInput(
            f"{artefact.title}: ONNX Runtime runs no BF16 files on CPUs",
            "package the FP32 or FP16 file, or leave --backend and --device out for a GPU",
        )
    if artefact.precision == "fp8" and asked != "python":
        raise BadInput(
            f"{artefact.title}: ONNX Runtime computes FP8 files wrongly as Triton runs them",
            "build an engine of it and package that, or give --backend python",
        )
    return "python" if asked == "python" else "onnxruntime"


def _library(opened: Sequence[Opened], given: Path | None) -> tuple[Path | None, list[str]]:
    """The plugin library that goes into the package, and what its user must know of it."""
    needing = [artefact for artefact in opened if _needs_library(artefact)]
    if not needing:
        if given is not None:
            raise BadInput(
                f"{given}: no artefact needs a plugin library beside it", "leave --plugin out"
            )
        return None, []
    notes = []
    if given is None:
        notes.append(
            f"{LIBRARY} is for {platform.machine()}; --plugin takes another, such as build-plugin"
            " --arch makes"
        )
    elif not given.is_file():
        raise BadInput(f"{given}: no such file", "make it with build-plugin")
    library = given or plugin_library()
    built_with = {
        one.manifest.plugin.sha256
        for one in needing
        if isinstance(one, Engine) and one.manifest.plugin is not None
    }
    if built_with - {file_sha256(library)}:
        notes.append(
            f"the engine was built with another {LIBRARY} than the one packaged; run --check"
            " before you trust it"
        )
    return library, notes


def _needs_library(artefact: Opened) -> bool:
    if isinstance(artefact, OnnxFile):
        return any(map(is_lowered, artefact.model.graph))
    return artefact.manifest.plugin is not None and not artefact.manifest.plugin.embedded


def _carries_code(engine: Engine) -> bool:
    """Whether a runtime must be told that code inside engines is allowed."""
    plugin = engine.manifest.plugin
    carried = plugin is not None and plugin.embedded
    return carried or bool(engine.manifest.options.get("version_compatible"))


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise BadInput(
            f"{name!r} is no name for a model",
            "say one of letters, digits, dots, dashes and underscores with --model-name",
        )
    return name
