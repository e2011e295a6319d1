"""NETWORK on the command line: a checkpoint of `train`, MODEL=CHECKPOINT, or MODEL."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from cbam_deploy.errors import BadInput
from cbam_deploy.models import load_model, load_state, resolve_identity, resolve_preprocessing
from cbam_deploy.models.factory import is_factory
from cbam_deploy.preprocessing import Preprocessing
from cbam_deploy.preprocessing.choice import Asked, PictureInput, choose
from cbam_deploy.preprocessing.text import text_of
from cbam_deploy.provenance import ModelIdentity

_ATTENTION = {"none": "plain", "se": "SE", "cbam": "CBAM", None: ""}


@dataclass(frozen=True)
class Network:
    """A trained network to explain.

    Attributes:
        label: model and attention, such as ``resnet20 CBAM``.
        module: in evaluation mode.
        preprocessing: how its inputs are made.
        class_names: in the order of its logits; empty when unknown.
    """

    label: str
    module: nn.Module
    preprocessing: Preprocessing
    class_names: tuple[str, ...]


def open_networks(
    texts: Sequence[str], image_size: int | None, preprocessing: Asked | None = None
) -> tuple[Network, ...]:
    """Load each NETWORK; equal labels get the checkpoint's path added.

    Args:
        texts: of each.
        image_size: side of their pictures, in pixels; None for what is recorded, else the usual.
        preprocessing: of their pictures; None for what is recorded, else ImageNet's.

    Raises:
        BadInput: one cannot be loaded, or they want their pictures prepared differently, or by what
            makes no pictures that could be shown.
    """
    networks = [_open(text, image_size, preprocessing) for text in texts]
    for text, network in zip(texts, networks, strict=True):
        if network.preprocessing != networks[0].preprocessing:
            raise BadInput(
                f"{texts[0]} and {text} want pictures prepared differently",
                "explain them one by one",
            )
    labels = [network.label for network in networks]
    return tuple(
        replace(n, label=f"{n.label} {text}") if labels.count(n.label) > 1 else n
        for text, n in zip(texts, networks, strict=True)
    )


def _open(text: str, image_size: int | None, asked: Asked | None) -> Network:
    name, equals, weights = text.partition("=")
    if not equals and Path(text).is_file():
        name, weights = _recorded_name(text), text
    identity, provenance = resolve_identity(ModelIdentity(name, weights=weights or None))
    module = load_model(identity).float().eval()
    prepared = resolve_preprocessing(identity, provenance, image_size=image_size)
    recorded = provenance.preprocessing if provenance else None
    if asked is not None or is_factory(identity.name):
        sides = (f"{side}" for side in "HW") if image_size is None else prepared.frame
        prepared = choose(asked, recorded, PictureInput(name, "image", ("N", "C", *sides), {}))
    if prepared.layout == "nhwc" or prepared.function is not None:
        raise BadInput(
            f"{text}: {text_of(prepared)!r} makes no pictures [C, H, W] that could be explained",
            "describe it in steps, such as --preprocess 'letterbox 640, rgb, /255'",
        )
    return Network(
        label=_label(identity),
        module=module,
        preprocessing=prepared,
        class_names=provenance.class_names if provenance else (),
    )


def _recorded_name(path: str) -> str:
    provenance = load_state(path).provenance
    if provenance is None or provenance.model is None:
        raise BadInput(f"{path}: does not say which model it is of", f"write MODEL={path}")
    name = provenance.model.name
    if is_factory(name):
        raise BadInput(
            f"{path}: is of the factory {name}, which only you may have run",
            f"if you trust it, name it: {shlex.quote(f'{name}={path}')}",
        )
    return name


def _label(identity: ModelIdentity) -> str:
    trained = "" if identity.weights else " (initial weights)"
    return f"{identity.name} {_ATTENTION[identity.attention]}".strip() + trained
