"""Grad-CAM is the paper's: its weights are derivatives, its map their sum over the features."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cbam_deploy.errors import BadInput
from cbam_deploy.explain.grad_cam import grad_cam
from cbam_deploy.models import create_model


def network(name="resnet20", attention="cbam"):
    return create_model(name, attention=attention, num_classes=10, stem="cifar", seed=0).eval()


def pictures(count, size, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, size, size, generator=generator, dtype=dtype)


# Behind layer3 follow only a mean and a linear layer: derivatives are alike at all positions there.
@pytest.mark.parametrize(("layer", "channels", "side"), [("layer2", 32, 8), ("layer3", 64, 4)])
def test_weights_are_finite_differences_of_the_logit(layer, channels, side):
    model = network().double()
    images, classes = pictures(2, 16, torch.float64), torch.tensor([3, 8])
    found = grad_cam(model, images, classes, layer)
    step = 1e-6  # Truncation is of the order of its square, rounding of 1e-16 / step.

    def logits(channel, change):
        # Adding the same to all positions of a channel: the sum of its derivatives.
        def shift(module, inputs, output):
            return output + change * torch.eye(output.shape[1]).double()[channel][:, None, None]

        handle = model.get_submodule(layer).register_forward_hook(shift)
        with torch.no_grad():
            values = model(images).gather(1, classes[:, None])[:, 0]
        handle.remove()
        return values

    for channel in range(0, channels, 7):
        slope = (logits(channel, step) - logits(channel, -step)) / (2 * step) / side**2
        torch.testing.assert_close(found.weights[:, channel], slope, rtol=1e-7, atol=1e-9)


def test_the_map_is_the_positive_part_of_the_weighted_features():
    model = network().double()
    kept: dict[str, torch.Tensor] = {}
    model.layer3.register_forward_hook(lambda m, i, o: kept.update(features=o.detach()))
    found = grad_cam(model, pictures(2, 16, torch.float64), torch.tensor([0, 1]))
    expected = torch.einsum("nk,nkhw->nhw", found.weights, kept["features"]).clamp(min=0)
    torch.testing.assert_close(found.maps, expected)
    assert (found.maps > 0).any()


def test_behind_a_mean_and_a_linear_layer_the_weights_are_the_class_weights():
    # Section 3.1 of the Grad-CAM paper: CAM is this case of it.
    class Cam(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Conv2d(3, 5, 3)
            self.fc = nn.Linear(5, 4)

        def forward(self, x):
            return self.fc(self.features(x).mean((2, 3)))

    model = Cam().eval()
    found = grad_cam(model, pictures(2, 8), torch.tensor([2, 0]))
    torch.testing.assert_close(found.weights, model.fc.weight[[2, 0]].detach() / (6 * 6))


@pytest.mark.parametrize(
    ("name", "attention", "layer"),
    [
        ("resnet20", "cbam", "layer3"),
        ("resnet20", "none", "layer3"),
        ("resnet18", "se", "layer4"),
        ("mobilenet", "cbam", "blocks"),
    ],
)
def test_the_last_feature_map_is_found(name, attention, layer):
    found = grad_cam(network(name, attention), pictures(1, 64), torch.tensor([0]))
    assert found.layer == layer


def test_another_layer_can_be_named():
    found = grad_cam(network(), pictures(1, 16), torch.tensor([0]), layer="layer2")
    assert found.maps.shape == (1, 8, 8)


def test_pictures_do_not_change_each_others_maps():
    model, images, classes = network(), pictures(3, 16), torch.tensor([1, 2, 3])
    together = grad_cam(model, images, classes).maps
    alone = grad_cam(model, images[1:2], classes[1:2]).maps
    torch.testing.assert_close(together[1:2], alone)


def test_a_frozen_network_is_explained_and_gets_no_gradients():
    model = network().requires_grad_(False)
    with torch.no_grad():
        found = grad_cam(model, pictures(1, 16), torch.tensor([0]))
    assert found.weights.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not found.maps.requires_grad


@pytest.mark.parametrize(
    ("model", "size", "layer", "message"),
    [
        (network(), 16, "layer9", "no module 'layer9'"),
        (network(), 16, "fc", "fc gives no feature map"),
        (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), 8, None, "no module gives"),
        (nn.Conv2d(3, 3, 1), 8, None, "no classifier"),
    ],
)
def test_what_cannot_be_explained_is_refused(model, size, layer, message):
    with pytest.raises(BadInput, match=message):
        grad_cam(model, pictures(1, size), torch.tensor([0]), layer)


class Several(nn.Module):
    """A classifier that relies on the order in memory and returns more than logits."""

    def __init__(self, form):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.fc = nn.Linear(4 * 8 * 8, 5)
        self.form = form

    def forward(self, x):
        features = self.conv(x).view(len(x), -1)
        logits = self.fc(features)
        return {
            "pair": (logits, logits[:, :2]),
            "features first": (features, logits),
            "named": {"features": features, "logits": logits},
            "nested": {"out": [features, (logits,)]},
        }[self.form]


@pytest.mark.parametrize("form", ["pair", "features first", "named", "nested"])
def test_of_several_outputs_the_logits_are_explained(form):
    network = Several(form).eval()
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = grad_cam(network, images, torch.tensor([1, 4]), width=5)
    expected = network.fc(network.conv(images).flatten(1))
    assert torch.equal(found.logits, expected)


class Leaves(nn.Module):
    def forward(self, x):
        raise SystemExit(3)


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.conv(x).detach().mean((2, 3))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Leaves(), r"Leaves: running it on \[1, 3, 8, 8\] failed \(SystemExit: 3\)"),
        (Detached(), "do not depend on the output of conv"),
        (nn.Conv2d(3, 4, 3), r"it returns \[1, 4, 6, 6\]"),
    ],
)
def test_a_network_without_logits_to_explain_is_refused(network, message):
    with pytest.raises(BadInput, match=message):
        grad_cam(network, torch.zeros(1, 3, 8, 8), torch.tensor([0]))
