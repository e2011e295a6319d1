"""Part: whether TensorRT-RTX runs on this GPU, and how fast its engines are.

Takes every ``.engine`` of the folder given by ``--engines``, and builds one from every ``.onnx``.
"""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.gpu_check.job import Job, Skipped

BATCHES = (1, 8, 32)
RUNS = 30
_SECONDS_PER_FILE = 5.0


def run(job: Job) -> None:
    """Time the engines at the batches of their profiles."""
    folder = job.options.engines
    if job.dry:
        for path in _files(folder) if folder else []:
            job.row(file=path.name)
        return
    try:
        version = importlib.import_module("tensorrt_rtx").__version__
        importlib.import_module("polygraphy")
    except ImportError as error:
        raise Skipped(f"TensorRT-RTX with Polygraphy is not installed ({error})") from error
    job.note(f"TensorRT-RTX {version}.")
    if folder is None:
        raise Skipped("no engines were given (--engines DIR)")
    for path in job.in_time(_files(folder)):
        try:
            _measure(job, path)
        except Exception as error:
            job.row(file=path.name, problem=f"{type(error).__name__}: {error}")


def _files(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.engine"), *folder.glob("*.onnx")])


def _measure(job: Job, path: Path) -> None:
    from cbam_deploy.engines.build import build_engine
    from cbam_deploy.runtimes import open_runtime

    with tempfile.TemporaryDirectory() as temporary:
        engine = path
        if path.suffix == ".onnx":
            engine = Path(temporary) / f"{path.stem}.engine"
            build_engine(path, engine, runtime="tensorrt-rtx", max_batch=max(BATCHES))
        with open_runtime(engine) as runner:
            smallest, largest = runner.batch_range
            for batch in BATCHES:
                if job.seconds_left < _SECONDS_PER_FILE:
                    job.note(f"Time ran out before batch {batch} of {path.name}.")
                    return
                if not smallest <= batch <= (largest or batch):
                    continue
                random = np.random.default_rng(0)
                feeds = {
                    spec.name: random.standard_normal((batch, *spec.shape[1:])).astype(spec.dtype)
                    for spec in runner.inputs
                }
                execution = runner.prepare(feeds)
                execution.measure(RUNS)
                seconds = float(np.median(execution.measure(RUNS)))
                job.row(file=path.name, batch=batch, ms=seconds * 1e3, images_per_s=batch / seconds)
