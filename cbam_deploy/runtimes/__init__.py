"""One class per way to run an artefact, one interface."""

from __future__ import annotations

from pathlib import Path

from cbam_deploy.errors import BadInput
from cbam_deploy.runtimes.base import Runner

ONNX_RUNTIMES = ("auto", "onnxruntime")


def open_runtime(
    artefact: str | Path,
    *,
    runtime: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    checked: bool = False,
) -> Runner:
    """The runner for an artefact, chosen by its suffix; enter it to use it.

    Args:
        artefact: an ``.onnx`` file (ONNX Runtime), or an ``.engine`` (the TensorRT that its
            manifest names).
        runtime: refuse the artefact unless this one runs it; None or ``auto`` takes any.
        device: ``cpu`` or ``cuda``; by default the CPU for ONNX files, the GPU for engines.
        threads: CPU threads within one operator, ONNX Runtime's choice by default.
        checked: whether the file was found well-formed, with sound weights, before.

    Raises:
        BadInput: the file is missing, of no known kind, malformed, altered, has weights that are
            no numbers, or cannot be run as asked.
        MissingCapability: what it needs is not installed.
    """
    path = Path(artefact)
    if not path.is_file():
        raise BadInput(f"{path}: no such file", "check the path")
    if path.suffix == ".onnx":
        if runtime not in (None, *ONNX_RUNTIMES):
            raise BadInput(f"{path}: {runtime} does not run ONNX files", "build an engine from it")
        from cbam_deploy.graphs.onnx_file import read_model
        from cbam_deploy.graphs.weights import check_weights
        from cbam_deploy.runtimes.onnxruntime import OnnxRuntimeRunner

        if not checked:
            check_weights(read_model(path), path)
        return OnnxRuntimeRunner(path, device, threads=threads)
    if path.suffix == ".engine":
        return _open_engine(path, runtime, device)
    raise BadInput(
        f"{path}: neither an .onnx nor an .engine file",
        "give an artefact of export or build-engine",
    )


def _open_engine(path: Path, runtime: str | None, device: str | None) -> Runner:
    from cbam_deploy.engines.manifest import read_manifest

    built_by = read_manifest(path, verify=False).runtime
    if runtime not in (None, "auto", built_by):
        raise BadInput(f"{path}: built by {built_by}, so {runtime} cannot run it", "leave it out")
    if device not in (None, "cuda"):
        raise BadInput(f"{path}: engines run on a GPU, not on {device}", "leave --device out")
    from cbam_deploy.runtimes.tensorrt import TensorRTRunner

    return TensorRTRunner(path)
