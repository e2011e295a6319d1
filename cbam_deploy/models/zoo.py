"""The networks that come along: a name is a configuration, attention is an argument."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import cast, get_args

import torch
from torch import nn

from cbam_deploy.errors import BadInput
from cbam_deploy.gates.description import CBAM, SE, GateSpec
from cbam_deploy.models.initialization import settle
from cbam_deploy.models.mobilenet import MobileNet
from cbam_deploy.models.resnet import ResNet, ResNetConfig, Stem
from cbam_deploy.provenance import ModelIdentity

ATTENTIONS = ("cbam", "se", "none")
STEMS = get_args(Stem)

_RESNETS = {
    # He et al., table 1.
    "resnet18": ResNetConfig("basic", (2, 2, 2, 2)),
    "resnet34": ResNetConfig("basic", (3, 4, 6, 3)),
    "resnet50": ResNetConfig("bottleneck", (3, 4, 6, 3)),
    "resnet101": ResNetConfig("bottleneck", (3, 4, 23, 3)),
    "resnet152": ResNetConfig("bottleneck", (3, 8, 36, 3)),
    # Xie et al., table 1: 32 groups of 4 channels.
    "resnext50_32x4d": ResNetConfig("bottleneck", (3, 4, 6, 3), groups=32, width_per_group=4),
    "resnext101_32x4d": ResNetConfig("bottleneck", (3, 4, 23, 3), groups=32, width_per_group=4),
    # CBAM paper, table 4: ResNet-18 with every stage widened.
    "wide_resnet18_1_5": ResNetConfig("basic", (2, 2, 2, 2), widths=(96, 192, 384, 768)),
    "wide_resnet18_2_0": ResNetConfig("basic", (2, 2, 2, 2), widths=(128, 256, 512, 1024)),
    # He et al., section 4.2, with projections where the width changes; of 8 layers it is the image
    # classifier of MLPerf Tiny (Banbury et al., 2021).
    "resnet8": ResNetConfig("basic", (1, 1, 1), widths=(16, 32, 64), stem_width=16),
    "resnet20": ResNetConfig("basic", (3, 3, 3), widths=(16, 32, 64), stem_width=16),
}
_SMALL_PICTURES_ONLY = ("resnet8", "resnet20")


def list_models() -> tuple[str, ...]:
    """Names of the networks that `create_model` builds."""
    return (*_RESNETS, "mobilenet")


def create_model(
    name: str,
    *,
    attention: str = "cbam",
    num_classes: int = 1000,
    stem: str | None = None,
    gate: GateSpec | None = None,
    seed: int | None = None,
) -> nn.Module:
    """Build a network with initial weights, in training mode.

    Args:
        name: one of `list_models`.
        attention: ``cbam``, ``se`` or ``none``.
        num_classes: outputs of the classifier.
        stem: ``imagenet`` or ``cifar``; None takes the network's own.
        gate: another variant of the gate than the one `attention` stands for.
        seed: makes the initial weights reproducible and leaves torch's generator as it was; None
            draws them from torch's generator.

    Returns:
        A module from pictures [N, 3, H, W] float32 to logits [N, num_classes].

    Raises:
        BadInput: a name or value outside these, or a combination that cannot work.
    """
    asked = ModelIdentity(name, attention, gate, num_classes, stem)
    with seeded(seed):
        return build_network(asked)


def build_network(asked: ModelIdentity) -> nn.Module:
    """As `create_model`; the initial weights are drawn from torch's generator."""
    identity = with_defaults(asked)
    options = (identity.gate, cast(int, identity.num_classes), cast(Stem, identity.stem))
    config = _RESNETS.get(identity.name)
    model = MobileNet(*options) if config is None else ResNet(config, *options)
    settle(model)
    return model


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Let torch draw by `seed`, where there is one, and leave its generator as it was."""
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        yield


def with_defaults(asked: ModelIdentity) -> ModelIdentity:
    """A network of the zoo with all that was left open: CBAM, 1000 classes, its own stem.

    Raises:
        BadInput: a name or value that there is not, or a combination that cannot work.
    """
    check_name(asked.name)
    small = asked.name in _SMALL_PICTURES_ONLY
    attention = "cbam" if asked.attention is None else asked.attention
    gate = gate_for(attention, asked.gate)
    classes = 1000 if asked.num_classes is None else asked.num_classes
    stem = asked.stem or ("cifar" if small else "imagenet")
    if classes < 1:
        raise BadInput(f"{classes} classes", "give a positive number of classes")
    if stem not in STEMS:
        raise BadInput(f"stem {stem!r} is unknown", f"one of {', '.join(STEMS)}")
    if small and stem != "cifar":
        raise BadInput(f"{asked.name} is made for small pictures only", "use stem cifar")
    return replace(asked, attention=attention, gate=gate, num_classes=classes, stem=stem)


def default_image_size(stem: str | None) -> int:
    """Side in pixels of the pictures a stem is made for; a factory's (None) as ImageNet's."""
    return 32 if stem == "cifar" else 224


def gate_for(attention: str, gate: GateSpec | None = None) -> GateSpec | None:
    """The gate that `attention` stands for, or `gate` where it is a variant of that.

    Raises:
        BadInput: `attention` is unknown, or `gate` is not of its kind.
    """
    if attention not in ATTENTIONS:
        raise BadInput(f"attention {attention!r} is unknown", f"one of {', '.join(ATTENTIONS)}")
    if attention == "none":
        if gate is not None:
            raise BadInput("attention none takes no gate variant", "use attention cbam or se")
        return None
    if gate is None:
        return CBAM if attention == "cbam" else SE
    if attention == "se" and (gate.arrangement, gate.channel_pool) != ("channel", "avg"):
        raise BadInput(f"{gate} is not Squeeze-and-Excitation", "use attention cbam for it")
    return gate


def check_name(name: str) -> None:
    """Raise `BadInput`, with the closest names as hint, where the zoo has no `name`."""
    if name not in list_models():
        close = difflib.get_close_matches(name.lower(), list_models(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else ", ".join(list_models())
        raise BadInput(
            f"model {name!r} is unknown",
            f"{hint}; models of your own: package.module:factory or path/file.py:factory",
        )
