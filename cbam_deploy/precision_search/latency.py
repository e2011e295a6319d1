"""What a trial's file takes in the runtime of the person, beside the original."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import onnx_ir as ir

from cbam_deploy.benchmarking.benchmark import Contender, prepare
from cbam_deploy.benchmarking.interleaving import measure_in_rounds, plan_turns
from cbam_deploy.benchmarking.sources import list_sources
from cbam_deploy.benchmarking.statistics import paired_ratio, quantile
from cbam_deploy.benchmarking.warm_up import warm_up
from cbam_deploy.errors import BadInput, MissingCapability
from cbam_deploy.graphs.onnx_file import write_model
from cbam_deploy.machine import capability, environment, gpus
from cbam_deploy.outputs import scratch_folder
from cbam_deploy.report.units import Estimate
from cbam_deploy.runtimes import RUNTIMES

# The first that this machine has is what trials are timed in, unless another is asked for.
_PREFERRED = ("tensorrt", "tensorrt-rtx", "openvino", "onnxruntime")
_BUILT = ("tensorrt", "tensorrt-rtx")  # They run engines.


class LatencyMeter:
    """Times networks, each beside the original; enter it to use it."""

    def __init__(
        self,
        original: Path,
        *,
        runtime: str | None,
        batch: int,
        sizes: Sequence[str],
        seconds: float,
        seed: int,
    ) -> None:
        """Choose the runtime.

        Args:
            original: the file.
            runtime: to time in; None for the first that there is of TensorRT, TensorRT-RTX (both
                with a GPU), OpenVINO and ONNX Runtime.
            batch: images per run.
            sizes: of free axes, such as ``H=640``.
            seconds: of each timing.
            seed: of inputs, order and bootstrap.

        Raises:
            BadInput: there is no such runtime.
            MissingCapability: it needs a GPU.
        """
        self.runtime = _chosen(runtime)
        self._original, self._batch, self._sizes = original, batch, tuple(sizes)
        self._seconds, self._seed = seconds, seed
        self._machine = environment()
        self._stack = ExitStack()

    @property
    def key(self) -> str:
        """What tells these timings from others of the same networks, on other machines too."""
        machine = {name: self._machine[name] for name in ("cpu", "cores", "gpus", "packages")}
        return f"timed {self.runtime} {self._batch} {self._sizes} {self._seconds} {machine}"

    def __enter__(self) -> LatencyMeter:
        with self._stack as stack:
            self._folder = stack.enter_context(scratch_folder())
            self._beside = self._prepared(stack, self._runnable(self._original, "original"))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def measure(self, model: ir.Model) -> tuple[float, Estimate]:
        """Median seconds of a run, and its duration over the original's."""
        file = self._folder / "trial.onnx"
        write_model(model, file)
        with ExitStack() as stack:
            contenders = [self._beside, self._prepared(stack, self._runnable(file, "trial"))]
            executions = [contender.execution for contender in contenders]
            taken = [warm_up(execution, self._seconds).run_seconds for execution in executions]
            plans = plan_turns(executions, [self._batch] * 2, taken, self._seconds)
            first, rounds = measure_in_rounds(plans, self._seed)
        medians = [np.array([float(np.median(runs)) for runs in one]) for one in (rounds, first)]
        relative = paired_ratio(medians[0], medians[1], self._seed)
        return quantile(np.concatenate(rounds), 0.5), relative

    def _runnable(self, file: Path, name: str) -> Path:
        """What the runtime runs of an ONNX file: itself, or the engine that is built of it."""
        if self.runtime not in _BUILT:
            return file
        from cbam_deploy.engines import build_engine

        engine = self._folder / f"{name}.engine"
        build_engine(
            file,
            engine,
            runtime=self.runtime,
            min_batch=self._batch,
            opt_batch=self._batch,
            max_batch=self._batch,
            sizes=self._sizes,
        )
        return engine

    def _prepared(self, stack: ExitStack, file: Path) -> Contender:
        sources, _ = list_sources(
            [file],
            pytorch=False,
            reference=None,
            weights=None,
            relative_to=None,
            runtimes=(self.runtime,),
            device=None,
            threads=None,
        )
        return prepare(stack, sources, (self._batch,), self._sizes, self._seed)[0]


def _chosen(runtime: str | None) -> str:
    if runtime is None:
        here = {row.name for row in RUNTIMES if capability(row.does, *row.needs).available}
        return next((name for name in _PREFERRED if name in here), _PREFERRED[-1])
    if runtime not in _PREFERRED:
        raise BadInput(f"runtime {runtime!r} runs no files", f"choose {', '.join(_PREFERRED)}")
    if runtime in _BUILT and not gpus():
        raise MissingCapability(f"{runtime} needs an NVIDIA GPU", "leave --runtime out")
    return runtime
