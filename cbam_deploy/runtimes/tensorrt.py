"""Run engines with TensorRT or TensorRT-RTX, on the GPU they were built for.

Polygraphy deserializes the engine; PyTorch holds the buffers, streams and events.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from cbam_deploy.artefacts import Engine
from cbam_deploy.engines.backend import TENSORRT_RTX, captured_log, load_backend, load_plugins
from cbam_deploy.engines.manifest import Manifest, check_runtime, read_manifest
from cbam_deploy.errors import BadInput
from cbam_deploy.machine import gpus
from cbam_deploy.numerics.feeds import check_feeds, check_ranges
from cbam_deploy.numerics.tensors import Arrays
from cbam_deploy.plugins.native_library import plugin_library
from cbam_deploy.runtimes import cuda
from cbam_deploy.runtimes.base import Execution, Runner


class TensorRTRunner(Runner):
    """An engine, loaded as its manifest says.

    Args:
        path: the engine; its manifest lies beside it.
        manifest: that manifest, where it was read and verified before.

    Creating raises:
        BadInput: engine or manifest are missing or altered, the engine's weights were stripped,
            or it was built by another version of its TensorRT.
        MissingCapability: that TensorRT is not installed.

    Activating raises:
        MissingCapability: this machine has no NVIDIA GPU, PyTorch has no CUDA, or the engine needs
            the plugin library and there is no compiler to build it.
        BadInput: the engine was built for other GPUs, or TensorRT cannot load it.
    """

    def __init__(self, path: str | Path, manifest: Manifest | None = None) -> None:
        self.path = Path(path)
        self.manifest = manifest or read_manifest(self.path)
        if self.manifest.options.get("strip_weights"):
            raise BadInput(
                f"{self.path}: holds no weights, they were stripped",
                "refit it with TensorRT's OnnxParserRefitter, or build without --strip-weights",
            )
        check_runtime(self.manifest, self.path)
        self.name = self.manifest.runtime
        self.inputs, self.outputs = self.manifest.inputs, self.manifest.outputs
        self._new_context: Callable[[], Any] | None = None
        self._network: _BoundNetwork | None = None
        self._held_bytes = 0

    @classmethod
    def of(
        cls,
        engine: Engine,
        _device: str | None,
        _threads: int | None,
        _extra_outputs: Sequence[str] = (),
    ) -> TensorRTRunner:
        """The runner of an opened engine, whose device is a GPU, and which hides what is inside."""
        return cls(engine.path, engine.manifest)

    @property
    def batch_range(self) -> tuple[int, int | None]:
        """Smallest and largest batch of the engine's profile."""
        return self.manifest.batch_range

    def activate(self) -> None:
        """Deserialize the engine and make an execution context for `infer`."""
        self._device = cuda.require_cuda("running a TensorRT engine")
        _check_target(self.manifest, self.path)
        self._held_bytes = -cuda.used_memory_bytes()
        self._new_context = _load(self.manifest, self.path)
        self._network = _BoundNetwork(self._new_context(), self.manifest, self._device)
        self._held_bytes += cuda.used_memory_bytes()

    def deactivate(self) -> None:
        """Free engine and context."""
        self._new_context = self._network = None

    def infer(self, feeds: Arrays) -> dict[str, NDArray[np.generic]]:
        """Run once; raises `BadInput` when `feeds` do not fit the profile."""
        self._check(feeds)
        if self._network is None:
            raise RuntimeError("the runner is not active")
        outputs = self._network.bind(feeds)
        self._network.enqueue()
        return cuda.to_host(outputs)

    def _check(self, feeds: Arrays) -> None:
        """Raise `BadInput` unless `feeds` fit the inputs and the profile."""
        check_feeds(feeds, self.inputs, self.batch_range)
        profile = self.manifest.profile
        check_ranges(feeds, {name: (ends.min, ends.max) for name, ends in profile.items()})

    def prepare(self, feeds: Arrays) -> Execution:
        """Put `feeds` on the device, in a context of their own; raises like `infer`.

        TensorRT-RTX captures CUDA graphs by itself, TensorRT leaves that to us.
        """
        self._check(feeds)
        if self._new_context is None:
            raise RuntimeError("the runner is not active")
        network = _BoundNetwork(self._new_context(), self.manifest, self._device)
        network.bind(feeds)
        capture = self.manifest.runtime != TENSORRT_RTX
        return cuda.CudaExecution(network.enqueue, capture=capture, held_bytes=self._held_bytes)

    def prepare_profiled(
        self, feeds: Arrays, seconds: list[dict[str, float]]
    ) -> tuple[Execution, str]:
        """Put `feeds` on the device, in a context whose layers are timed; raises like `infer`.

        Args:
            feeds: by input name.
            seconds: gets the seconds of each layer by its name, for each run.

        Returns:
            what runs it, without CUDA graphs, and what the engine's inspector says as JSON.
        """
        self._check(feeds)
        if self._new_context is None:
            raise RuntimeError("the runner is not active")
        engine = self._new_context().engine
        trt = load_backend(self.manifest.runtime).trt
        context = engine.create_execution_context()
        context.profiler = _profiler(trt, seconds)
        network = _BoundNetwork(context, self.manifest, self._device)
        network.bind(feeds)

        def launch() -> None:
            seconds.append({})
            network.enqueue()

        inspector = engine.create_engine_inspector()
        information = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
        execution = cuda.CudaExecution(launch, capture=False, held_bytes=self._held_bytes)
        return execution, str(information)


def _profiler(trt: Any, seconds: list[dict[str, float]]) -> Any:
    class Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)  # Which TensorRT's bindings insist on.

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            seconds[-1][layer_name] = seconds[-1].get(layer_name, 0.0) + ms * 1e-3

    return Profiler()


class _BoundNetwork:
    """An execution context and the device buffers that its inputs and outputs lie in."""

    def __init__(self, context: Any, manifest: Manifest, device: torch.device) -> None:
        self._context, self._manifest, self._device = context, manifest, device
        self._buffers: dict[str, torch.Tensor] = {}

    def bind(self, feeds: Arrays) -> dict[str, torch.Tensor]:
        """Copy `feeds` to the device, make room for the outputs of their shape, return these."""
        context, specs = self._context, self._manifest
        inputs = {
            spec.name: cuda.to_device(feeds[spec.name], self._device) for spec in specs.inputs
        }
        for name, tensor in inputs.items():
            context.set_input_shape(name, tuple(tensor.shape))
        outputs = {}
        for spec in specs.outputs:
            shape = tuple(context.get_tensor_shape(spec.name))
            dtype = getattr(torch, spec.dtype)
            outputs[spec.name] = torch.empty(shape, dtype=dtype, device=self._device)
        self._buffers = {**inputs, **outputs}
        for name, tensor in self._buffers.items():
            context.set_tensor_address(name, tensor.data_ptr())
        return outputs

    def enqueue(self) -> None:
        """Start the network on PyTorch's current stream."""
        stream = torch.cuda.current_stream().cuda_stream
        if not self._context.execute_async_v3(stream):
            raise RuntimeError("TensorRT could not start the network")


def _check_target(manifest: Manifest, path: Path) -> None:
    here = gpus()[torch.cuda.current_device()].target
    if manifest.targets and here not in manifest.targets:
        raise BadInput(
            f"{path}: built for {', '.join(manifest.targets)}, but this GPU is {here}",
            f"build the engine again with --target {here}",
        )


def _load(manifest: Manifest, path: Path) -> Callable[[], Any]:
    """Deserialize an engine; what is returned makes execution contexts of it."""
    from polygraphy.exception import PolygraphyException

    backend = load_backend(manifest.runtime)
    if manifest.plugin is not None and not manifest.plugin.embedded:
        load_plugins(backend, plugin_library())
    with captured_log() as log:
        try:
            engine = backend.polygraphy.engine_from_bytes(path.read_bytes())
        except PolygraphyException as error:
            cause = log.first_error()
            raise BadInput(
                f"{path}: {backend.title} cannot load it: {cause}", "build the engine again here"
            ) from error
    if manifest.runtime != TENSORRT_RTX:
        return cast(Callable[[], Any], engine.create_execution_context)
    config = engine.create_runtime_config()
    config.cuda_graph_strategy = backend.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    return lambda: engine.create_execution_context(config)
