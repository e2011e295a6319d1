"""What a training run keeps on disk: enough to resume it, and the best weights.

``best.safetensors`` has the weights of the best epoch with their provenance, ``last.pt`` what the
next epoch needs, ``history.json`` the losses and accuracies. Each is replaced whole after an
epoch, ``last.pt`` at the end: whatever interrupts, resuming repeats the current epoch only.
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cbam_deploy.errors import BadInput
from cbam_deploy.models.checkpoint_names import OWN
from cbam_deploy.models.checkpoints import load_torch_file, state_dict_sha256
from cbam_deploy.models.factory import is_factory
from cbam_deploy.outputs import atomic_output, write_text
from cbam_deploy.provenance import METADATA_KEY, Provenance
from cbam_deploy.training.result import Epoch, best_epoch

BEST, LAST, HISTORY = "best.safetensors", "last.pt", "history.json"


@dataclass(frozen=True)
class Progress:
    """Where a run stands after an epoch: weights, optimizer state and the epochs so far.

    `precision` is the state of mixed precision, empty where that has none.
    """

    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    epochs: tuple[Epoch, ...]
    precision: dict[str, Any] = field(default_factory=dict)


def open_run(folder: Path, configuration: dict[str, Any], resume: bool) -> Progress | None:
    """Make the folder of a new run, or read what an earlier one with `resume` left there.

    Args:
        folder: of the run.
        configuration: flat JSON-ready data that must not change in a run.
        resume: go on with an earlier run; it may not have come to its first epoch's end.

    Returns:
        Where the earlier run stands, None at the start.

    Raises:
        BadInput: there is a run and `resume` is not asked for, or it has another configuration,
            or its files are damaged, or the folder cannot be made.
    """
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder}: is a file, not a folder", "give another folder with --output")
    if not resume and any((folder / name).exists() for name in (BEST, LAST, HISTORY)):
        raise BadInput(
            f"{folder}: has an earlier training run", "--resume it, or give another folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(
            f"{folder}: cannot be made ({error.strerror})", "choose a folder you may write to"
        ) from error
    last = folder / LAST
    return _read_last(last, configuration) if resume and last.exists() else None


def save_epoch(
    folder: Path, progress: Progress, configuration: dict[str, Any], provenance: Provenance
) -> None:
    """Write the files of the epoch just done; the best weights only if it is the best yet.

    Args:
        folder: of the run.
        progress: where the run stands after the epoch.
        configuration: as given to `open_run`.
        provenance: of the model; the weights' file and hash are filled in here.

    Raises:
        BadInput: the folder cannot be written.
    """
    from safetensors.torch import save

    epochs = [asdict(epoch) for epoch in progress.epochs]
    if best_epoch(progress.epochs) is progress.epochs[-1]:
        with atomic_output(folder / BEST) as temporary:
            metadata = _metadata(provenance, BEST, progress.model)
            temporary.write_bytes(save(progress.model, metadata))
    history = {"schema_version": 1, "configuration": configuration, "epochs": epochs}
    write_text(folder / HISTORY, json.dumps(history, indent=1) + "\n")
    state = {
        "model": progress.model,
        "optimizer": progress.optimizer,
        "epochs": epochs,
        "precision": progress.precision,
        "configuration": configuration,
        "metadata": _metadata(provenance, LAST, progress.model),
    }
    # Through memory, so that a full disk is an OSError as for every other file.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with atomic_output(folder / LAST) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def _metadata(provenance: Provenance, name: str, state: dict[str, Tensor]) -> dict[str, str]:
    identity = provenance.model
    if identity is not None:
        identity = replace(
            identity,
            weights=name,
            weights_sha256=state_dict_sha256(state),
            naming=None if is_factory(identity.name) else OWN,
            initial_gates=False,
        )
    return {METADATA_KEY: provenance.with_(model=identity).dumps()}


def _read_last(path: Path, configuration: dict[str, Any]) -> Progress:
    state = load_torch_file(path)
    try:
        epochs = tuple(Epoch(**epoch) for epoch in state["epochs"])
        progress = Progress(state["model"], state["optimizer"], epochs, state.get("precision", {}))
        before = {"amp": "none", **state["configuration"]}  # Older runs knew no mixed precision.
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise BadInput(f"{path}: is not from a training run", "start in another folder") from error
    for key, value in configuration.items():
        if before.get(key) != value:
            raise BadInput(
                f"{path}: the run was made with {key} {before.get(key)}, not {value}",
                "resume with the same options, or start in another folder",
            )
    return progress
