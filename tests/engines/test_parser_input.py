"""What TensorRT's parser is given, and what the manifest says of it.

Full TensorRT is not on this machine: its part of a build is played here.
"""

from __future__ import annotations

import hashlib
from unittest import mock

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from cbam_deploy.engines import build
from cbam_deploy.engines.backend import TENSORRT, TENSORRT_RTX, Backend
from cbam_deploy.engines.build import build_engine
from cbam_deploy.engines.manifest import read_manifest
from cbam_deploy.engines.parser_input import parser_input
from cbam_deploy.engines.source import read_source
from cbam_deploy.errors import BadInput, MissingCapability
from cbam_deploy.graphs.gate_bodies import gate_function
from cbam_deploy.graphs.onnx_file import read_model
from cbam_deploy.inspection import inspect
from cbam_deploy.machine import Gpu
from cbam_deploy.plugins.compile import CompiledKernels
from cbam_deploy.plugins.lowering import programs

GATES = ("node_first", "node_output")
MIXED = [("node_first", "FusedGate"), ("node_output", "CbamGate")]


LIBRARY = "cbam_deploy.plugins.native_library.plugin_library"
COMPILE = "cbam_deploy.plugins.images.compile_kernels"


@pytest.fixture
def hopper(monkeypatch, tmp_path):
    """A machine with an H100, NVRTC and a plugin library: its path."""
    gpu = Gpu("NVIDIA H100", (9, 0), 80 << 30)
    for module in ("build", "options", "parser_input"):
        monkeypatch.setattr(f"cbam_deploy.engines.{module}.gpus", lambda: (gpu,))
    library = tmp_path / "libcbam_deploy_plugin.so"
    library.write_bytes(b"a library")
    monkeypatch.setattr(LIBRARY, lambda: library)

    def compile_kernels(kernels, architecture):
        (kernel,) = kernels
        ptx = b".version 9.0\n\0"
        return CompiledKernels(architecture, kernel.name.encode(), (kernel.name,), "", ptx)

    monkeypatch.setattr(COMPILE, compile_kernels)
    return library


@pytest.fixture(params=[COMPILE, LIBRARY])
def hopper_that_lacks(hopper, monkeypatch, request):
    """The same without NVRTC, or without a compiler for the library."""

    def missing(*_):
        raise MissingCapability("it is not installed", "install it")

    monkeypatch.setattr(request.param, missing)


@pytest.fixture
def gated(gated):
    """Two gates with the body that this version writes: others are no plugin's."""
    model = onnx.load(gated)
    model.functions[0].CopyFrom(ir.serde.serialize_function(gate_function("SeGate", 18)))
    onnx.save(model, gated)
    return gated


@pytest.fixture
def large_kernel(gated):
    """The gated network with a 17 x 17 convolution in a gate, for which there is no kernel."""
    model = onnx.load(gated)
    gate = model.graph.node[-1]
    gate.op_type = "CbamGate"
    for name, shape in (("ws", (1, 2, 17, 17)), ("bs", (1,))):
        values = numpy_helper.from_array(np.ones(shape, np.float32), name)
        model.graph.initializer.append(values)
        gate.input.append(name)
    model.functions.append(ir.serde.serialize_function(gate_function("CbamGate", 18)))
    onnx.save(model, gated)
    return gated


def operators(path) -> list[tuple[str, str]]:
    nodes = onnx.load(path).graph.node
    domains = ("cbam_deploy", "trt.plugins")
    return [(node.name, node.op_type) for node in nodes if node.domain in domains]


def test_tensorrt_rtx_gets_the_file_itself(gated):
    with parser_input(read_source(gated), TENSORRT_RTX) as given:
        assert given.path == gated
        assert not given.by_path
        assert given.gates == dict.fromkeys(GATES, "native")


@pytest.mark.parametrize("gate", ["auto", "plugin"])
def test_tensorrt_gets_a_copy_with_plugin_nodes_while_it_builds(gated, hopper, gate):
    before = gated.read_bytes()
    with parser_input(read_source(gated), TENSORRT, gate=gate) as given:
        assert given.by_path
        assert operators(given.path) == [(name, "FusedGate") for name in GATES]
        assert not onnx.load(given.path).functions
        assert given.gates == dict.fromkeys(GATES, "plugin")
        assert given.library == hopper
        for program in programs(read_model(given.path, lowered=True)).values():
            assert [target.capability for target in program.targets] == [90]
    assert not given.path.exists()
    assert gated.read_bytes() == before


def test_native_gates_are_parsed_as_they_are(gated, hopper):
    with parser_input(read_source(gated), TENSORRT, gate="native") as given:
        assert (given.path, given.library) == (gated, None)
        assert given.gates == dict.fromkeys(GATES, "native")


def test_network_without_gates_is_left_alone(convolution, hopper):
    path = convolution()
    with parser_input(read_source(path), TENSORRT) as given:
        assert (given.path, given.gates) == (path, {})


def test_weights_in_an_external_file_come_along(gated, hopper):
    model = onnx.load(gated)
    onnx.save(model, gated, save_as_external_data=True, location="weights.bin", size_threshold=0)
    with parser_input(read_source(gated), TENSORRT) as given:
        weights = {tensor.name: tensor for tensor in onnx.load(given.path).graph.initializer}
    assert numpy_helper.to_array(weights["w0"]).shape == (2, 8)


def test_gate_without_a_kernel_is_refused_by_name_where_the_plugin_is_demanded(
    large_kernel, hopper
):
    source = read_source(large_kernel)
    with (
        pytest.raises(BadInput, match=r"gate node_output .kernel size 17") as refused,
        parser_input(source, TENSORRT, gate="plugin"),
    ):
        pass
    assert "--gate auto" in refused.value.hint
    with parser_input(source, TENSORRT) as given:
        assert given.gates == {"node_first": "plugin", "node_output": "native"}
        assert operators(given.path) == MIXED


def test_auto_falls_back_to_bodies_where_plugins_cannot_be_made(gated, hopper_that_lacks, caplog):
    source = read_source(gated)
    with parser_input(source, TENSORRT) as given:
        assert given.gates == dict.fromkeys(GATES, "native")
        assert (given.path, given.library) == (gated, None)
    assert "it is not installed" in caplog.text
    with (
        pytest.raises(MissingCapability, match="it is not installed"),
        parser_input(source, TENSORRT, gate="plugin"),
    ):
        pass


class FullTensorRT:
    """Full TensorRT's part of a build: what it was told, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[str, object]] = []
        self.config = mock.MagicMock()
        self.polygraphy = mock.MagicMock()
        self.polygraphy.network_from_onnx_path = self.parse
        self.polygraphy.engine_bytes_from_network.return_value = b"an engine"
        self.polygraphy.CreateConfig.return_value = lambda *_: self.config
        self.trt = mock.MagicMock()
        self.trt.get_plugin_registry().load_library = self.load_library

    def parse(self, path, strongly_typed):
        assert strongly_typed
        self.told.append(("parse", operators(path)))
        return "builder", "network", "parser"

    def load_library(self, path):
        self.told.append(("load", path))
        return "a handle"


@pytest.fixture
def tensorrt(monkeypatch):
    full = FullTensorRT()
    backend = Backend(TENSORRT, "10.3.0", full.trt, full.polygraphy)
    monkeypatch.setattr(build, "load_backend", lambda _: backend)
    monkeypatch.setattr("cbam_deploy.engines.monitor.progress_monitor", lambda *_: None)
    return full


def test_the_library_is_loaded_before_parsing_and_put_into_the_engine(gated, hopper, tensorrt):
    output = gated.with_name("net.engine")
    build_engine(gated, output, runtime=TENSORRT)
    (loaded, library), (parsed, nodes) = tensorrt.told
    assert (loaded, parsed) == ("load", "parse")
    assert library == str(hopper)
    assert nodes == [(name, "FusedGate") for name in GATES]
    assert tensorrt.config.plugins_to_serialize == [str(hopper)]
    record = read_manifest(output).plugin
    assert record.embedded
    assert record.sha256 == hashlib.sha256(hopper.read_bytes()).hexdigest()


def test_an_engine_without_the_library_says_so(gated, hopper, tensorrt):
    output = gated.with_name("net.engine")
    tensorrt.config.plugins_to_serialize = "untouched"
    build_engine(gated, output, runtime=TENSORRT, embed_plugin=False)
    assert tensorrt.config.plugins_to_serialize == "untouched"
    manifest = read_manifest(output)
    assert not manifest.plugin.embedded
    assert "--no-embed-plugin" in manifest.command
    shown: dict[str, str] = dict(inspect(output).sections()[0].tables[0].rows)
    assert shown["plugin"].startswith("to be loaded beside the engine")


def test_native_gates_need_no_library(gated, hopper, tensorrt):
    output = gated.with_name("net.engine")
    tensorrt.polygraphy.network_from_onnx_bytes.return_value = ("builder", "network", "parser")
    build_engine(gated, output, runtime=TENSORRT, gate="native")
    assert tensorrt.told == []
    assert read_manifest(output).plugin is None


def test_a_library_that_tensorrt_does_not_load_is_named(gated, hopper, tensorrt):
    tensorrt.trt.get_plugin_registry().load_library = lambda _: None
    with pytest.raises(MissingCapability, match=f"cannot load the plugin library {hopper}"):
        build_engine(gated, gated.with_name("net.engine"), runtime=TENSORRT)


def test_tensorrt_rtx_embeds_no_plugin(gated):
    with pytest.raises(BadInput, match="TensorRT-RTX has no option --no-embed-plugin"):
        build_engine(gated, gated.with_name("net.engine"), embed_plugin=False)


def test_manifest_records_how_each_gate_was_lowered(gated, large_kernel, hopper, tensorrt):
    output = gated.with_name("net.engine")
    result = build_engine(gated, output, runtime=TENSORRT)
    manifest = read_manifest(output)
    assert tensorrt.told[1] == ("parse", MIXED)
    assert manifest.gates == result.gates == {"node_first": "plugin", "node_output": "native"}
    assert manifest.onnx_sha256 == hashlib.sha256(gated.read_bytes()).hexdigest()
    assert [gate.lowering for gate in inspect(output).gates] == ["plugin", "native"]
