"""The PyTorch side: the gate module, the zoo, gates for any CNN, checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from cbam_deploy.models.checkpoints import (
        Checkpoint,
        apply_state,
        load_state,
        state_dict_sha256,
    )
    from cbam_deploy.models.gate import AttentionGate
    from cbam_deploy.models.identity import (
        build_model,
        load_identified,
        load_model,
        resolve_identity,
        resolve_preprocessing,
    )
    from cbam_deploy.models.insertion import InsertedGates, insert_gates
    from cbam_deploy.models.zoo import create_model, default_image_size, list_models

__all__ = [
    "AttentionGate",
    "Checkpoint",
    "InsertedGates",
    "apply_state",
    "build_model",
    "create_model",
    "default_image_size",
    "insert_gates",
    "list_models",
    "load_identified",
    "load_model",
    "load_state",
    "resolve_identity",
    "resolve_preprocessing",
    "state_dict_sha256",
]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "checkpoints": ["Checkpoint", "apply_state", "load_state", "state_dict_sha256"],
        "gate": ["AttentionGate"],
        "identity": [
            "build_model",
            "load_identified",
            "load_model",
            "resolve_identity",
            "resolve_preprocessing",
        ],
        "insertion": ["InsertedGates", "insert_gates"],
        "zoo": ["create_model", "default_image_size", "list_models"],
    },
)
