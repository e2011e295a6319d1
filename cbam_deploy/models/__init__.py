"""What is deployed: the gate module, the zoo, gates for any CNN, checkpoints.

The names below are imported on first use: `models.spec` is needed where torch is not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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

_MODULES = {
    "AttentionGate": "gate",
    "Checkpoint": "checkpoints",
    "InsertedGates": "insertion",
    "apply_state": "checkpoints",
    "build_model": "identity",
    "create_model": "zoo",
    "default_image_size": "zoo",
    "insert_gates": "insertion",
    "list_models": "zoo",
    "load_identified": "identity",
    "load_model": "identity",
    "load_state": "checkpoints",
    "resolve_identity": "identity",
    "resolve_preprocessing": "identity",
    "state_dict_sha256": "checkpoints",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
