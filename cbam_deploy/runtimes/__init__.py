"""One class per way to run a network, one interface, and the table of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, cast

from cbam_deploy.errors import BadInput
from cbam_deploy.machine import (
    CUDA_ORT,
    CUDA_TORCH,
    GPU,
    OPENVINO,
    ORT,
    POLYGRAPHY,
    TENSORRT,
    TENSORRT_LOADS,
    TENSORRT_RTX,
    TORCH,
    Need,
)

if TYPE_CHECKING:
    from cbam_deploy.artefacts import Artefact
    from cbam_deploy.runtimes.base import Runner


@dataclass(frozen=True)
class Runtime:
    """A runtime on one kind of device.

    Attributes:
        name: as ``--runtime`` takes it, and manifests record it.
        device: ``cpu`` or ``cuda``.
        does: what `doctor` calls it.
        needs: what must be here for it.
        suffix: of the files that it runs; None where a network is no file.
        runner: module of this package and class in it, made of path, device, threads and the names
            of values inside to return too.
        library: the module that a process has before its growth is counted as the memory of a
            network; None where the runner counts the device's memory itself.
    """

    name: str
    device: str
    does: str
    needs: tuple[Need, ...]
    suffix: str | None = None
    runner: str = ""
    library: str | None = None


_ORT_RUNNER, _TRT_RUNNER = "onnxruntime.OnnxRuntimeRunner", "tensorrt.TensorRTRunner"
_RTX_NEEDS = (GPU, POLYGRAPHY, TENSORRT_RTX, TORCH, CUDA_TORCH)
_TRT_NEEDS = (GPU, POLYGRAPHY, TENSORRT, TENSORRT_LOADS, TORCH, CUDA_TORCH)

# Of several that run a file, the first is taken unless another is asked for.
RUNTIMES = (
    Runtime(
        "pytorch", "cpu", "train and run PyTorch models on the CPU", (TORCH,), library="torch"
    ),
    Runtime("pytorch", "cuda", "run PyTorch models on a GPU", (GPU, TORCH, CUDA_TORCH)),
    Runtime(
        "onnxruntime", "cpu", "run ONNX files on the CPU", (ORT,), ".onnx", _ORT_RUNNER,
        library="onnxruntime",
    ),
    Runtime(
        "onnxruntime", "cuda", "run ONNX files on a GPU", (GPU, CUDA_ORT), ".onnx", _ORT_RUNNER
    ),
    Runtime(
        "openvino", "cpu", "run ONNX files in OpenVINO on the CPU", (OPENVINO,), ".onnx",
        "openvino.OpenVinoRunner", library="openvino",
    ),
    Runtime(
        "tensorrt-rtx", "cuda", "run TensorRT-RTX engines", _RTX_NEEDS, ".engine", _TRT_RUNNER
    ),
    Runtime("tensorrt", "cuda", "run TensorRT engines", _TRT_NEEDS, ".engine", _TRT_RUNNER),
)  # fmt: skip


def open_runtime(
    artefact: str | Path | Artefact,
    *,
    runtime: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    extra_outputs: Sequence[str] = (),
    checked: bool = False,
) -> Runner:
    """The runner for an artefact, chosen by its suffix; enter it to use it.

    Args:
        artefact: an ``.onnx`` file (ONNX Runtime, or OpenVINO where that is asked for), or an
            ``.engine`` (the TensorRT that its manifest names), by its path or as it was opened.
        runtime: refuse the artefact unless this one runs it; None or ``auto`` takes any.
        device: ``cpu`` or ``cuda``; by default the CPU for ONNX files, the GPU for engines.
        threads: CPU threads within one operator, the runtime's choice by default.
        extra_outputs: names of values inside an ONNX file to return too.
        checked: whether the ONNX file of that path was found sound before.

    Raises:
        BadInput: the file is missing, of no known kind, malformed, altered, has weights that are
            no numbers, or cannot be run as asked.
        MissingCapability: what it needs is not installed.
    """
    from cbam_deploy.artefacts import Artefact, Engine, artefact_kind, open_engine, open_onnx

    opened: Artefact | None = None
    if isinstance(artefact, Artefact):
        opened, path = artefact, artefact.path
    else:
        path = Path(artefact)
        if artefact_kind(path) == "engine":
            opened = open_engine(path)
        elif not checked:
            open_onnx(path)
    built_by = opened.manifest.runtime if isinstance(opened, Engine) else None
    row = _choose(path, built_by, runtime, device)
    module, _, name = row.runner.partition(".")
    runner = getattr(import_module(f"{__name__}.{module}"), name)
    return cast("Runner", runner.of(opened or path, device, threads, extra_outputs))


def process_library(runner: str) -> str | None:
    """`Runtime.library` of a runner's name such as ``onnxruntime-cpu``."""
    libraries = {f"{row.name}-{row.device}": row.library for row in RUNTIMES}
    return libraries.get(runner)


def _choose(path: Path, built_by: str | None, runtime: str | None, device: str | None) -> Runtime:
    """The row of the table that runs `path` as asked; raises `BadInput` where none does."""
    of_kind = (row for row in RUNTIMES if row.suffix == path.suffix)
    rows = [row for row in of_kind if built_by in (None, row.name)]
    fitting = [row for row in rows if runtime in (None, "auto", row.name)]
    if not fitting:
        names = dict.fromkeys(row.name for row in rows)
        raise BadInput(
            f"{path}: {runtime} does not run it, {' or '.join(names)} does",
            "leave the runtime out; build-engine makes engines of ONNX files",
        )
    for row in fitting:
        if device in (None, row.device):
            return row
    devices = dict.fromkeys(row.device for row in fitting)
    raise BadInput(
        f"{path}: {fitting[0].name} runs it on {' or '.join(devices)}, not on {device}",
        "leave the device out",
    )
