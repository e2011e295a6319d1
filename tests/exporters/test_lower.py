"""Files for other people's TensorRT: what `lower` writes, says of it, and leaves as it is."""

from __future__ import annotations

import hashlib
import json
import shlex

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from gate_models import gate_model, random_weights
from onnx import helper

from cbam_deploy.errors import BadInput
from cbam_deploy.exporters.lower import lower
from cbam_deploy.graphs.gate_functions import set_functions
from cbam_deploy.graphs.onnx_file import read_model, read_provenance, set_provenance
from cbam_deploy.inspection import inspect
from cbam_deploy.plugins.compile import CompiledKernels
from cbam_deploy.plugins.lowering import programs
from cbam_deploy.provenance import Provenance

OP, CHANNELS, SIZE = "CbamGateAddRelu", 32, 14


@pytest.fixture(autouse=True)
def quick(monkeypatch, request):
    """Kernels are a few bytes each, except where a test is of the kernels."""

    def compile_kernels(kernels, architecture):
        (kernel,) = kernels
        image = f"{kernel.name} for {architecture}".encode()
        return CompiledKernels(architecture, image, (kernel.name,), "", b".version 9.0\n\0")

    monkeypatch.setattr("cbam_deploy.plugins.images.compile_kernels", compile_kernels)


@pytest.fixture
def network(tmp_path):
    """Writes a network of gates of fixed or free sizes."""

    def write(op=OP, size=SIZE, nodes=2, history=True, batch="N"):
        proto = gate_model(op, random_weights(op, CHANNELS), nodes=nodes)
        for value in (*proto.graph.input, *proto.graph.output):
            value.CopyFrom(
                helper.make_tensor_value_info(
                    value.name, onnx.TensorProto.FLOAT, [batch, CHANNELS, size, size]
                )
            )
        for number, node in enumerate(proto.graph.node):
            node.name = f"layer{number}.gate"
        model = ir.from_proto(proto)
        if history:
            set_provenance(model, Provenance(gates={op: nodes}, class_names=("cat", "dog")))
        path = tmp_path / "net.onnx"
        onnx.save(ir.to_proto(model), path)
        return path

    return write


def test_a_lowered_file_is_valid_and_of_the_same_version_with_its_history(network, tmp_path):
    source, output = network(), tmp_path / "net-trt.onnx"
    result = lower(source, output, targets=["sm_87", "sm_89", "sm_87"], tensorrt="10.7")
    onnx.checker.check_model(output)
    before, after = onnx.load(source), onnx.load(output)
    assert after.ir_version == before.ir_version
    opsets = {entry.domain: entry.version for entry in after.opset_import}
    assert opsets == {"": 18, "cbam_deploy": 1, "trt.plugins": 1}
    assert [node.op_type for node in after.graph.node] == ["FusedGate"] * 2
    history = read_provenance(output)
    assert history.class_names == ("cat", "dog")
    assert history.gates == {OP: 2}
    assert history.lowered.source == "net.onnx"
    assert history.lowered.source_sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert (history.lowered.targets, history.lowered.tensorrt) == (("sm_87", "sm_89"), "10.7")
    assert result.targets == ("sm_87", "sm_89")
    assert result.sha256 == hashlib.sha256(output.read_bytes()).hexdigest()


def test_the_table_says_what_each_gate_adds_and_what_sharing_saves(network, tmp_path, cli):
    output = tmp_path / "net-trt.onnx"
    shown = cli("lower", network(), "-o", output, "--target", "sm_87", "--json")
    assert (shown.code, shown.err) == (0, "")
    data = json.loads(shown.out)
    first, second = data["gates"]
    assert (first["node"], first["operator"], first["way"]) == ("layer0.gate", OP, "plugin")
    assert first["formats"] == ["float32 LINEAR", "float32 HWC"]
    assert first["tactics"] == second["tactics"] == 6
    assert second["carried_bytes"] == 0
    assert data["image_bytes"] == data["shared_bytes"] == first["carried_bytes"] > 0
    table = cli("lower", network(), "-o", output, "--target", "sm_87").out
    assert "gates     2 of 2 lowered to the plugin" in table
    assert "layer0.gate" in table


def test_the_command_for_trtexec_can_be_pasted(network, tmp_path, cli):
    output = tmp_path / "net trt.onnx"
    shown = cli("lower", network(), "-o", output, "--target", "sm_87", "--batch", 16).out
    command = shown[shown.index("trtexec \\\n") :].replace("\\\n", "").split("\n")[0]
    assert shlex.split(command) == [
        "trtexec",
        f"--onnx={output}",
        f"--saveEngine={output.with_suffix('.engine')}",
        "--stronglyTyped",
        "--dynamicPlugins=./libcbam_deploy_plugin.so",
        "--setPluginsToSerialize=./libcbam_deploy_plugin.so",
        "--minShapes=X:1x32x14x14,R:1x32x14x14",
        "--optShapes=X:16x32x14x14,R:16x32x14x14",
        "--maxShapes=X:64x32x14x14,R:64x32x14x14",
    ]


def test_a_fixed_batch_needs_no_shapes(network, tmp_path):
    result = lower(network(batch=4), tmp_path / "out.onnx", targets=["sm_87"])
    assert not any("Shapes" in word for word in result.trtexec)


def test_a_file_of_another_program_is_recorded_too(network, tmp_path):
    output = tmp_path / "out.onnx"
    lower(network(history=False), output, targets=["sm_87"])
    assert read_provenance(output).lowered.source == "net.onnx"
    assert inspect(output).passed


def test_inspection_shows_gates_targets_formats_tactics_and_sizes(network, tmp_path):
    output = tmp_path / "out.onnx"
    result = lower(network(), output, targets=["sm_87", "sm_90"])
    found = inspect(output)
    assert found.passed
    assert [(gate.node, gate.op, gate.lowering) for gate in found.gates] == [
        ("layer0.gate", OP, "plugin"),
        ("layer1.gate", OP, "plugin"),
    ]
    assert [(gate.channels, gate.reduction, gate.kernel_size) for gate in found.gates] == [
        (CHANNELS, 8, 7)
    ] * 2
    assert [(one.node, one.target) for one in found.programs] == [
        (f"layer{number}.gate", target) for number in (0, 1) for target in ("sm_87", "sm_90")
    ]
    assert found.programs[0].formats == ("float32 LINEAR", "float32 HWC")
    assert sum(one.tactics for one in found.programs) == sum(gate.tactics for gate in result.gates)
    assert found.programs[0].image_bytes == result.image_bytes
    facts: dict[str, str] = dict(found.sections()[0].tables[0].rows)
    assert facts["lowered from"] == "net.onnx"
    assert facts["for"] == "sm_87, sm_90, TensorRT 10.3 and later"


@pytest.mark.parametrize(
    "arguments",
    [
        ("bench", "FILE"),
        ("evaluate", "FILE", "--data", "digits"),
        ("convert", "FILE", "-o", "OUT"),
        ("fuse", "FILE", "-o", "OUT"),
        ("inline", "FILE", "-o", "OUT"),
        ("lower", "FILE", "-o", "OUT", "--target", "sm_87"),
        ("build-engine", "FILE", "-o", "OUT"),
        ("complexity", "FILE"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_other_commands_refuse_it_and_name_its_source(network, tmp_path, cli, arguments):
    output = tmp_path / "net-trt.onnx"
    lower(network(), output, targets=["sm_87"])
    paths = {"FILE": output, "OUT": tmp_path / "out.onnx"}
    refused = cli(*(paths.get(word, word) for word in arguments))
    assert refused.code == 2
    assert "its gates are lowered to a plugin, which TensorRT's builder alone runs" in refused.error
    assert "use net.onnx, which it was lowered from" in refused.err


def test_a_file_without_fused_gates_is_told_how_to_get_them(network, tmp_path, cli):
    source = network()
    plain = tmp_path / "plain.onnx"
    assert cli("inline", source, "-o", plain).code == 0
    refused = cli("lower", plain, "-o", tmp_path / "out.onnx", "--target", "sm_87")
    assert refused.code == 2
    assert "has no fused gates to lower" in refused.error
    assert f"cbam-deploy fuse {plain}" in refused.err


def test_gates_of_free_sizes_cannot_be_lowered_and_the_reason_is_said(network, tmp_path, cli):
    output = tmp_path / "out.onnx"
    refused = cli("lower", network(size="S"), "-o", output, "--target", "sm_87")
    assert refused.code == 2
    assert "layer0.gate: CbamGateAddRelu: its kernels are for fixed sizes" in refused.error
    assert not output.exists()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--target", "sm_70"), "--target sm_70: there are no kernels for it"),
        (("--target", "orin"), "--target orin: there are no kernels for it"),
        (("--target", "sm_87", "--tensorrt", "8.6"), "TensorRT 8.6 has no plugins of the kind"),
        (("--target", "sm_87", "--tensorrt", "jp6"), "'jp6' is no version of TensorRT"),
    ],
)
def test_targets_and_versions_that_there_are_none_of_are_refused(
    network, tmp_path, cli, options, error
):
    refused = cli("lower", network(), "-o", tmp_path / "out.onnx", *options)
    assert refused.code == 2
    assert error in refused.error


def test_the_source_is_not_overwritten(network, cli):
    path = network()
    before = path.read_bytes()
    assert cli("lower", path, "-o", path, "--target", "sm_87").code == 2
    assert path.read_bytes() == before


def test_a_program_that_was_edited_is_bad_input_and_no_crash(network, tmp_path, cli):
    output = tmp_path / "out.onnx"
    lower(network(), output, targets=["sm_87"])
    model = read_model(output, lowered=True)
    assert len(programs(model)) == 2
    proto = onnx.load(output)
    (program,) = (entry for entry in proto.graph.node[0].attribute if entry.name == "program")
    program.s = program.s.replace(b"\ntarget", b"\nimage")
    onnx.save(proto, output)
    refused = cli("inspect", output)
    assert refused.code == 2
    assert "layer0.gate" in refused.error


QUANTIZED = """
<ir_version: 10, opset_import: ["" : 19, "cbam_deploy" : 1]>
net (float[N, 32, 8, 8] x) => (float[N, 32, 8, 8] y)
{
  q = QuantizeLinear (x, s, z)
  dq = DequantizeLinear (q, s, z)
  first = cbam_deploy.SeGate (dq, w0, b0, w1, b1)
  y = cbam_deploy.SeGate (first, w0, b0, w1, b1)
}
"""


def test_a_gate_of_fp8_maps_stays_native_and_says_so(tmp_path):
    proto = onnx.parser.parse_model(QUANTIZED)
    weights = random_weights("SeGate", 32)
    arrays = {name.lower(): array for name, array in weights.items()}
    arrays |= {"s": np.float32(0.1), "z": np.zeros((), ml_dtypes.float8_e4m3fn)}
    for name, array in arrays.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    set_functions(model)
    source = tmp_path / "fp8.onnx"
    onnx.save(ir.to_proto(model), source)
    first, second = lower(source, tmp_path / "out.onnx", targets=["sm_89"]).gates
    assert (first.way, second.way) == ("native", "plugin")
    assert "its maps are FP8" in first.reason
    with pytest.raises(BadInput, match="in FP8, which needs compute capability"):
        lower(source, tmp_path / "orin.onnx", targets=["sm_89", "sm_87"])
    assert not (tmp_path / "orin.onnx").exists()


def test_gates_of_bf16_maps_are_lowered_in_bf16(tmp_path):
    proto = gate_model(OP, random_weights(OP, CHANNELS))
    for value in (*proto.graph.input, *proto.graph.output):
        shape = [2, CHANNELS, SIZE, SIZE]
        value.CopyFrom(helper.make_tensor_value_info(value.name, onnx.TensorProto.BFLOAT16, shape))
    onnx.save(proto, tmp_path / "bf16.onnx")
    (gate,) = lower(tmp_path / "bf16.onnx", tmp_path / "out.onnx", targets=["sm_87"]).gates
    assert gate.formats == ("bfloat16 HWC8", "bfloat16 LINEAR")
