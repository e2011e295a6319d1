"""Checkpoints of published networks compute here what they compute there."""

import pytest
import torch
from published_networks import ResNet18
from torch import nn

from cbam_deploy.errors import BadInput
from cbam_deploy.models import apply_state, create_model, load_model, load_state
from cbam_deploy.models.naming import in_our_names, recognise
from cbam_deploy.provenance import ModelIdentity

# Origin, attention here, what is recognised, and a name that its checkpoints are known by.
ORIGINS = {
    "official": ("cbam", "the CBAM authors' repository", "cbam.ChannelGate.mlp.1.weight"),
    "ca_sa": ("cbam", "ca and sa", "ca.fc.0.weight"),
    "ca_sa_numbered": ("cbam", "ca and sa", "ca.fc1.weight"),
    "timm": ("cbam", "timm", "se.channel.fc1.weight"),
    "timm_se": ("se", "timm", "se.fc1.weight"),
    "plain": ("none", None, "conv1.weight"),
}


def lively(origin):
    """A network with weights and statistics far from neutral."""
    torch.manual_seed(0)
    model = ResNet18(origin).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def assert_equal_outputs(ours, theirs):
    x = torch.randn((2, 3, 64, 64), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found, expected = ours.double()(x.double()), theirs.double()(x.double())
    # Weights are FP32: a neutral BatchNorm in them scales by 1 within 2^-24 in each of 8 gates.
    assert (found - expected).abs().max() < 1e-6 * expected.abs().max()


@pytest.mark.parametrize("origin", ORIGINS)
def test_published_weights_give_equal_outputs(origin):
    attention, title, known_by = ORIGINS[origin]
    theirs = lively(origin)
    state = theirs.state_dict()
    assert f"layer1.0.{known_by}" in state
    ours = create_model("resnet18", attention=attention, seed=0).eval()
    naming = apply_state(ours, state, "published.pt")
    assert (naming.title if naming else None) == title
    assert_equal_outputs(ours, theirs)


def test_official_checkpoint_is_loaded_from_its_file(tmp_path):
    """Saved from DataParallel, under `state_dict`, as the authors' training script does."""
    theirs = lively("official")
    state = {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 90}, tmp_path / "published.pth")
    identity = ModelIdentity(
        "resnet18",
        attention="cbam",
        num_classes=1000,
        stem="imagenet",
        weights=str(tmp_path / "published.pth"),
    )
    assert_equal_outputs(load_model(identity), theirs)


def test_bias_before_a_batch_norm_is_folded_in():
    torch.manual_seed(0)
    conv, bn = nn.Conv2d(2, 1, 7), nn.BatchNorm2d(1).eval()
    nn.init.uniform_(bn.running_mean)
    theirs = nn.Sequential()
    theirs.conv, theirs.bn = conv, bn
    state = {f"b.cbam.SpatialGate.spatial.{k}": v for k, v in theirs.state_dict().items()}
    ours = in_our_names(state, recognise(state))
    folded = nn.Sequential(nn.Conv2d(2, 1, 7, bias=False), nn.BatchNorm2d(1)).eval()
    folded[0].load_state_dict({"weight": ours["b.gate.spatial.conv.weight"]})
    prefix = "b.gate.spatial.bn."
    folded[1].load_state_dict({k.removeprefix(prefix): v for k, v in ours.items() if prefix in k})
    x = torch.randn(1, 2, 9, 9)
    torch.testing.assert_close(folded(x), theirs(x))


def test_network_of_the_users_own_keeps_its_names():
    theirs = lively("ca_sa")
    ours = ResNet18("ca_sa").eval()
    assert apply_state(ours, theirs.state_dict(), "own.pt") is None
    assert_equal_outputs(ours, theirs)


def test_recognised_weights_of_another_size_are_refused():
    state = lively("timm").state_dict()
    state["layer1.0.se.spatial.conv.conv.weight"] = torch.zeros(1, 1, 7, 7)  # timm's light variant.
    with pytest.raises(BadInput, match=r"mis-shaped 1: layer1\.0\.gate\.spatial\.conv\.weight"):
        apply_state(create_model("resnet18"), state, "light.pt")


def test_prefix_of_data_parallel_is_taken_away(tmp_path):
    torch.save({f"module.{k}": v for k, v in lively("plain").state_dict().items()}, tmp_path / "p")
    assert "conv1.weight" in load_state(tmp_path / "p").state_dict
