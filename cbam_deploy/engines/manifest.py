"""The manifest beside an engine: what it was built from, by what, for what.

``model.engine`` has ``model.engine.json`` beside it. An engine says nothing about itself that can
be read without a GPU, so everything a person or a later command wants to know stands here. Hashes
of the engine and of the manifest's own content show accidental and careless changes; they are no
signature, and do not protect against someone who recomputes them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PureWindowsPath
from typing import Any

from cbam_deploy.command_files import check_regular
from cbam_deploy.engines.backend import TENSORRT, TITLES, installed_version
from cbam_deploy.errors import BadInput, MissingCapability, installation_of
from cbam_deploy.json_data import parse, read
from cbam_deploy.numerics.tensors import TensorSpec
from cbam_deploy.provenance import PRECISIONS, Provenance, file_sha256

SCHEMA_VERSION = 1
# What networks take and give, as PyTorch and NumPy call it.
DTYPES = (
    *("float16", "bfloat16", "float32", "float64", "bool"),
    *("int8", "uint8", "int16", "int32", "int64"),
)
REBUILD = "build the engine again with `cbam-deploy build-engine`"


@dataclass(frozen=True)
class ShapeRange:
    """Smallest, most frequent and largest shape of one input."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True)
class PluginRecord:
    """The plugin library that an engine's gates need.

    Attributes:
        sha256: hash of the library that it was built with.
        embedded: whether the engine carries it; else it is loaded before the engine.
    """

    sha256: str
    embedded: bool


@dataclass(frozen=True)
class Manifest:
    """Everything known about one engine.

    Attributes:
        engine_sha256: hash of the engine file.
        engine_bytes: its size.
        onnx: name of the ONNX file it was built from.
        onnx_sha256: hash of that file.
        runtime: ``tensorrt`` or ``tensorrt-rtx``.
        runtime_version: version that built it; the same version must run it.
        targets: compute capabilities it was built for, such as ``sm_89``; empty for
            TensorRT-RTX's portable default.
        inputs: the network inputs as the ONNX file has them.
        outputs: the network outputs, likewise.
        profile: shapes the engine accepts, by input name.
        precision: one of `provenance.PRECISIONS`.
        gates: how each gate node of the ONNX file was lowered: ``native`` (from its function body)
            or ``plugin`` (kernels of ours).
        options: builder options that were given.
        build_seconds: time the builder took.
        command: the command line that builds this engine again.
        versions: versions of the packages that took part.
        provenance: the ONNX file's history, where it has one.
        plugin: the library behind gates lowered to it; None where there are none.
    """

    engine_sha256: str
    engine_bytes: int
    onnx: str
    onnx_sha256: str
    runtime: str
    runtime_version: str
    targets: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profile: dict[str, ShapeRange]
    precision: str
    gates: dict[str, str]
    options: dict[str, Any]
    build_seconds: float
    command: str
    versions: dict[str, str] = field(default_factory=dict)
    provenance: Provenance | None = None
    plugin: PluginRecord | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready data, with the digest of its own content; `from_json` reads it back."""
        provenance = self.provenance.to_json() if self.provenance else None
        content = {**asdict(self), "schema_version": SCHEMA_VERSION, "provenance": provenance}
        content = json.loads(json.dumps(content))
        return {**content, "digest": content_digest(content)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Manifest:
        """Read what `to_json` wrote, without checking the digest.

        Raises:
            ValueError: a field is missing, unknown, of another type or without meaning.
            BadInput: the provenance is malformed.
        """
        content = {k: v for k, v in data.items() if k not in ("digest", "schema_version")}
        provenance = content.pop("provenance", None)
        manifest = read(cls, content)
        _check_values(manifest)
        if provenance is None:
            return manifest
        return replace(manifest, provenance=Provenance.from_json(provenance))

    @property
    def batch_range(self) -> tuple[int, int]:
        """Smallest and largest batch, which every input has as its first dimension."""
        shapes = next(iter(self.profile.values()))
        return shapes.min[0], shapes.max[0]

    @property
    def opt_sizes(self) -> dict[str, int]:
        """The size that the engine is fastest at of each free axis but the batch, by its name."""
        return {
            name: size
            for spec in self.inputs
            for name, size in zip(spec.shape[1:], self.profile[spec.name].opt[1:], strict=True)
            if isinstance(name, str)
        }


def manifest_path(engine: str | Path) -> Path:
    """Where the manifest of `engine` lies: ``model.engine.json`` beside ``model.engine``."""
    engine = Path(engine)
    return engine.with_name(engine.name + ".json")


def dumps(manifest: Manifest) -> str:
    """The manifest file's text."""
    return json.dumps(manifest.to_json(), indent=2) + "\n"


def read_manifest(engine: str | Path) -> Manifest:
    """The manifest beside the file `engine`, which is the one that it describes.

    Raises:
        BadInput: the engine or its manifest is missing or unreadable, the manifest is malformed
            or was altered, or the engine's bytes are not those it names.
    """
    engine, path = Path(engine), manifest_path(engine)
    check_regular(engine)
    check_regular(path)
    if not engine.is_file():
        raise BadInput(f"{engine}: no such engine file", "check the path")
    try:
        data = parse(path.read_bytes())
    except FileNotFoundError as error:
        raise BadInput(
            f"{engine}: its manifest {path.name} is missing", f"keep the two together, or {REBUILD}"
        ) from error
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: not a readable manifest ({error})", REBUILD) from error
    manifest = _checked(data, path)
    if not _is_intact(engine, manifest):
        raise BadInput(f"{engine}: its bytes are not those that {path.name} describes", REBUILD)
    return manifest


def check_runtime(manifest: Manifest, engine: str | Path) -> None:
    """Check that the TensorRT installed here can load what `manifest` describes.

    Raises:
        MissingCapability: that TensorRT is not installed.
        BadInput: it has another version; engines run only on the version that built them, except
            version-compatible ones, which run on later versions of the same major.
    """
    title, here = TITLES[manifest.runtime], installed_version(manifest.runtime)
    if here is None:
        extra = "tensorrt" if manifest.runtime == TENSORRT else "rtx"
        raise MissingCapability(
            f"{engine}: running it needs {title} {manifest.runtime_version}",
            installation_of(extra),
        )
    built, now = _numbers(manifest.runtime_version), _numbers(here)
    flexible = manifest.options.get("version_compatible") and built[:1] == now[:1] and now > built
    if built == now or flexible:
        return
    raise BadInput(
        f"{engine}: built by {title} {manifest.runtime_version}, but {here} is installed here",
        f"install that version, or {REBUILD}",
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _checked(data: Any, path: Path) -> Manifest:
    if not isinstance(data, dict) or data.get("schema_version") != SCHEMA_VERSION:
        raise BadInput(f"{path}: not a manifest of schema {SCHEMA_VERSION}", REBUILD)
    content = {key: value for key, value in data.items() if key != "digest"}
    try:
        if data.get("digest") != content_digest(content):
            raise BadInput(f"{path}: the manifest was altered after the build", REBUILD)
    except RecursionError as error:
        raise BadInput(f"{path}: the manifest is nested too deeply", REBUILD) from error
    try:
        return Manifest.from_json(data)
    except (ValueError, BadInput) as error:
        raise BadInput(f"{path}: the manifest is malformed ({error})", REBUILD) from error


def _check_values(manifest: Manifest) -> None:
    """Raise ValueError unless everything that is used stands for something."""
    if manifest.runtime not in TITLES:
        raise ValueError(f"runtime is none of {', '.join(TITLES)}")
    if manifest.precision not in PRECISIONS:
        raise ValueError(f"precision is none of {', '.join(PRECISIONS)}")
    if manifest.onnx in ("", "..") or PureWindowsPath(manifest.onnx).name != manifest.onnx:
        raise ValueError("onnx is no name of a file beside the engine")
    for spec in (*manifest.inputs, *manifest.outputs):
        if spec.dtype not in DTYPES:
            raise ValueError(f"dtype of {spec.name} is none of {', '.join(DTYPES)}")
    if not manifest.inputs or manifest.profile.keys() != {spec.name for spec in manifest.inputs}:
        raise ValueError("profile does not name the inputs")
    if not manifest.inputs[0].shape:
        raise ValueError(f"input {manifest.inputs[0].name} has no batch")
    for spec in manifest.inputs:
        ends = manifest.profile[spec.name]
        if not len(spec.shape) == len(ends.min) == len(ends.opt) == len(ends.max):
            raise ValueError(f"profile of {spec.name} has another number of axes")
        axes = zip(ends.min, ends.opt, ends.max, strict=True)
        if not all(1 <= low <= middle <= high for low, middle, high in axes):
            raise ValueError(f"profile of {spec.name} is no range of sizes")


def content_digest(content: dict[str, Any]) -> str:
    """SHA-256, in hexadecimal, of a manifest's `content` without its digest, however laid out."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _is_intact(engine: Path, manifest: Manifest) -> bool:
    same_size = engine.stat().st_size == manifest.engine_bytes
    return same_size and file_sha256(engine) == manifest.engine_sha256
