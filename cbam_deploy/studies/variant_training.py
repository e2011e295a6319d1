"""A variant of a study with one seed: train, export, build; nothing done earlier is done again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cbam_deploy.errors import BadInput, CheckFailed, MissingCapability
from cbam_deploy.exporters import export_onnx
from cbam_deploy.graphs.onnx_file import read_provenance
from cbam_deploy.machine import gpus
from cbam_deploy.models import load_state
from cbam_deploy.provenance import Provenance
from cbam_deploy.studies.result import SeedResult
from cbam_deploy.studies.variants import Variant
from cbam_deploy.training import train

_TARGET = "sm_89"  # What an engine is built for where no GPU says.


def run_folder(folder: Path, variant: Variant, seed: int) -> Path:
    """Where the training run of a cell lies."""
    return folder / "runs" / f"{variant.name}-{seed}"


def train_variant(
    folder: Path, variant: Variant, seed: int, settings: Mapping[str, Any]
) -> SeedResult:
    """Train `variant` with `seed`, or go on where an earlier run stopped.

    A run whose loss is no longer a number is a failed cell, not the end of the study.

    Raises:
        BadInput: the settings cannot work or differ from those of the earlier run, or the data have
            no held-out pictures.
    """
    place = run_folder(folder, variant, seed)
    try:
        trained = train(
            **settings, **variant.options(), output=place, seed=seed, resume=place.exists()
        )
    except CheckFailed as error:
        return SeedResult(seed, None, error.message)
    accuracy = trained.epochs[-1].val_accuracy
    if accuracy is None:
        raise BadInput(
            f"{settings['data']}: has no held-out pictures to judge variants by",
            "give digits, or a folder with train and val inside",
        )
    return SeedResult(seed, accuracy)


def export_variant(folder: Path, variant: Variant, seed: int, model: str) -> Path | None:
    """The ONNX file of a trained cell, exported unless it is there already; None if it failed."""
    weights = run_folder(folder, variant, seed) / "best.safetensors"
    if not weights.is_file():
        return None
    path = folder / f"{variant.name}.onnx"
    trained = load_state(weights).provenance
    if not (path.is_file() and trained and _hash(path) == _weights(trained)):
        export_onnx(model, path, weights=weights)
    return path


def _hash(path: Path) -> str | None:
    provenance = read_provenance(path)
    return _weights(provenance) if provenance else None


def _weights(provenance: Provenance) -> str | None:
    return provenance.model.weights_sha256 if provenance.model else None


def build_variant(onnx: Path) -> Path | None:
    """The engine of a file, for this machine's GPU where it has one; None without TensorRT."""
    from cbam_deploy.engines import build_engine

    path = onnx.with_suffix(".engine")
    try:
        build_engine(onnx, path, targets=() if gpus() else (_TARGET,))
    except MissingCapability:
        return None
    return path
