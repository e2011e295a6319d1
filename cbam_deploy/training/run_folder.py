"""What a training run keeps on disk: enough to resume it, and the best weights.

``best.safetensors`` has the weights of the best epoch with their provenance, ``last.pt`` what the
next epoch needs, ``history.json`` the losses and accuracies. Each is replaced whole after an
epoch, ``last.pt`` at the end: whatever interrupts, resuming repeats the current epoch only.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from cbam_deploy.errors import BadInput
from cbam_deploy.models.checkpoint_names import OWN
from cbam_deploy.models.checkpoints import load_state, state_dict_sha256
from cbam_deploy.models.factory import is_factory
from cbam_deploy.outputs import atomic_output, check_place, write_text
from cbam_deploy.provenance import METADATA_KEY, Provenance
from cbam_deploy.training.result import best_epoch
from cbam_deploy.training.resumption import HASH, Learner, Progress, content_sha256, read_last

BEST, LAST, HISTORY = "best.safetensors", "last.pt", "history.json"


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make the folder of a run, and keep other runs out of it meanwhile.

    The claim is a lock on the folder itself: it ends with the process, however that ends. File
    systems without such locks keep nobody out.

    Raises:
        BadInput: another run has the folder, or it cannot be made.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise BadInput(
                f"{folder}: is a file, not a folder", "give another folder with --output"
            )
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise BadInput(
            f"{folder}: cannot be made ({error.strerror})", "choose a folder you may write to"
        ) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(
                f"{folder}: another training is at work there",
                "let it finish, or give another folder",
            ) from None
        except OSError:
            pass
        yield
    finally:
        os.close(handle)


def open_run(
    folder: Path, configuration: dict[str, Any], learner: Learner, resume: bool
) -> Progress | None:
    """See that a claimed folder is that of a new run, or with `resume` read what one left there.

    Args:
        folder: of the run.
        configuration: flat JSON-ready data that must not change in a run.
        learner: what the earlier run's state has to fit.
        resume: go on with an earlier run; it may not have come to its first epoch's end.

    Returns:
        Where the earlier run stands, None at the start.

    Raises:
        BadInput: there is a run and `resume` is not asked for, or it has another configuration,
            or its files are damaged or altered.
    """
    if not resume:
        if any((folder / name).exists() for name in (BEST, LAST, HISTORY)):
            raise BadInput(
                f"{folder}: has an earlier training run", "--resume it, or give another folder"
            )
        return None
    for name in (BEST, LAST, HISTORY):
        check_place(folder / name)
    if not (folder / LAST).exists():
        return None
    progress = read_last(folder / LAST, configuration, learner)
    try:
        load_state(folder / BEST)
    except BadInput as error:
        raise BadInput(
            f"{error.message}; the best weights so far are lost",
            f"start in another folder, from these weights with --weights {folder / LAST}",
        ) from error
    return progress


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
            metadata = _metadata(provenance, BEST, progress)
            temporary.write_bytes(save(progress.model, metadata))
    history = {"schema_version": 1, "configuration": configuration, "epochs": epochs}
    write_text(folder / HISTORY, json.dumps(history, indent=1) + "\n")
    state: dict[str, Any] = {
        "model": progress.model,
        "optimizer": progress.optimizer,
        "epochs": epochs,
        "precision": progress.precision,
        "configuration": configuration,
    }
    if progress.scales:
        state["scales"] = progress.scales
    state[HASH] = content_sha256(state)
    state["metadata"] = _metadata(provenance, LAST, progress)
    # Through memory, so that a full disk is an OSError as for every other file.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with atomic_output(folder / LAST) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def _metadata(provenance: Provenance, name: str, progress: Progress) -> dict[str, str]:
    identity, calibration = provenance.model, provenance.calibration
    if identity is not None:
        identity = replace(
            identity,
            weights=name,
            weights_sha256=state_dict_sha256(progress.model),
            naming=None if is_factory(identity.name) else OWN,
            initial_gates=False,
        )
    if progress.scales:
        before = calibration.get("trained_epochs")
        epochs = (before if isinstance(before, int) else 0) + len(progress.epochs)
        calibration = {**calibration, "trained_epochs": epochs}
    recorded = replace(
        provenance, model=identity, calibration=calibration, trained_scales=progress.scales
    )
    return {METADATA_KEY: recorded.dumps()}
