"""`inspect` shows what is in an artefact, and notices when it is not what is recorded."""

import io
import json
from dataclasses import replace

import onnx
import pytest
from rich.console import Console

from cbam_deploy import inspect
from cbam_deploy.engines.manifest import Manifest, ShapeRange, dumps, manifest_path
from cbam_deploy.errors import BadInput
from cbam_deploy.numerics.tensors import TensorSpec
from cbam_deploy.provenance import file_sha256


def shown(result):
    text = io.StringIO()
    Console(width=200, file=text).print(result)
    return text.getvalue()


@pytest.fixture
def network(network_onnx):
    return network_onnx


def build(folder, onnx_file):
    """What `build-engine` leaves behind, with bytes that no TensorRT would take."""
    engine = folder / "network.engine"
    engine.write_bytes(b"engine")
    gates = [node.name for node in onnx.load(onnx_file).graph.node if node.domain == "cbam_deploy"]
    shapes = {end: (size, 3, 32, 32) for end, size in (("min", 1), ("opt", 8), ("max", 64))}
    manifest = Manifest(
        engine_sha256=file_sha256(engine),
        engine_bytes=engine.stat().st_size,
        onnx=onnx_file.name,
        onnx_sha256=file_sha256(onnx_file),
        runtime="tensorrt-rtx",
        runtime_version="1.7.1",
        targets=("sm_89", "sm_120"),
        inputs=(TensorSpec("input", ("batch", 3, 32, 32), "float32"),),
        outputs=(TensorSpec("logits", ("batch", 10), "float32"),),
        profile={"input": ShapeRange(**shapes)},
        precision="fp32",
        gates=dict.fromkeys(gates, "native"),
        options={},
        build_seconds=1.5,
        command="cbam-deploy build-engine network.onnx -o network.engine",
    )
    manifest_path(engine).write_text(dumps(manifest))
    return engine


@pytest.fixture
def engine(network, tmp_path):
    copy = tmp_path / network.name
    copy.write_bytes(network.read_bytes())
    return build(tmp_path, copy)


def test_an_onnx_file_shows_its_gates_with_their_sizes(network):
    found = inspect(network)
    assert found.passed
    # ResNet-8: a block each of 16, 32 and 64 channels; r = 16; k = 7.
    assert [gate.channels for gate in found.gates] == [16, 32, 64]
    assert {gate.reduction for gate in found.gates} == {16}
    assert {gate.kernel_size for gate in found.gates} == {7}
    assert {gate.op for gate in found.gates} == {"CbamGateAddRelu"}
    assert {gate.lowering for gate in found.gates} == {"function"}


def test_an_onnx_file_shows_what_it_takes_and_gives(network):
    found = inspect(network)
    assert found.inputs == (TensorSpec("input", ("batch", 3, 32, 32), "float32"),)
    assert found.outputs == (TensorSpec("logits", ("batch", 10), "float32"),)
    assert found.precision == "fp32"
    assert found.provenance.model.name == "resnet8"
    assert found.sha256 == file_sha256(network)
    nodes = onnx.load(network).graph.node
    assert sum(found.operators.values()) == len(nodes)
    assert found.operators["cbam_deploy.CbamGateAddRelu"] == 3
    assert found.opsets["cbam_deploy"] == 1


def test_the_table_shows_names_in_brackets_as_they_are(network):
    text = shown(inspect(network))
    assert "input float32 [batch, 3, 32, 32]" in text
    assert "resnet8 + cbam" in text
    assert text.count("CbamGateAddRelu") >= 3


def test_of_many_float_maps_the_table_names_a_few(network):
    found = replace(inspect(network), float_feature_maps=tuple(f"map{i}" for i in range(9)))
    assert "9 map0, map1, map2, map3, map4, map5 and 3 more" in shown(found)


def test_a_lost_gate_is_a_check_that_does_not_hold(network, tmp_path):
    model = onnx.load(network)
    gate = next(node for node in model.graph.node if node.domain == "cbam_deploy")
    shortcut = gate.input[1]
    gate.CopyFrom(onnx.helper.make_node("Relu", [shortcut], list(gate.output), name=gate.name))
    onnx.save(model, tmp_path / "lost.onnx")
    found = inspect(tmp_path / "lost.onnx")
    assert not found.passed
    message, _ = found.failure()
    assert "gates are not as recorded (3 CbamGateAddRelu)" in message
    assert "FAILED" in shown(found)


def test_an_engine_shows_its_manifest_and_the_gates_of_its_source(engine):
    found = inspect(engine)
    assert found.passed
    assert found.manifest.targets == ("sm_89", "sm_120")
    assert {gate.lowering for gate in found.gates} == {"native"}
    assert [gate.channels for gate in found.gates] == [16, 32, 64]
    text = shown(found)
    assert "input min [1, 3, 32, 32] opt [8, 3, 32, 32] max [64, 3, 32, 32]" in text
    assert "tensorrt-rtx 1.7.1" in text


def test_an_engine_alone_still_names_its_gates(engine):
    (engine.parent / "network.onnx").unlink()
    found = inspect(engine)
    assert found.passed
    assert len(found.gates) == 3
    assert {gate.channels for gate in found.gates} == {None}
    assert all(gate.node for gate in found.gates)


def test_a_source_changed_since_the_build_is_a_check_that_does_not_hold(engine):
    with (engine.parent / "network.onnx").open("ab") as file:
        file.write(b"\0")
    found = inspect(engine)
    assert not found.passed
    assert "network.onnx has changed since the build" in found.failure()[0]


def test_an_altered_engine_is_bad_input(engine):
    engine.write_bytes(b"enginE")
    with pytest.raises(BadInput, match=r"network\.engine"):
        inspect(engine)


@pytest.mark.parametrize("name", ["picture.png", "weights.pt", "missing.onnx"])
def test_other_files_are_bad_input(tmp_path, name):
    if name != "missing.onnx":
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(BadInput, match=name):
        inspect(tmp_path / name)


def test_everything_is_in_the_json(network, engine):
    for artefact in (network, engine):
        data = json.loads(json.dumps(inspect(artefact).to_json(), allow_nan=False))
        assert data["passed"] is True
        assert len(data["gates"]) == 3
        assert data["inputs"][0]["shape"] == ["batch", 3, 32, 32]
        assert data["sha256"] == file_sha256(artefact)
