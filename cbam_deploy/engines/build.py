"""From an ONNX file to a TensorRT engine and its manifest.

TensorRT-RTX builds on any x86-64 machine, also one without a GPU; TensorRT builds for, and on, the
GPU it finds. Both are driven through Polygraphy. Networks are strongly typed: the ONNX file decides
every type, and TF32 is off, so that FP32 means FP32.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, ClassVar

from cbam_deploy.command_files import check_apart, check_regular
from cbam_deploy.engines import monitor
from cbam_deploy.engines.backend import (
    TENSORRT,
    TENSORRT_RTX,
    Backend,
    BuilderLog,
    captured_log,
    choose_runtime,
    load_backend,
    load_plugins,
)
from cbam_deploy.engines.manifest import (
    Manifest,
    PluginRecord,
    ShapeRange,
    dumps,
    manifest_path,
)
from cbam_deploy.engines.options import (
    OLDEST_CAPABILITY,
    BuildOptions,
    check_options,
    check_precision,
    command_line,
    compute_capabilities,
)
from cbam_deploy.engines.parser_input import ParserInput, parser_input
from cbam_deploy.engines.source import OnnxSource, batch_profile, read_source
from cbam_deploy.errors import BadInput
from cbam_deploy.library_errors import said_of_the_file
from cbam_deploy.machine import gpus
from cbam_deploy.outputs import atomic_output, check_place, write_errors
from cbam_deploy.progress import progress
from cbam_deploy.provenance import file_sha256, package_versions
from cbam_deploy.report.content import KeyFigure, Section, Table
from cbam_deploy.report.result import Result
from cbam_deploy.report.units import duration, size


@dataclass(frozen=True)
class BuildResult(Result):
    """A finished build.

    Attributes:
        path: the engine.
        bytes: its size.
        sha256: its hash.
        seconds: wall-clock time of the whole call.
        runtime: ``tensorrt`` or ``tensorrt-rtx``.
        version: version of that runtime.
        targets: compute capabilities built for; empty for TensorRT-RTX's portable default.
        profile: shapes the engine accepts, by input name.
        precision: one of `provenance.PRECISIONS`.
        gates: how each gate node was lowered.
        manifest_path: the manifest beside the engine.
    """

    title: ClassVar[str] = "TensorRT engine"
    schema: ClassVar[str] = "cbam_deploy.build"

    path: Path
    bytes: int
    sha256: str
    seconds: float
    runtime: str
    version: str
    targets: tuple[str, ...]
    profile: dict[str, ShapeRange]
    precision: str
    gates: dict[str, str]
    manifest_path: Path

    def sections(self) -> tuple[Section, ...]:
        """How large it is, how long it took, for which GPUs and shapes."""
        ways = sorted(set(self.gates.values()))
        lowered = ", ".join(f"{list(self.gates.values()).count(way)} {way}" for way in ways)
        facts = (
            ("engine", f"{self.path} ({size(self.bytes)})"),
            ("manifest", str(self.manifest_path)),
            ("sha256", self.sha256),
            ("runtime", f"{self.runtime} {self.version}"),
            ("targets", ", ".join(self.targets) or portable(self.precision)),
            *(
                (f"input {name}", " / ".join("x".join(map(str, end)) for end in _ends(shapes)))
                for name, shapes in self.profile.items()
            ),
            ("gates", lowered or "none"),
            ("time", duration(self.seconds)),
        )
        return (
            Section(
                title=self.title,
                key_figures=(
                    KeyFigure("Size", size(self.bytes)),
                    KeyFigure("Build time", duration(self.seconds)),
                ),
                tables=(Table.facts(facts),),
            ),
        )


def portable(precision: str) -> str:
    """The GPUs that an engine of TensorRT-RTX without targets is for."""
    major, minor = max((8, 0), OLDEST_CAPABILITY.get(precision, (8, 0)))
    return f"portable: compute capability {major}.{minor} and later"


def _ends(shapes: ShapeRange) -> tuple[tuple[int, ...], ...]:
    return shapes.min, shapes.opt, shapes.max


@said_of_the_file
def build_engine(
    onnx_path: str | Path,
    output: str | Path,
    *,
    runtime: str = "auto",
    min_batch: int | None = None,
    opt_batch: int | None = None,
    max_batch: int | None = None,
    sizes: Sequence[str] = (),
    targets: Sequence[str] = (),
    gate: str = "auto",
    embed_plugin: bool = True,
    timing_cache: str | Path | None = None,
    optimization_level: int | None = None,
    workspace_mib: int | None = None,
    strip_weights: bool = False,
    version_compatible: bool = False,
) -> BuildResult:
    """Build a TensorRT engine from an ONNX file, and write its manifest beside it.

    Args:
        onnx_path: the ONNX file; external data is read from its folder.
        output: the engine to write; other commands know engines by the suffix ``.engine``.
        runtime: ``auto`` (TensorRT where it is installed and a GPU is present, else TensorRT-RTX),
            ``tensorrt`` or ``tensorrt-rtx``.
        min_batch: smallest batch of the optimization profile, 1 by default.
        opt_batch: batch to optimize for, 8 by default.
        max_batch: largest batch, 64 by default. A file with a fixed batch keeps that batch.
        sizes: range of each free axis but the batch, such as ``H=320,640,1280``: smallest, the one
            to optimize for, and largest.
        targets: compute capabilities to build for, such as ``sm_89`` (TensorRT-RTX only). None
            given makes its portable engine, for GPUs of compute capability 8.0 and later.
        gate: how gate nodes are lowered: from their function body (``native``), by the plugin
            (``plugin``, TensorRT only), or by the plugin where there is one (``auto``).
        embed_plugin: put the plugin library into the engine, which then runs where nothing of this
            package is installed (TensorRT only).
        timing_cache: file of tactic timings to read, when it exists, and update (TensorRT only).
        optimization_level: 0 (quick build) to 5 (thorough search), 3 by default (TensorRT only).
        workspace_mib: limit of the scratch memory that layers may use, in MiB.
        strip_weights: leave refittable weights out of the engine; needs a GPU.
        version_compatible: make the engine run on later versions too (TensorRT only).

    Raises:
        BadInput: the file, the output or an option cannot work; nothing is written.
        MissingCapability: the runtime is not installed, or needs a GPU for what is asked.
        KeyboardInterrupt: Ctrl-C; nothing is written.
    """
    started = time.perf_counter()
    output = Path(output)
    beside = manifest_path(output)
    for file in (output, beside):
        check_place(file, artefact=True)
        check_apart(file, onnx_path=onnx_path)
    options = BuildOptions(
        min_batch=min_batch,
        opt_batch=opt_batch,
        max_batch=max_batch,
        sizes=tuple(sizes),
        targets=tuple(dict.fromkeys(targets)),
        gate=gate,
        embed_plugin=embed_plugin,
        timing_cache=Path(timing_cache) if timing_cache is not None else None,
        optimization_level=optimization_level,
        workspace_mib=workspace_mib,
        strip_weights=strip_weights,
        version_compatible=version_compatible,
    )
    chosen = choose_runtime(runtime)
    check_options(options, chosen)
    with atomic_output(output) as engine_file, atomic_output(beside) as manifest_file:
        with ThreadPoolExecutor(max_workers=1) as pool:
            # Loading TensorRT takes longer than checking the file, so both go on at once.
            loading = pool.submit(load_backend, chosen)
            source = read_source(onnx_path)
            onnx_sha256 = pool.submit(file_sha256, source.path)
            profile = batch_profile(source, options)
            backend = loading.result()
            capabilities = compute_capabilities(options.targets, backend)
            check_precision(str(source.path), source.precision, options.targets, chosen)
            batch = next(iter(profile.values())).opt[0] if profile else 1
            with parser_input(source, chosen, gate=gate, batch=batch) as given:
                build_started = time.perf_counter()
                plan = _serialized_engine(source, given, backend, options, profile, capabilities)
                build_seconds = time.perf_counter() - build_started
            engine_sha256 = pool.submit(hashlib.sha256, plan)
            with write_errors(output):
                engine_file.write_bytes(plan)
        manifest = Manifest(
            engine_sha256=engine_sha256.result().hexdigest(),
            engine_bytes=len(plan),
            onnx=source.path.name,
            onnx_sha256=onnx_sha256.result(),
            runtime=chosen,
            runtime_version=backend.version,
            targets=_targets(options, chosen),
            inputs=source.inputs,
            outputs=source.outputs,
            profile=profile,
            precision=source.precision,
            gates=given.gates,
            options=options.given(),
            build_seconds=round(build_seconds, 3),
            command=command_line(source.path, output, chosen, options),
            versions=package_versions("cbam-deploy", "polygraphy"),
            provenance=source.provenance,
            plugin=(
                PluginRecord(file_sha256(given.library), embed_plugin) if given.library else None
            ),
        )
        manifest_file.write_text(dumps(manifest), encoding="utf-8")
    return BuildResult(
        path=output,
        bytes=manifest.engine_bytes,
        sha256=manifest.engine_sha256,
        seconds=time.perf_counter() - started,
        runtime=chosen,
        version=backend.version,
        targets=manifest.targets,
        profile=profile,
        precision=source.precision,
        gates=manifest.gates,
        manifest_path=beside,
    )


def _targets(options: BuildOptions, runtime: str) -> tuple[str, ...]:
    """What the engine is built for: TensorRT knows only the GPU it builds on."""
    return (gpus()[0].target,) if runtime == TENSORRT else options.targets


def _serialized_engine(
    source: OnnxSource,
    given: ParserInput,
    backend: Backend,
    options: BuildOptions,
    profile: dict[str, ShapeRange],
    capabilities: list[tuple[int, int]],
) -> memoryview:
    """Parse the file and run the builder, with progress on the terminal and Ctrl-C obeyed."""
    from polygraphy.exception import PolygraphyException

    with (
        captured_log() as log,
        progress() as bar,
        _mapped(given.path) as model,
        monitor.interrupt_flag() as interrupted,
    ):
        step = "parse"
        if given.library is not None:
            load_plugins(backend, given.library)
        try:
            # Parsing from memory is quicker, but only with a path are other files found.
            if given.by_path:
                load = backend.polygraphy.network_from_onnx_path
                builder, network, parser = load(str(given.path), strongly_typed=True)
            else:
                load = backend.polygraphy.network_from_onnx_bytes
                builder, network, parser = load(model, strongly_typed=True)
            step = "build"
            watch = monitor.progress_monitor(backend.trt, bar, interrupted)
            config = _config(backend, options, profile, capabilities, watch)(builder, network)
            config.clear_flag(backend.trt.BuilderFlag.TF32)
            if given.library is not None and options.embed_plugin:
                config.plugins_to_serialize = [str(given.library)]
            if options.timing_cache is not None:
                load_timing_cache(config, options.timing_cache, log)
            plan = backend.polygraphy.engine_bytes_from_network((builder, network), config=config)
        except PolygraphyException as error:
            raise _failure(source, backend, options, step, log) from error
        if options.timing_cache is not None:
            save_timing_cache(config, options.timing_cache)
        del parser  # it owns the weights that the network refers to: alive until here
    return memoryview(plan)


@contextmanager
def _mapped(path: Path) -> Iterator[mmap]:
    """The bytes of a file, without copying them."""
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        yield data


def _config(
    backend: Backend,
    options: BuildOptions,
    profile: dict[str, ShapeRange],
    capabilities: list[tuple[int, int]],
    watch: Any,
) -> Any:
    """Polygraphy's recipe for the builder configuration, a function of builder and network."""
    shapes = backend.polygraphy.Profile()
    for name, ends in profile.items():
        shapes.add(name, min=ends.min, opt=ends.opt, max=ends.max)
    pool = backend.trt.MemoryPoolType.WORKSPACE
    limits = {pool: options.workspace_mib << 20} if options.workspace_mib else None
    common = {
        "profiles": [shapes],
        "memory_pool_limits": limits,
        "strip_plan": options.strip_weights,
        "progress_monitor": watch,
    }
    if backend.runtime == TENSORRT_RTX:
        from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

        return CreateConfigRTX(compute_capabilities=capabilities or None, **common)
    return backend.polygraphy.CreateConfig(
        builder_optimization_level=options.optimization_level,
        version_compatible=options.version_compatible,
        **common,
    )


def _failure(
    source: OnnxSource, backend: Backend, options: BuildOptions, step: str, log: BuilderLog
) -> BadInput:
    """What Polygraphy's exception leaves unsaid: TensorRT's own first complaint, and a way out."""
    cause = log.first_error()
    hint = "change the model at that place and export it again"
    if "SM75" in cause:
        hint = "leave out --target sm_75, or convert the model to fp16"
    elif options.workspace_mib and ("workspace" in cause or "OutOfMemory" in cause):
        hint = f"give more than --workspace {options.workspace_mib}, or leave it out"
    return BadInput(f"{source.path}: {backend.title} cannot {step} it: {cause}", hint)


def load_timing_cache(config: Any, path: Path, log: BuilderLog) -> None:
    """Give `config` the timings in `path`, when it exists.

    Raises:
        BadInput: the file is no timing cache, or of another GPU or version.
    """
    hint = "delete the file; the next build writes a new one"
    check_regular(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})", hint) from error
    complaints = len(log.complaints)
    cache = config.create_timing_cache(data)
    if cache is None or len(log.complaints) > complaints:
        raise BadInput(f"{path}: not a timing cache that this TensorRT can read", hint)
    if not config.set_timing_cache(cache, False):
        raise BadInput(f"{path}: a timing cache of another GPU or TensorRT version", hint)


def save_timing_cache(config: Any, path: Path) -> None:
    """Write the timings that the build left in `config` to `path`."""
    with atomic_output(path) as temporary, config.get_timing_cache().serialize() as timings:
        temporary.write_bytes(timings)
