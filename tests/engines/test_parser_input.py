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
import tensorrt_rtx as trt
from onnx import numpy_helper

from cbam_deploy.engines import build
from cbam_deploy.engines.backend import TENSORRT, TENSORRT_RTX, Backend
from cbam_deploy.engines.build import build_engine
from cbam_deploy.engines.manifest import read_manifest
from cbam_deploy.engines.parser_input import parser_input
from cbam_deploy.engines.source import read_source
from cbam_deploy.errors import BadInput, MissingCapability
from cbam_deploy.graphs.gate_bodies import gate_function
from cbam_deploy.inspection import inspect
from cbam_deploy.machine import Gpu

GATES = ("node_first", "node_output")


@pytest.fixture
def hopper(monkeypatch):
    """A machine with an H100, on which the plugins register; the limits they were given."""
    gpu = Gpu("NVIDIA H100", (9, 0), 80 << 30)
    for module in ("build", "options", "parser_input"):
        monkeypatch.setattr(f"cbam_deploy.engines.{module}.gpus", lambda: (gpu,))
    registered = []
    monkeypatch.setattr(
        "cbam_deploy.plugins.tensorrt_plugin.register",
        lambda limits, operators: registered.append((limits, [one.name for one in operators])),
    )
    return registered


@pytest.fixture
def hopper_without_nvrtc(hopper, monkeypatch):
    def register(limits, operators):
        raise MissingCapability("NVRTC is not installed", "install it")

    monkeypatch.setattr("cbam_deploy.plugins.tensorrt_plugin.register", register)


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
    return [(node.name, node.op_type) for node in nodes if node.domain == "cbam_deploy"]


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
        assert operators(given.path) == [(name, "SeGate") for name in GATES]
        assert not onnx.load(given.path).functions
        assert given.gates == dict.fromkeys(GATES, "plugin")
    ((limits, registered),) = hopper
    assert (limits.capability, set(registered)) == (90, {"SeGate"})
    assert not given.path.exists()
    assert gated.read_bytes() == before


def test_native_gates_name_no_plugin(gated, hopper):
    with parser_input(read_source(gated), TENSORRT, gate="native") as given:
        assert operators(given.path) == [(name, "NativeSeGate") for name in GATES]
        assert [body.name for body in onnx.load(given.path).functions] == ["NativeSeGate"]
        assert given.gates == dict.fromkeys(GATES, "native")
    assert hopper == []


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
        expected = [("node_first", "SeGate"), ("node_output", "NativeCbamGate")]
        assert operators(given.path) == expected


def test_auto_falls_back_to_bodies_where_plugins_cannot_be_made(
    gated, hopper_without_nvrtc, caplog
):
    source = read_source(gated)
    with parser_input(source, TENSORRT) as given:
        assert given.gates == dict.fromkeys(GATES, "native")
    assert "NVRTC is not installed" in caplog.text
    with (
        pytest.raises(MissingCapability, match="NVRTC"),
        parser_input(source, TENSORRT, gate="plugin"),
    ):
        pass


def test_manifest_records_how_each_gate_was_lowered(gated, large_kernel, hopper, monkeypatch):
    parsed = []

    def network_from_onnx_path(path, strongly_typed):
        assert strongly_typed
        parsed.extend(operators(path))
        return "builder", "network", "parser"

    polygraphy = mock.MagicMock()
    polygraphy.network_from_onnx_path = network_from_onnx_path
    polygraphy.engine_bytes_from_network.return_value = b"an engine"
    backend = Backend(TENSORRT, "11.4.0", trt, polygraphy)
    monkeypatch.setattr(build, "load_backend", lambda _: backend)
    output = gated.with_name("net.engine")
    result = build_engine(gated, output, runtime=TENSORRT)
    manifest = read_manifest(output)
    assert parsed == [("node_first", "SeGate"), ("node_output", "NativeCbamGate")]
    assert manifest.gates == result.gates == {"node_first": "plugin", "node_output": "native"}
    assert manifest.onnx_sha256 == hashlib.sha256(gated.read_bytes()).hexdigest()
    assert [gate.lowering for gate in inspect(output).gates] == ["plugin", "native"]
