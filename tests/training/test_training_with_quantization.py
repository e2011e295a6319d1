"""Training with fake quantization, and the INT8 file that `export` makes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from cbam_deploy.data.open_source import open_source
from cbam_deploy.errors import BadInput
from cbam_deploy.exporters import export_onnx
from cbam_deploy.graphs.session import open_session
from cbam_deploy.models import load_identified, load_state, state_dict_sha256
from cbam_deploy.preprocessing import Preprocessing
from cbam_deploy.provenance import METADATA_KEY, ModelIdentity, Provenance
from cbam_deploy.training import train
from cbam_deploy.training.fake_quantization import (
    ActivationQuantizer,
    fake_quantize,
    fake_quantize_weight,
)
from cbam_deploy.training.preparation import with_classes
from cbam_deploy.training.quantization import Quantization, QuantizedNetwork, quantized_network
from cbam_deploy.training.quantized_graph import fold_batch_norm
from cbam_deploy.training.result import TrainResult
from cbam_deploy.validation import validate

NETWORK = """
import torch
from torch import nn
from cbam_deploy.models import AttentionGate
from cbam_deploy.gates.description import GateSpec

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(8, affine=False)
        self.gate = AttentionGate(8, GateSpec(reduction=4))
        self.conv3 = nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(8, 2)

    def forward(self, x):
        x = self.pool(self.bn1(self.conv1(x)).relu())
        x = self.gate(self.bn2(self.conv2(x)), x)
        x = (self.conv3(x) + x).relu()
        return self.fc(x.mean((2, 3)))

def build():
    return Network()
"""

# Weights are multiples of 1/128 with 127/128 in every channel, biases multiples of 1/4096.
EXACT = """
import torch
from torch import nn

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.fc = nn.Linear(8, 2)
        for layer in (self.conv1, self.conv2, self.fc):
            layer.weight.data = torch.randint(-60, 61, layer.weight.shape) / 128
            layer.weight.data.flatten(1)[:, 0] = 127 / 128
            layer.bias.data = torch.randint(-900, 901, layer.bias.shape) / 4096

    def forward(self, x):
        x = self.pool(self.conv1(x).relu())
        x = (self.conv2(x) + x).relu()
        return self.fc(x.mean((2, 3)))

def build():
    return Network()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`network.py`, `pictures` (24 of 8 x 8, reddish or bluish), and weights in `float.pt`."""
    folder = tmp_path_factory.mktemp("quantized")
    (folder / "network.py").write_text(NETWORK)
    chance = np.random.default_rng(0)
    for label, name in enumerate(("blue", "red")):
        (folder / "pictures" / name).mkdir(parents=True)
        for number in range(12):
            pixels = chance.integers(0, 200, (8, 8, 3))
            pixels[..., 2 - 2 * label] += 55
            Image.fromarray(pixels.astype(np.uint8)).save(
                folder / "pictures" / name / f"{number}.png"
            )
    torch.manual_seed(0)
    scope: dict[str, Any] = {}
    exec(NETWORK, scope)
    network = scope["build"]().train()
    for _ in range(5):
        network(torch.randn(8, 3, 8, 8))  # Statistics of BatchNorm that are not 0 and 1.
    torch.save(network.state_dict(), folder / "float.pt")
    return folder


def run(folder: Path, output: str, **options: Any) -> TrainResult:
    return train(
        f"{folder}/network.py:build",
        data=str(folder / "pictures"),
        output=folder / output,
        **{
            "weights": folder / "float.pt",
            "image_size": 8,
            "batch_size": 8,
            "epochs": 2,
            "device": "cpu",
            "quantize": True,
        }
        | options,
    )


@pytest.fixture(scope="module")
def trained(folder: Path) -> TrainResult:
    return run(folder, "run")


@pytest.fixture(scope="module")
def exported(folder: Path, trained: TrainResult) -> onnx.ModelProto:
    export_onnx(
        f"{folder}/network.py:build", folder / "int8.onnx", weights=trained.weights, image_size=8
    )
    return onnx.load(folder / "int8.onnx")


def rebuilt(folder: Path, weights: str) -> QuantizedNetwork:
    """The network as training had it after the epoch of `weights`."""
    asked = ModelIdentity(f"{folder}/network.py:build", weights=str(folder / weights))
    network, identity = load_identified(asked)
    source = open_source(str(folder / "pictures"), Preprocessing.for_size(8), split="train")
    found = quantized_network(network, identity, Quantization(), source, seed=0)
    if (recorded := load_state(folder / weights).provenance) is not None:
        found.load_scales(recorded.trained_scales)
    return found


def run_as_written(model: onnx.ModelProto, feeds: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """Every integer tensor behind Q and the outputs, in ONNX Runtime without optimizations."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    names = [node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.INT8, None) for name in names
    )
    session = open_session(model.SerializeToString(), "the file", as_written=True)
    outputs = [value.name for value in session.get_outputs()]
    return dict(zip(outputs, session.run(outputs, feeds), strict=True))


def integers(model: onnx.ModelProto) -> dict[str, list[str]]:
    """Names of the integers behind Q, by the tensor whose scale they have."""
    found: dict[str, list[str]] = {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            found.setdefault(node.input[1].removesuffix("_scale"), []).append(node.output[0])
    return found


def weights_of(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_rounding_is_bit_for_bit_that_of_quantize_and_dequantize_linear() -> None:
    scales = np.array([0.02, 1 / 3, 1e-5, 0.0246, 7.1], np.float32)
    chance = np.random.default_rng(0)
    ties = (np.arange(-140, 140) + 0.5).astype(np.float32)
    values = np.concatenate([chance.normal(0, 60, 20_000).astype(np.float32), ties])
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "pair",
        [value("x", TensorProto.FLOAT, [None]), value("scale", TensorProto.FLOAT, [])],
        [value("y", TensorProto.FLOAT, [None])],
        [numpy_helper.from_array(np.int8(0), "zero")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    for scale in scales:
        x = values * scale
        expected = run_as_written(model, {"x": x, "scale": np.asarray(scale)})["y"]
        actual = fake_quantize(torch.from_numpy(x), torch.tensor(scale), -128).numpy()
        assert np.array_equal(actual, expected)


def test_weights_are_rounded_by_the_largest_magnitude_of_each_channel() -> None:
    weight = torch.tensor([[1.27, -0.634, 0.0051], [0.0, 0.0, 0.0], [-2.54, 0.031, 2.54]])
    expected = [[1.27, -0.63, 0.01], [0.0, 0.0, 0.0], [-2.54, 0.04, 2.54]]
    np.testing.assert_allclose(fake_quantize_weight(weight), expected, rtol=1e-6)


def test_the_gradient_of_a_scale_is_that_of_learned_step_size_quantization() -> None:
    quantizer = ActivationQuantizer(0.25)
    x = torch.tensor([[0.3, 0.4, -40.0, 50.0]], requires_grad=True)
    quantizer(x).sum().backward()
    # Equation 3 of the paper: round(x/s) - x/s inside, -128 and 127 beyond; section 2.2's factor.
    expected = ((1 - 1.2) + (2 - 1.6) - 128 + 127) / np.sqrt(127 * 4)
    assert quantizer.scale.grad is not None
    assert x.grad is not None
    assert float(quantizer.scale.grad) == pytest.approx(expected, rel=1e-5)
    assert x.grad.tolist() == [[1.0, 1.0, 0.0, 0.0]]


@pytest.mark.parametrize(("affine", "bias"), [(True, False), (True, True), (False, True)])
def test_folding_keeps_what_is_computed_and_folding_again_changes_no_bit(
    affine: bool, bias: bool
) -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 5, 3, bias=bias), nn.BatchNorm2d(5, eps=1e-3, affine=affine)
    for _ in range(3):
        norm(conv(torch.randn(4, 3, 6, 6) * 3 + 1))
    if affine:
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    conv.eval(), norm.eval()
    x = torch.randn(2, 3, 6, 6)
    before = norm.double()(conv.double()(x.double()))
    conv.float(), norm.float()

    def fold() -> dict[str, Tensor]:
        fold_batch_norm(
            conv.weight, conv.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var,
            norm.eps,
        )  # fmt: skip
        state = {**conv.state_dict(), **{f"bn.{k}": v for k, v in norm.state_dict().items()}}
        return {name: tensor.clone() for name, tensor in state.items()}

    first = fold()
    after = norm.double()(conv.double()(x.double()))
    torch.testing.assert_close(after, before, rtol=1e-6, atol=1e-6)
    conv.float(), norm.float()
    second = fold()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_file_has_the_trained_scales_and_the_trained_weights_as_integers(
    trained: TrainResult, exported: onnx.ModelProto
) -> None:
    recorded, stored = load_state(trained.weights), weights_of(exported)
    assert recorded.provenance is not None
    scales = recorded.provenance.trained_scales
    in_file = {tensor: float(stored[f"{tensor}_scale"]) for tensor in integers(exported)}
    assert in_file == scales
    for name in ("conv1.weight", "conv2.weight", "conv3.weight", "fc.weight"):
        weight = recorded.state_dict[name]
        steps = stored[f"{name}_scale"].reshape(-1, *(1,) * (weight.ndim - 1))
        levels = stored[f"{name}_quantized"]
        assert levels.dtype == np.int8
        assert np.array_equal(levels * steps, fake_quantize_weight(weight).numpy())


def test_training_moves_scales_and_weights_and_keeps_batch_norms_folded(
    folder: Path, trained: TrainResult
) -> None:
    before, after = load_state(folder / "float.pt").state_dict, load_state(trained.weights)
    assert after.provenance is not None
    assert [epoch.lr for epoch in trained.epochs] == [0.001, 0.001]  # Not the recipe's 0.1.
    assert after.provenance.calibration["trained_epochs"] == 2
    started, scales = rebuilt(folder, "float.pt").scales(), after.provenance.trained_scales
    assert scales.keys() == started.keys()
    assert sum(scales[name] != started[name] for name in scales) > len(scales) / 2
    assert after.state_dict.keys() == before.keys()
    assert not torch.equal(after.state_dict["fc.weight"], before["fc.weight"])
    assert torch.equal(after.state_dict["bn1.weight"], torch.ones(8))
    assert torch.equal(after.state_dict["bn1.running_mean"], torch.zeros(8))
    assert not torch.equal(after.state_dict["bn1.bias"], before["bn1.bias"])


def test_every_level_of_the_file_is_that_of_training_given_the_same_levels_before(
    folder: Path, trained: TrainResult, exported: onnx.ModelProto
) -> None:
    """Both add up floats in another order, so a level may differ where a sum is at a tie."""
    network, names = rebuilt(folder, trained.weights), integers(exported)
    images = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    found = run_as_written(exported, {"input": images.numpy()})

    def compare(tensor: str, module: nn.Module, before: Tensor, rounded: Tensor) -> Tensor:
        levels, scale = torch.from_numpy(found[names[tensor].pop(0)]), module.scale.detach()
        differs = (rounded / scale).round() != levels
        quotients = (before / scale)[differs]
        assert ((quotients - quotients.floor() - 0.5).abs() < 1e-3).all(), tensor
        assert differs.float().mean() < 1e-2, tensor
        return levels * scale  # What follows computes with the file's levels.

    for tensor, quantizer in network.quantizers():
        quantizer.register_forward_hook(
            lambda module, given, result, tensor=tensor: compare(tensor, module, given[0], result)
        )
    with torch.no_grad():
        logits = network(images).numpy()
    assert not any(names.values())  # Every one was compared.
    np.testing.assert_allclose(logits, found[exported.graph.output[0].name], rtol=1e-4, atol=1e-5)


def test_where_every_sum_is_exact_the_file_computes_bit_for_bit_what_training_does(
    folder: Path,
) -> None:
    """Scales are powers of two and biases multiples of them, so FP32 rounds nothing."""
    (folder / "exact.py").write_text(EXACT)
    model = f"{folder}/exact.py:build"
    network, identity = load_identified(ModelIdentity(model))
    source = open_source(str(folder / "pictures"), Preprocessing.for_size(8), split="train")
    trained = quantized_network(network, identity, Quantization(), source, seed=0)
    trained.load_scales(dict.fromkeys(trained.scales(), 2.0 ** (-5)))
    recorded = Provenance(
        model=replace(identity, weights_sha256=state_dict_sha256(network.state_dict())),
        preprocessing=source.preprocessing,
        trained_scales=trained.scales(),
    )
    weights = folder / "exact.safetensors"
    save_file(network.state_dict(), weights, {METADATA_KEY: recorded.dumps()})
    export_onnx(model, folder / "exact.onnx", weights=weights)
    exported = onnx.load(folder / "exact.onnx")
    images = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    found = run_as_written(exported, {"input": images.numpy()})
    levels: dict[str, list[Tensor]] = {tensor: [] for tensor in trained.scales()}
    for tensor, quantizer in trained.quantizers():
        quantizer.register_forward_hook(
            lambda module, _, result, to=levels[tensor]: to.append(result / module.scale)
        )
    with torch.no_grad():
        logits = trained(images).numpy()
    names = integers(exported)
    assert levels.keys() == names.keys()
    for tensor in names:
        for ours, name in zip(levels[tensor], names[tensor], strict=True):
            assert np.array_equal(ours.numpy(), found[name]), name
            assert len(np.unique(found[name])) > 20, name
    assert np.array_equal(logits, found[exported.graph.output[0].name])


def test_a_resumed_run_gives_what_an_uninterrupted_one_gives(
    folder: Path, trained: TrainResult
) -> None:
    run(folder, "resumed", epochs=1)
    resumed = run(folder, "resumed", resume=True)
    first, second = load_state(trained.weights), load_state(resumed.weights)
    assert all(torch.equal(first.state_dict[k], second.state_dict[k]) for k in first.state_dict)
    assert first.provenance is not None
    assert second.provenance is not None
    assert first.provenance.trained_scales == second.provenance.trained_scales


def test_a_run_from_trained_weights_goes_on_with_their_scales(
    folder: Path, trained: TrainResult
) -> None:
    again = run(folder, "again", weights=trained.weights, epochs=1, lr=1e-30)
    assert again.provenance.trained_scales == trained.provenance.trained_scales
    assert again.provenance.calibration["trained_epochs"] == 3
    pictures = str(folder / "pictures")
    anew = run(folder, "anew", weights=trained.weights, epochs=1, lr=1e-30, calibration=pictures)
    assert anew.provenance.trained_scales != trained.provenance.trained_scales
    assert anew.provenance.calibration["trained_epochs"] == 1


def test_validation_holds_the_file_against_what_training_saw(
    folder: Path, trained: TrainResult, exported: onnx.ModelProto
) -> None:
    report = validate(
        folder / "int8.onnx",
        reference=f"{folder}/network.py:build",
        weights=trained.weights,
        data=str(folder / "pictures"),
        batch_sizes=[2],
    )
    assert report.reference.endswith("rounded as in training")
    assert report.batches[0].outputs[0].error.snr_db > 40
    with pytest.raises(BadInput, match="rounded as training rounded"):
        validate(
            folder / "int8.onnx", reference=f"{folder}/network.py:build", weights=trained.weights,
            layers="all",
        )  # fmt: skip


def test_weights_that_record_no_number_of_classes_are_taken_for_those_of_the_data() -> None:
    asked = ModelIdentity("resnet20", num_classes=1000, weights="own.pth")
    assert with_classes(asked, 10, None).num_classes == 10
    with pytest.raises(BadInput, match="is for 1000 classes, the data have 10"):
        with_classes(asked, 10, Provenance(model=asked))


def test_what_does_not_go_with_it_is_refused(folder: Path, trained: TrainResult) -> None:
    model = f"{folder}/network.py:build"
    with pytest.raises(BadInput, match="fine-tunes a trained network"):
        run(folder, "none", weights=None)
    with pytest.raises(BadInput, match="FP32"):
        run(folder, "none", amp="bf16")
    with pytest.raises(BadInput, match="--calibration is for --quantize"):
        run(folder, "none", quantize=False, calibration=str(folder / "pictures"))
    with pytest.raises(BadInput, match=r"made with quantize percentile .* not none"):
        run(folder, "run", quantize=False, resume=True)
    with pytest.raises(BadInput, match="calibration would replace them"):
        export_onnx(
            model, folder / "no.onnx", weights=trained.weights, precision="int8",
            calibration=str(folder / "pictures"),
        )  # fmt: skip
    with pytest.raises(BadInput, match="not those of this ONNX graph"):
        export_onnx(model, folder / "no.onnx", weights=trained.weights, fuse=False)
    assert not (folder / "none").exists()
    assert not (folder / "no.onnx").exists()
