"""One class per way to run an artefact, one interface."""

from __future__ import annotations

from pathlib import Path

from cbam_deploy.artefacts import Artefact, Engine, artefact_kind, open_engine, open_onnx
from cbam_deploy.errors import BadInput
from cbam_deploy.runtimes.base import Runner

ONNX_RUNTIMES = ("auto", "onnxruntime")


def open_runtime(
    artefact: str | Path | Artefact,
    *,
    runtime: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    checked: bool = False,
) -> Runner:
    """The runner for an artefact, chosen by its suffix; enter it to use it.

    Args:
        artefact: an ``.onnx`` file (ONNX Runtime), or an ``.engine`` (the TensorRT that its
            manifest names), by its path or as it was opened.
        runtime: refuse the artefact unless this one runs it; None or ``auto`` takes any.
        device: ``cpu`` or ``cuda``; by default the CPU for ONNX files, the GPU for engines.
        threads: CPU threads within one operator, ONNX Runtime's choice by default.
        checked: whether the ONNX file of that path was found sound before.

    Raises:
        BadInput: the file is missing, of no known kind, malformed, altered, has weights that are
            no numbers, or cannot be run as asked.
        MissingCapability: what it needs is not installed.
    """
    path = artefact.path if isinstance(artefact, Artefact) else Path(artefact)
    if artefact_kind(path) == "onnx":
        if runtime not in (None, *ONNX_RUNTIMES):
            raise BadInput(f"{path}: {runtime} does not run ONNX files", "build an engine from it")
        from cbam_deploy.runtimes.onnxruntime import OnnxRuntimeRunner

        if not (checked or isinstance(artefact, Artefact)):
            open_onnx(path)
        return OnnxRuntimeRunner(path, device, threads=threads)
    manifest = (artefact if isinstance(artefact, Engine) else open_engine(path)).manifest
    if runtime not in (None, "auto", manifest.runtime):
        raise BadInput(
            f"{path}: built by {manifest.runtime}, so {runtime} cannot run it", "leave it out"
        )
    if device not in (None, "cuda"):
        raise BadInput(f"{path}: engines run on a GPU, not on {device}", "leave --device out")
    from cbam_deploy.runtimes.tensorrt import TensorRTRunner

    return TensorRTRunner(path, manifest)
