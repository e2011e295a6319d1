"""How engines are bound to memory, with a stand-in for the execution context.

The stand-in has the methods of the genuine class and reads and writes the addresses it is given,
but on the host: this proves that buffers have the right names, shapes and types and live long
enough. It proves nothing about execution on a GPU.
"""

from __future__ import annotations

import ctypes
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import tensorrt_rtx as trt
import torch

from cbam_deploy.engines.backend import Backend
from cbam_deploy.engines.build import build_engine
from cbam_deploy.engines.manifest import PluginRecord, read_manifest
from cbam_deploy.errors import BadInput
from cbam_deploy.machine import Gpu
from cbam_deploy.runtimes import cuda, tensorrt
from cbam_deploy.runtimes.tensorrt import TensorRTRunner


class HostContext:
    """Computes ``logits = sum over pictures`` from the addresses it was given."""

    def __init__(self, engine=None):
        self.shape, self.addresses, self.graphs = (), {}, True
        genuine = mock.create_autospec(trt.IExecutionContext, instance=True)
        genuine.set_input_shape.side_effect = self.set_input_shape
        genuine.set_tensor_address.side_effect = self.set_tensor_address
        genuine.get_tensor_shape.side_effect = lambda name: (self.shape[0], 5)
        genuine.execute_async_v3.side_effect = self.execute
        genuine.engine = engine
        self.genuine = genuine

    def set_input_shape(self, name, shape):
        assert name == "input"
        self.shape = shape
        return True

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def execute(self, stream):
        size = int(np.prod(self.shape))
        pictures = np.array((ctypes.c_float * size).from_address(self.addresses["input"]))
        logits = (ctypes.c_float * (self.shape[0] * 5)).from_address(self.addresses["logits"])
        sums = pictures.reshape(self.shape).sum(axis=(1, 2, 3), dtype=np.float32)
        logits[:] = np.repeat(sums, 5).tolist()
        return True


@pytest.fixture
def gpu(monkeypatch):
    """Host memory where a GPU's is asked for."""
    monkeypatch.setattr(cuda, "require_cuda", lambda purpose: torch.device("cpu"))
    monkeypatch.setattr(cuda, "used_memory_bytes", lambda: 0)
    monkeypatch.setattr(cuda, "to_device", lambda array, device: torch.from_numpy(array).clone())
    monkeypatch.setattr(
        cuda, "to_host", lambda found: {n: t.numpy().copy() for n, t in found.items()}
    )
    stream = SimpleNamespace(cuda_stream=0)
    monkeypatch.setattr("torch.cuda.current_stream", lambda: stream)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr(tensorrt, "gpus", lambda: (Gpu("a GPU", (8, 9), 0),))


@pytest.fixture
def host(gpu, monkeypatch):
    """The contexts that were made, on the host."""
    contexts = []

    def new_context(config=None):
        graphs = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        assert config is None or config.cuda_graph_strategy == graphs
        contexts.append(HostContext(deserialized))
        contexts[-1].graphs = config is not None
        return contexts[-1].genuine

    deserialized = mock.create_autospec(trt.ICudaEngine, instance=True)
    deserialized.create_execution_context.side_effect = new_context
    inspector = mock.create_autospec(trt.EngineInspector, instance=True)
    known = {trt.LayerInformationFormat.JSON: '{"Layers": ["a"]}'}
    inspector.get_engine_information.side_effect = known.get
    deserialized.create_engine_inspector.side_effect = lambda: inspector
    polygraphy = SimpleNamespace(engine_from_bytes=lambda data: deserialized)
    backend = Backend("tensorrt-rtx", trt.__version__, trt, polygraphy)
    monkeypatch.setattr(tensorrt, "load_backend", lambda runtime: backend)
    return contexts


def test_inputs_and_outputs_lie_where_the_context_looks(engine, pictures, host):
    with TensorRTRunner(engine) as runner:
        for batch in (3, 1):
            logits = runner.infer({"input": pictures[:batch]})["logits"]
            sums = pictures[:batch].sum(axis=(1, 2, 3), dtype=np.float32)
            np.testing.assert_allclose(logits, np.repeat(sums[:, None], 5, axis=1))


def test_each_prepared_input_has_a_context_of_its_own(engine, pictures, host, monkeypatch):
    launches = []
    monkeypatch.setattr(
        cuda, "CudaExecution", lambda launch, **options: launches.append((launch, options))
    )
    with TensorRTRunner(engine) as runner:
        for batch in (3, 1):
            runner.prepare({"input": pictures[:batch]})
        for launch, options in launches:
            launch()
            assert options["capture"] is False
    assert [context.shape[0] for context in host[1:]] == [3, 1]


def test_layers_are_timed_by_a_profiler_in_a_context_without_cuda_graphs(
    engine, pictures, host, monkeypatch
):
    launches = []
    monkeypatch.setattr(
        cuda, "CudaExecution", lambda launch, **options: launches.append((launch, options))
    )
    seconds: list[dict[str, float]] = []
    with TensorRTRunner(engine) as runner:
        _, information = runner.prepare_profiled({"input": pictures}, seconds)
    assert information == '{"Layers": ["a"]}'
    (launch, options), context = launches[0], host[-1]
    assert (options["capture"], context.graphs) == (False, False)
    launch()
    profiler = context.genuine.profiler
    assert isinstance(profiler, trt.IProfiler)
    for milliseconds in (1.5, 0.5):
        profiler.report_layer_time("a", milliseconds)
    assert seconds == [{"a": pytest.approx(2e-3)}]


def test_batch_outside_the_profile_is_refused_with_its_range(engine, host):
    with TensorRTRunner(engine) as runner:
        for run in (runner.infer, runner.prepare):
            with pytest.raises(BadInput, match=r"batch 5 is outside its range \(1 to 4\)"):
                run({"input": np.zeros((5, 3, 8, 8), np.float32)})


def test_engine_for_other_gpus_is_refused(engine, host):
    manifest = replace(read_manifest(engine), targets=("sm_86", "sm_120"))
    with pytest.raises(BadInput, match="built for sm_86, sm_120, but this GPU is sm_89"):
        TensorRTRunner(engine, manifest).activate()


@pytest.mark.parametrize("embedded", [True, False])
def test_plugin_library_is_loaded_first_where_the_engine_does_not_carry_it(
    engine, gpu, monkeypatch, tmp_path, embedded
):
    told: list[str | bytes] = []
    library = tmp_path / "libcbam_deploy_plugin.so"

    def noted(answer):
        def note(given):
            told.append(given)
            return answer

        return note

    registry = SimpleNamespace(load_library=noted("a handle"))
    full = SimpleNamespace(get_plugin_registry=lambda: registry)
    polygraphy = SimpleNamespace(engine_from_bytes=noted(mock.MagicMock()))
    backend = Backend("tensorrt", "10.3.0", full, polygraphy)
    monkeypatch.setattr(tensorrt, "load_backend", lambda runtime: backend)
    monkeypatch.setattr(tensorrt, "check_runtime", lambda *_: None)
    monkeypatch.setattr(tensorrt, "plugin_library", lambda: library)
    manifest = replace(
        read_manifest(engine), runtime="tensorrt", plugin=PluginRecord("00ff", embedded)
    )
    TensorRTRunner(engine, manifest).activate()
    deserialized = engine.read_bytes()
    assert told == ([deserialized] if embedded else [str(library), deserialized])


@pytest.mark.gpu
def test_engine_computes_what_onnx_runtime_computes(model, tmp_path, pictures):
    from cbam_deploy.machine import gpus
    from cbam_deploy.runtimes.onnxruntime import OnnxRuntimeRunner

    if not gpus():
        pytest.skip("needs an NVIDIA GPU")
    path = tmp_path / "network.engine"
    build_engine(model, path)
    feeds = {"input": pictures}
    with TensorRTRunner(path) as runner, OnnxRuntimeRunner(model) as other:
        computed, expected = (each.infer(feeds)["logits"] for each in (runner, other))
        seconds = runner.prepare(feeds).measure(10)
    np.testing.assert_allclose(computed, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert (seconds > 0).all()


def test_engine_that_tensorrt_refuses_is_bad_input(engine, gpu):
    manifest = read_manifest(engine)
    engine.write_bytes(b"no engine")
    with pytest.raises(BadInput, match=r"TensorRT-RTX \S+ cannot load it: .*Error"):
        TensorRTRunner(engine, manifest).activate()


def test_methods_used_exist_in_tensorrt_rtx():
    backend = Backend("tensorrt-rtx", trt.__version__, trt, None)
    assert hasattr(backend.trt.ICudaEngine, "create_runtime_config")
    assert hasattr(backend.trt.IRuntimeConfig, "cuda_graph_strategy")
    assert "WHOLE_GRAPH_CAPTURE" in dir(backend.trt.CudaGraphStrategy)
