"""From what a person asked for to a model identity, and from the identity to the model.

One rule says what an option left out means: what the checkpoint's metadata records, else the
default. An option that contradicts the metadata is refused.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from cbam_deploy.errors import BadInput
from cbam_deploy.foreign_code import foreign_code
from cbam_deploy.gates.description import GateSpec
from cbam_deploy.models.checkpoint_names import GATE, NamedState, own_names
from cbam_deploy.models.checkpoints import (
    apply_state,
    load_state,
    state_dict_sha256,
)
from cbam_deploy.models.factory import call_factory, is_factory
from cbam_deploy.models.weight_check import check_values, tensors_of
from cbam_deploy.models.zoo import (
    build_network,
    default_image_size,
    seeded,
    with_defaults,
)
from cbam_deploy.preprocessing import Preprocessing
from cbam_deploy.provenance import ModelIdentity, Provenance

_log = logging.getLogger(__name__)
# What is of the checkpoint itself, whatever was recorded when it was made.
_OF_THE_CHECKPOINT = ("weights", "weights_sha256", "naming", "initial_gates")


def resolve_identity(asked: ModelIdentity) -> tuple[ModelIdentity, Provenance | None]:
    """Settle which model is meant.

    Returns:
        The identity, and the checkpoint's provenance where it has one. The hash of the weights and
        how they name gates are known once the network is: `load_identified`.

    Raises:
        BadInput: the model is unknown, the checkpoint cannot be read or contradicts an option, or
            options of the zoo are given for a factory.
    """
    if asked.initial_gates and asked.weights is None:
        raise BadInput(
            "without a checkpoint all weights are initial", "give --weights, or no --initial-gates"
        )
    provenance = load_state(asked.weights).provenance if asked.weights is not None else None
    if is_factory(asked.name):
        what = f"what {asked.name} builds"
        replace(asked, weights=None).refuse_options(what, "set it inside the factory")
        return asked, provenance
    recorded = provenance.model if provenance else None
    if recorded is None or is_factory(recorded.name):
        return with_defaults(asked), provenance
    _refuse_contradictions(asked, recorded)
    own = {name: getattr(asked, name) for name in _OF_THE_CHECKPOINT}
    return replace(recorded, **own), provenance


def resolve_preprocessing(
    identity: ModelIdentity, provenance: Provenance | None, *, image_size: int | None = None
) -> Preprocessing:
    """How a model's inputs are made: as recorded, else by the protocol at the stem's size.

    An `image_size` other than the recorded one scales the recorded resize with it.

    Raises:
        BadInput: `image_size` is not positive.
    """
    if image_size is not None and image_size < 1:
        raise BadInput(f"image size {image_size}", "give a positive number of pixels")
    recorded = provenance.preprocessing if provenance else None
    if recorded is None:
        return Preprocessing.for_size(image_size or default_image_size(identity.stem))
    if image_size is None or image_size == recorded.image_size:
        return recorded
    resize = round(recorded.resize * image_size / recorded.image_size)
    return replace(recorded, image_size=image_size, resize=resize, width=None)


def build_model(identity: ModelIdentity) -> nn.Module:
    """The identity's model with its initial weights, reproducible by its seed, in training mode.

    Raises:
        BadInput: the model is unknown or its factory fails.
    """
    with seeded(identity.seed):
        if is_factory(identity.name):
            return call_factory(identity.name)
        return build_network(identity)


def load_model(identity: ModelIdentity) -> nn.Module:
    """The identity's model with its weights, in evaluation mode.

    Raises:
        BadInput: the model cannot be built, or its weights are missing, unreadable, of another
            model, not those of `weights_sha256`, or no weights (`weight_check`).
    """
    return load_identified(identity)[0]


def load_identified(identity: ModelIdentity) -> tuple[nn.Module, ModelIdentity]:
    """As `load_model`, with the identity, complete with what the checkpoint turned out to be.

    Which weights of the file were taken is logged, where that was a choice.
    """
    model = build_model(identity)
    if identity.weights is not None:
        checkpoint = load_state(identity.weights, tensors_of(model))
        _check_hash(checkpoint.state_dict, identity, f"{identity.weights}: the weights")
        state_dict = checkpoint.state_dict
        identity = replace(identity, weights_sha256=state_dict_sha256(state_dict))
        if not is_factory(identity.name):
            named = own_names(state_dict, checkpoint.place)
            identity = replace(identity, naming=named.naming)
            state_dict = _zoo_state(model, named, identity)
        apply_state(model, state_dict, checkpoint.place)
        if checkpoint.account is not None:
            _log.warning("%s: %s", identity.weights, checkpoint.account)
    check_values(model, None, identity.name)
    if identity.weights is None:
        _check_hash(tensors_of(model), identity, f"{identity.name}: the initial weights")
    with foreign_code(f"{identity.name}: its eval()"):
        return model.eval(), identity


def _zoo_state(
    model: nn.Module, named: NamedState, identity: ModelIdentity
) -> dict[str, torch.Tensor]:
    """What goes into `model`; raises `BadInput` where its gates and the checkpoint's disagree."""
    own = model.state_dict()
    gates = {name: own[name] for name in own if GATE.search(name)}
    if identity.initial_gates:
        if named.has_gates:
            raise BadInput(
                f"{identity.weights}: has gates (naming: {named.naming}), so none stays initial",
                "leave --initial-gates out",
            )
        if not gates:
            raise BadInput(
                f"{identity.name} with attention none has no gates that could stay initial",
                "leave --initial-gates out",
            )
        return {**gates, **named.state_dict}
    if gates and not named.has_gates:
        raise BadInput(
            f"{identity.weights}: has no attention gates (naming: {named.naming}), the network has",
            "give --attention none; or, to train on, --initial-gates, which leaves the gates' "
            "weights as they are drawn",
        )
    return named.state_dict


def _check_hash(state_dict: dict[str, Any], identity: ModelIdentity, what: str) -> None:
    if identity.weights_sha256 is None:
        return
    if state_dict_sha256(state_dict) != identity.weights_sha256:
        raise BadInput(
            f"{what} are not those recorded (sha256 {identity.weights_sha256[:12]}…)",
            "give the original checkpoint with --weights, or export again",
        )


def _refuse_contradictions(asked: ModelIdentity, recorded: ModelIdentity) -> None:
    for key, value in {"name": asked.name, **asked.options}.items():
        have = getattr(recorded, key)
        if key not in _OF_THE_CHECKPOINT and value != have:
            label = "model" if key == "name" else key.replace("_", " ")
            was, is_ = (one.label if isinstance(one, GateSpec) else one for one in (have, value))
            raise BadInput(
                f"{asked.weights}: was trained with {label} {was}, not {is_}",
                "leave the option out to take what the checkpoint records",
            )
