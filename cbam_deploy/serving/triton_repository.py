"""What Triton's model repository holds: a folder for each model, its configuration and versions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cbam_deploy.artefacts import Artefact
from cbam_deploy.numerics.tensors import Feeds
from cbam_deploy.plugins.native_library import LIBRARY
from cbam_deploy.preprocessing import Preprocessing
from cbam_deploy.serving.files import Files, artefact_files, label_lines
from cbam_deploy.serving.triton_config import (
    LABELS,
    MODEL_FILES,
    Backend,
    as_text,
    warmup_file,
)

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

_SERVER_MODELS = Path(__file__).parent / "server_models"
_PACKAGE = Path(__file__).parents[1]
# What the model that prepares pictures imports of this package, and the packages it lies in.
_MODULES = (
    "errors.py",
    "data/network_input.py",
    "data/pictures.py",
    "numerics/tensors.py",
    "preprocessing/__init__.py",
    "preprocessing/description.py",
)
_EMPTY = ("__init__.py", "data/__init__.py", "numerics/__init__.py")


def network_files(
    config: ModelConfig,
    artefact: Artefact,
    backend: Backend,
    version: int,
    *,
    labels: Sequence[str] = (),
    sample: Feeds | None = None,
    library: Path | None = None,
) -> Files:
    """The model of an artefact.

    Args:
        config: its configuration.
        artefact: what is served.
        backend: what runs it.
        version: number of this version.
        labels: names of the classes, if they are known.
        sample: of each input for the warm-up, without its batch axis where Triton adds that.
        library: plugin library that the artefact needs beside it.
    """
    name, place = config.name, f"{config.name}/{version}"
    runs = "onnxruntime" if backend == "python" else backend
    files = artefact_files(artefact, f"{place}/{MODEL_FILES[runs]}")
    if backend == "python":
        files[f"{place}/{MODEL_FILES[backend]}"] = _SERVER_MODELS / "onnxruntime_model.py"
    if library is not None:
        files[f"{name}/{LIBRARY}"] = library
    if labels:
        files[f"{name}/{LABELS}"] = label_lines(labels)
    for fed, array in (sample or {}).items():
        data = np.ascontiguousarray(array).tobytes()
        files[f"{name}/warmup/{warmup_file(config, fed)}"] = data
    files[f"{name}/config.pbtxt"] = as_text(config)
    return files


def preprocessing_files(config: ModelConfig, preprocessing: Preprocessing, version: int) -> Files:
    """The model that makes a network's input from encoded pictures."""
    place = f"{config.name}/{version}"
    files: Files = {f"{place}/cbam_deploy/{module}": "" for module in _EMPTY}
    files |= {f"{place}/cbam_deploy/{module}": _PACKAGE / module for module in _MODULES}
    files[f"{place}/preprocessing.json"] = json.dumps(asdict(preprocessing), indent=2) + "\n"
    files[f"{place}/{MODEL_FILES['python']}"] = _SERVER_MODELS / "preprocessing_model.py"
    files[f"{config.name}/config.pbtxt"] = as_text(config)
    return files


def ensemble_files(config: ModelConfig, version: int, labels: Sequence[str]) -> Files:
    """The model that is two others in a row; its version is an empty folder."""
    files: Files = {f"{config.name}/{version}/": ""}
    if labels:
        files[f"{config.name}/{LABELS}"] = label_lines(labels)
    files[f"{config.name}/config.pbtxt"] = as_text(config)
    return files
