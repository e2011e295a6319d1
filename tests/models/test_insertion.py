"""Gates go into networks that know nothing of them, whose weights and names stay what they were."""

import copy
import pickle

import onnx
import onnxruntime
import pytest
import torch
from foreign_networks import NETWORKS, SIZE, Depthwise, Detector, Plain, UNet
from torch import nn

from cbam_deploy.engine import build_engine
from cbam_deploy.errors import BadInput
from cbam_deploy.exporters import export_onnx, fuse
from cbam_deploy.models import insert_gates
from cbam_deploy.models.gate import AttentionGate
from cbam_deploy.models.spec import CBAM, SE

EXAMPLE = torch.zeros((2, 3, SIZE, SIZE))


def build(kind):
    torch.manual_seed(0)
    return kind().eval()


def gates(model):
    return [module for module in model.modules() if isinstance(module, AttentionGate)]


@pytest.mark.parametrize("kind", NETWORKS)
def test_gates_go_where_they_are_wanted(kind):
    where, count = NETWORKS[kind]
    model = build(kind)
    names = insert_gates(model, CBAM, where, example=EXAMPLE)
    assert len(names) == len(gates(model)) == count
    assert all(isinstance(model.get_submodule(name), AttentionGate) for name in names)


@pytest.mark.parametrize("kind", NETWORKS)
def test_weights_without_gates_still_fit(kind):
    before = build(kind).state_dict()
    model = build(kind)
    names = insert_gates(model, CBAM, NETWORKS[kind][0], example=EXAMPLE)
    for key, value in before.items():
        assert torch.equal(model.state_dict()[key], value)
    missing, unexpected = model.load_state_dict(before, strict=False)
    assert unexpected == []
    assert {key.rpartition(".gate.")[0] + ".gate" for key in missing} == set(names)


@pytest.mark.parametrize("kind", NETWORKS)
def test_gates_refine_the_maps(kind):
    """An open gate changes nothing, a shut one shuts its map off."""
    model = build(kind)
    plain = build(kind)
    insert_gates(model, SE, NETWORKS[kind][0], example=EXAMPLE)
    x = torch.randn((2, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(1))
    for gate in gates(model):
        nn.init.zeros_(gate.channel.expand.weight)
        nn.init.constant_(gate.channel.expand.bias, 100.0)
    for ours, theirs in zip(leaves(model(x)), leaves(plain(x)), strict=True):
        torch.testing.assert_close(ours, theirs)
    for gate in gates(model):
        nn.init.constant_(gate.channel.expand.bias, -100.0)
    for ours, theirs in zip(leaves(model(x)), leaves(plain(x)), strict=True):
        assert not torch.allclose(ours, theirs)


def leaves(outputs):
    return outputs if isinstance(outputs, tuple) else (outputs,)


def test_last_normalization_of_a_block_is_not_that_of_its_shortcut():
    model = build(Detector)
    names = insert_gates(model, CBAM, "blocks", example=EXAMPLE)
    assert names == ("layer1.bn2.gate", "layer2.bn2.gate")
    model = build(Depthwise)
    names = insert_gates(model, CBAM, "blocks", example=EXAMPLE)
    assert names == ("blocks.0.body.3.gate", "blocks.2.body.3.gate")


def test_gate_behind_a_sequence_is_behind_its_last_module():
    model = build(UNet)
    assert insert_gates(model, CBAM, ["down.1"], example=EXAMPLE) == ("down.1.2.gate",)
    assert len(model.down[1]) == 3


def test_network_with_gates_can_be_copied_and_pickled():
    model = build(Plain)
    insert_gates(model, CBAM, "stages", example=EXAMPLE)
    expected = model(EXAMPLE + 1)
    assert torch.equal(copy.deepcopy(model)(EXAMPLE + 1), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(EXAMPLE + 1), expected)


def test_seed_decides_the_weights_and_leaves_torchs_state():
    state = torch.get_rng_state()
    models = [build(Plain) for _ in range(2)]
    torch.set_rng_state(state)
    for model in models:
        insert_gates(model, CBAM, "stages", example=EXAMPLE, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    for ours, theirs in zip(*(model.state_dict().values() for model in models), strict=True):
        assert torch.equal(ours, theirs)


def test_training_mode_stays():
    model = build(Detector).train()
    insert_gates(model, CBAM, "blocks", example=EXAMPLE)
    assert all(module.training for module in model.modules())
    assert model.stem[1].num_batches_tracked == 0


@pytest.mark.parametrize(
    ("kind", "where", "why"),
    [
        (Plain, "blocks", "no blocks that are recognised"),
        (Plain, "somewhere", "somewhere"),
        (Plain, ["features.99"], "no module 'features.99'"),
        (Plain, ["classifier"], "gives no map"),
        (UNet, ["up"], "runs 0 times"),
    ],
)
def test_places_that_cannot_have_a_gate_are_named(kind, where, why):
    model = build(kind)
    with pytest.raises(BadInput, match=why):
        insert_gates(model, CBAM, where, example=EXAMPLE)
    assert gates(model) == []


def test_second_gate_in_one_place_is_refused():
    model = build(Detector)
    insert_gates(model, CBAM, "blocks", example=EXAMPLE)
    with pytest.raises(BadInput, match=r"layer1\.bn2 has a gate already"):
        insert_gates(model, CBAM, ["layer1.bn2"], example=EXAMPLE)


@pytest.mark.parametrize("kind", NETWORKS)
def test_inserted_gates_are_exported_fused_and_built(kind, tmp_path):
    """export_onnx compares the file with PyTorch at two batches."""
    where, count = NETWORKS[kind]
    model = build(kind)
    insert_gates(model, CBAM, where, example=EXAMPLE, seed=0)
    result = export_onnx(model, tmp_path / "model.onnx", image_size=SIZE)
    assert sum(result.gates.values()) == count
    assert result.refused == ()
    if kind is Detector:
        assert result.gates == {"CbamGateAddRelu": 2}
    built = build_engine(result.path, tmp_path / "model.engine", targets=["sm_89"])
    assert built.path.stat().st_size > 0


def test_inserted_gates_work_on_pictures_of_any_size(tmp_path):
    model = build(UNet)
    insert_gates(model, CBAM, NETWORKS[UNet][0], example=EXAMPLE, seed=0)
    sizes = {0: torch.export.Dim("batch"), 2: 4 * torch.export.Dim("h", min=2)}
    sizes[3] = 4 * torch.export.Dim("w", min=2)
    program = torch.onnx.export(
        model, (EXAMPLE,), dynamo=True, dynamic_shapes=(sizes,), verbose=False
    )
    program.save(tmp_path / "any.onnx")
    report = fuse(tmp_path / "any.onnx", tmp_path / "fused.onnx")
    assert [op for _, op in report.fused] == ["CbamGate"] * 4
    onnx.checker.check_model(tmp_path / "fused.onnx", full_check=True)
    session = onnxruntime.InferenceSession(tmp_path / "fused.onnx")
    x = torch.randn((3, 3, 20, 44), generator=torch.Generator().manual_seed(2))
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.inference_mode():
        expected = copy.deepcopy(model).double()(x.double())
    assert (torch.from_numpy(found) - expected).abs().max() < 1e-5 * expected.abs().max()
