"""The PyTorch model behind an artefact, as far as a file may say it.

What a file records is data, never an instruction. A network of the zoo with initial weights is our
own code, and is rebuilt from it; a factory is imported, and a checkpoint opened, only when the
person names it.
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from cbam_deploy.errors import BadInput
from cbam_deploy.models.checkpoints import load_state, state_dict_sha256
from cbam_deploy.models.factory import is_factory
from cbam_deploy.models.identity import resolve_identity
from cbam_deploy.provenance import ModelIdentity, Provenance


def reference_identity(
    artefact: str | Path,
    provenance: Provenance | None,
    reference: str | None = None,
    weights: str | Path | None = None,
) -> ModelIdentity:
    """The model that `artefact` is held against.

    What a MODEL string leaves open (attention, stem, number of classes) is as recorded where the
    provenance names the same model, else as `resolve_identity` has it.

    Args:
        artefact: the file, for messages.
        provenance: what it says of itself.
        reference: MODEL as the person named it; None for the recorded one, if that is of the zoo.
        weights: checkpoint as the person named it; None for initial weights. It may be another
            than the recorded one.

    Raises:
        BadInput: nothing says what the model is, or the file names a factory or a checkpoint that
            the person did not name.
    """
    recorded = provenance.model if provenance else None
    if reference is None and recorded is None:
        raise BadInput(
            f"{artefact}: does not say which PyTorch model it comes from",
            "name it with --reference MODEL, and its checkpoint with --weights FILE",
        )
    checkpoint = None if weights is None else str(weights)
    if recorded is None or reference not in (None, recorded.name):
        assert reference is not None
        return resolve_identity(ModelIdentity(reference, weights=checkpoint))[0]
    needed = []
    if reference is None and is_factory(recorded.name):
        needed.append(("factory", "reference", recorded.name))
    if recorded.weights is not None and checkpoint is None:
        needed.append(("checkpoint", "weights", recorded.weights))
    if needed:
        things = " and ".join(f"the {kind} {text}" for kind, _, text in needed)
        options = " ".join(f"--{option} {shlex.quote(text)}" for _, option, text in needed)
        raise BadInput(
            f"{artefact}: was made from {things}, which only you may have run or opened",
            f"if you trust it, name it: {options}",
        )
    return recorded if checkpoint is None else _with_weights(recorded, checkpoint)


def _with_weights(recorded: ModelIdentity, checkpoint: str) -> ModelIdentity:
    """`recorded` with the weights of `checkpoint`, by whatever path, or with other ones."""
    if recorded.weights is not None and Path(recorded.weights) == Path(checkpoint):
        return recorded
    sha256 = state_dict_sha256(load_state(checkpoint).state_dict)
    if recorded.weights is not None and sha256 == recorded.weights_sha256:
        return replace(recorded, weights=checkpoint)
    return replace(
        recorded, weights=checkpoint, weights_sha256=None, naming=None, initial_gates=False
    )
