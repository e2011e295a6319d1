"""An exported file computes what PyTorch computes, tells where it is from, and nothing more."""

import subprocess
import sys
from collections import Counter
from dataclasses import replace

import gated_networks
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from altering_networks import ALTERING, Counting
from gated_networks import SIZE
from torch import nn
from torch.utils._pytree import tree_leaves

from cbam_deploy import inline, validate
from cbam_deploy.errors import BadInput, CheckFailed
from cbam_deploy.exporters import export_onnx, onnx_export
from cbam_deploy.exporters.convert import convert
from cbam_deploy.exporters.gates.fusion import fuse_model
from cbam_deploy.exporters.int8.placement import is_feature_map
from cbam_deploy.gates.description import CBAM
from cbam_deploy.graphs.onnx_file import (
    read_model,
    read_provenance,
    set_provenance,
    write_model,
)
from cbam_deploy.models import create_model, load_model
from cbam_deploy.preprocessing import Preprocessing
from cbam_deploy.provenance import ModelIdentity, file_sha256
from cbam_deploy.tracing.network_inputs import pictures
from cbam_deploy.tracing.torch_graph import export_program, trace

FACTORY = """
from torch import nn

from cbam_deploy.gates.description import CBAM
from cbam_deploy.models.gate import AttentionGate

def plain():
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())

def gated():
    return nn.Sequential(nn.Conv2d(3, 16, 3), AttentionGate(16, CBAM), nn.Conv2d(16, 4, 1))

class Two(nn.Module):
    def forward(self, x):
        return x.mean((1, 2, 3)), {"peak": x.amax((1, 2, 3))}

class Branching(nn.Module):
    def forward(self, x):
        return x + 1 if x.sum() > 0 else x

class OneBatch(nn.Module):
    def forward(self, x):
        return x.reshape(2, 3, 8, 8)
"""


@pytest.fixture(scope="module")
def module():
    return gated_networks.lively(gated_networks.Residual()).train()


@pytest.fixture(scope="module")
def exported(module, tmp_path_factory):
    """What exporting that module says."""
    path = tmp_path_factory.mktemp("exported") / "net.onnx"
    return export_onnx(module, path, image_size=SIZE)


@pytest.fixture
def factories(tmp_path):
    (tmp_path / "own.py").write_text(FACTORY)
    return lambda name: f"{tmp_path / 'own.py'}:{name}"


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_export_in_a_precision_is_export_and_convert(factories, tmp_path, precision):
    options = {"precision": precision}
    if precision == "int8":
        options |= {"calibration": "digits", "images": 8}
    model = {"model": factories("gated"), "image_size": SIZE, "seed": 3}
    first = export_onnx(output=tmp_path / "fp32.onnx", **model)
    convert(first.path, tmp_path / "converted.onnx", **options, seed=3)
    result = export_onnx(output=tmp_path / "net.onnx", **model, **options)
    assert result.path.read_bytes() == (tmp_path / "converted.onnx").read_bytes()
    assert result.provenance.precision == precision
    assert result.sha256 == result.conversion.sha256
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"own.py", "fp32.onnx", "converted.onnx", "net.onnx"}


def test_a_portable_export_has_no_functions_and_is_what_inline_makes(module, exported, tmp_path):
    options = {"image_size": SIZE, "precision": "fp16", "portable": True}
    convert(exported.path, tmp_path / "fused.onnx", precision="fp16")
    inline(tmp_path / "fused.onnx", tmp_path / "inlined.onnx")
    result = export_onnx(module, tmp_path / "net.onnx", **options)
    assert result.path.read_bytes() == (tmp_path / "inlined.onnx").read_bytes()
    model = onnx.load(result.path)
    assert not model.functions
    assert {opset.domain for opset in model.opset_import} == {""}
    assert result.gates == exported.gates
    assert result.provenance == read_provenance(result.path)
    assert result.provenance.gates == {}
    assert result.provenance.precision == "fp16"
    counted = Counter(node.op_type for node in model.graph.node)
    assert sum(map(Counter, result.conversion.nodes.values()), Counter()) == counted
    assert result.sha256 == file_sha256(result.path)


def maps_between_kernels(model):
    """Feature maps that are stored: ReLUs and additions are part of the convolution before them."""
    made = [node for node in model.graph if node.op_type not in ("Relu", "Add")]
    return sum(is_feature_map(value) for node in made for value in node.outputs)


class Plain(gated_networks.Residual):
    """The network without its gates."""

    def __init__(self):
        super().__init__()
        for block in self.blocks:
            block.gate = nn.Identity()


def test_a_fused_gate_stores_one_map_more_than_the_plain_network(exported):
    plain = trace(Plain().eval(), SIZE, None, "plain")
    assert maps_between_kernels(plain) == 4  # One of each convolution,
    assert maps_between_kernels(read_model(exported.path)) == 4 + 3  # and one of each gate.


def run(path, pictures):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": pictures.numpy()})


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_file_computes_what_pytorch_computes_at_any_batch(network_onnx, batch):
    pictures = torch.randn((batch, 3, 32, 32), generator=torch.Generator().manual_seed(batch))
    model = create_model("resnet8", num_classes=10, seed=0).eval()
    with torch.inference_mode():
        expected = model(pictures).numpy()
    (found,) = run(network_onnx, pictures)
    assert found.shape == (batch, 10)
    # The FP32 bound that validation.tolerances derives.
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max(), rtol=0)


def test_result_is_true_to_the_file(exported):
    assert exported.bytes == exported.path.stat().st_size
    assert exported.gates == {"CbamGateAddRelu": 2, "SeGateAddRelu": 1}
    assert exported.refused == ()
    assert exported.provenance == read_provenance(exported.path)
    assert 0 < exported.max_relative_error < 1e-4
    data = exported.to_json()
    assert (data["schema"], data["schema_version"]) == ("cbam_deploy.export", 1)
    assert data["provenance"]["gates"] == exported.gates


def test_graph_has_the_promised_interface(network_onnx):
    graph = onnx.load(network_onnx).graph

    def shape(value):
        sizes = value.type.tensor_type.shape.dim
        return [size.dim_param or size.dim_value for size in sizes]

    assert [(v.name, shape(v)) for v in graph.input] == [("input", ["batch", 3, 32, 32])]
    assert [(v.name, shape(v)) for v in graph.output] == [("logits", ["batch", 10])]


def test_no_batch_normalization_is_left(network_onnx):
    assert "BatchNormalization" not in {n.op_type for n in onnx.load(network_onnx).graph.node}


def test_values_keep_the_names_of_the_exported_program(module, exported):
    examples = [torch.randn(2, 3, SIZE, SIZE)]
    specs = pictures((3, SIZE, SIZE)).specs
    program = export_program(module.eval(), examples, None, "network", specs)
    names = {node.name for node in program.exported_program.graph.nodes}
    assert {name for n in onnx.load(exported.path).graph.node for name in n.output} <= names


def test_provenance_rebuilds_the_model(network_onnx):
    identity = read_provenance(network_onnx).model
    assert identity is not None
    assert identity.name == "resnet8"
    assert (identity.attention, identity.gate, identity.num_classes) == ("cbam", CBAM, 10)
    pictures = torch.zeros(1, 3, 32, 32)
    expected = load_model(identity)(pictures).detach().numpy()
    np.testing.assert_allclose(run(network_onnx, pictures)[0], expected, atol=1e-5)
    with pytest.raises(BadInput, match="not those recorded"):
        load_model(replace(identity, seed=4))


def test_same_model_gives_the_same_bytes(exported, residual_onnx, tmp_path):
    model = read_model(residual_onnx)
    fuse_model(model)
    set_provenance(model, read_provenance(exported.path))
    write_model(model, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == exported.path.read_bytes()


def test_file_tells_nothing_of_the_machine(network_onnx):
    content = network_onnx.read_bytes()
    for telltale in (b".py", b'File "', sys.prefix.encode(), b"stack_trace"):
        assert telltale not in content


def test_file_runs_in_a_bare_onnxruntime(network_onnx, tmp_path):
    """In a process that could not import this package, torch or onnx if it tried."""
    program = f"""
import sys
for name in ("cbam_deploy", "torch", "onnx", "onnxscript", "onnx_ir"):
    sys.modules[name] = None
import numpy, onnxruntime
session = onnxruntime.InferenceSession({str(network_onnx)!r}, providers=["CPUExecutionProvider"])
(logits,) = session.run(None, {{"input": numpy.ones((2, 3, 32, 32), numpy.float32)}})
numpy.save({str(tmp_path / "logits.npy")!r}, logits)
"""
    subprocess.run([sys.executable, "-I", "-c", program], check=True)
    model = load_model(read_provenance(network_onnx).model)
    expected = model(torch.ones(2, 3, 32, 32)).detach().numpy()
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, atol=1e-5)


def test_without_fusion_gates_stay_standard_ops(factories, tmp_path):
    path = tmp_path / "plain.onnx"
    result = export_onnx(factories("gated"), path, image_size=SIZE, fuse=False)
    model = onnx.load(path)
    assert (result.gates, result.refused) == ({}, ())
    assert {node.domain for node in model.graph.node} == {""}
    assert len(model.functions) == 0


def test_module_is_exported_as_it_is_and_left_as_it_was(tmp_path):
    module = gated_networks.lively(gated_networks.Block(CBAM)).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    channels = gated_networks.CHANNELS
    inputs = [f"input:Nx{channels}x{SIZE}x{SIZE}"]
    result = export_onnx(module, tmp_path / "own.onnx", inputs=inputs)
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert result.gates == {"CbamGateAddRelu": 1}
    assert result.provenance.model is None
    maps = torch.rand(2, channels, SIZE, SIZE)
    expected = module.eval()(maps).detach().numpy()
    (found,) = run(tmp_path / "own.onnx", maps)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max(), rtol=0)


def test_factory_is_exported_and_named_in_provenance(factories, tmp_path):
    name = factories("plain")
    result = export_onnx(name, tmp_path / "own.onnx", image_size=SIZE)
    assert result.provenance.model.name == name
    assert result.provenance.preprocessing is None  # Nobody said how its pictures are prepared.
    assert [n.op_type for n in onnx.load(tmp_path / "own.onnx").graph.node] == ["Conv", "Relu"]


def test_every_output_of_a_factory_is_exported(factories, tmp_path):
    export_onnx(factories("Two"), tmp_path / "own.onnx", image_size=SIZE)
    pictures = torch.rand(3, 3, SIZE, SIZE)
    mean, peak = run(tmp_path / "own.onnx", pictures)
    np.testing.assert_allclose(mean, pictures.mean((1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(peak, pictures.amax((1, 2, 3)), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "why"),
    [("Branching", "torch cannot export it"), ("OneBatch", "makes the batch a constant")],
)
def test_model_that_cannot_be_exported_is_refused_in_one_line(
    factories, tmp_path, name, why, capfd
):
    output = tmp_path / "out.onnx"
    output.write_text("earlier")
    with pytest.raises(BadInput, match=why) as refused:
        export_onnx(factories(name), output, image_size=SIZE)
    assert "own.py" in refused.value.message
    assert "\n" not in refused.value.message
    assert output.read_text() == "earlier"
    assert capfd.readouterr() == ("", "")


def test_file_that_differs_from_pytorch_is_not_put_in_place(tmp_path, monkeypatch):
    """A weight that tracing gets wrong by a tenth."""

    def mistaken(*arguments):
        model = trace(*arguments)
        weight = model.graph.initializers["0.weight"]
        weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(1.1))
        return model

    monkeypatch.setattr(onnx_export, "trace", mistaken)
    output = tmp_path / "out.onnx"
    output.write_text("earlier")
    with pytest.raises(CheckFailed, match="differs from PyTorch"):
        export_onnx(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), output, image_size=SIZE)
    assert output.read_text() == "earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx"]


def test_weights_and_what_they_record_are_exported(tmp_path):
    from safetensors.torch import save_file

    from cbam_deploy.provenance import METADATA_KEY, Provenance

    identity = ModelIdentity("resnet8", "se", num_classes=3, stem="cifar", seed=8)
    model = create_model("resnet8", attention="se", num_classes=3, seed=8)
    told = Provenance(identity, Preprocessing.for_size(16), class_names=("a", "b", "c"))
    identity = replace(identity, gate=model.get_submodule("layer1.0.gate").spec)
    told = replace(told, model=identity)
    state = {name: value + 0.01 for name, value in model.state_dict().items() if value.ndim}
    weights = tmp_path / "best.safetensors"
    save_file(state, weights, metadata={METADATA_KEY: told.dumps()})
    result = export_onnx("resnet8", tmp_path / "net.onnx", weights=weights)
    assert result.gates == {"SeGateAddRelu": 3}
    assert result.provenance.class_names == ("a", "b", "c")
    assert result.provenance.preprocessing.image_size == 16
    assert result.provenance.model.weights == str(weights)
    assert load_model(result.provenance.model)(torch.zeros(1, 3, 16, 16)).shape == (1, 3)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"model": "resnet2000"}, "resnet2000"),
        ({"attention": "cbm"}, "cbm"),
        ({"image_size": 16, "preprocessing": Preprocessing.for_size(32)}, "image size 16"),
        ({"model": nn.Identity(), "num_classes": 3}, "--num-classes cannot change a module"),
        ({"weights": "gone.safetensors"}, "gone.safetensors"),
    ],
)
def test_wrong_options_are_refused(tmp_path, options, why):
    model = options.pop("model", "resnet8")
    with pytest.raises(BadInput, match=why):
        export_onnx(model, tmp_path / "out.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_unwritable_output_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "load_identified", lambda *_: pytest.fail("work was begun"))
    with pytest.raises(BadInput, match="folder"):
        export_onnx("resnet8", tmp_path / "nowhere" / "out.onnx")


@pytest.mark.parametrize("network", ALTERING)
def test_a_network_that_alters_its_input_is_exported_and_in_parity(network, tmp_path):
    path = tmp_path / "own.onnx"
    export_onnx(network(), path, image_size=4)
    pictures = torch.randn((2, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = network()(pictures.clone())
    for output, value in zip(run(path, pictures), tree_leaves(expected), strict=True):
        np.testing.assert_allclose(output, value, atol=1e-6)
    assert validate(path, reference=network(), batch_sizes=[2], layers="all").passed


def test_integers_that_a_network_alters_are_the_same_for_both_sides(tmp_path):
    path = tmp_path / "own.onnx"
    export_onnx(Counting(), path, inputs=["tokens:Nx4:int64"])
    assert validate(path, reference=Counting(), batch_sizes=[2], layers="all").passed
