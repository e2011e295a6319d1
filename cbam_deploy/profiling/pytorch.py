"""Time the modules of a PyTorch network: each with what it does itself, not what it calls."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from cbam_deploy.benchmarking.benchmark import Contender
from cbam_deploy.models.gate import AttentionGate
from cbam_deploy.profiling.kernels import Kernel, LayerTimer, precision_of
from cbam_deploy.profiling.runs import typical
from cbam_deploy.runtimes.base import Execution
from cbam_deploy.runtimes.pytorch import PyTorchRunner

GATE = "AttentionGate"


@contextmanager
def layer_timer(contender: Contender) -> Iterator[LayerTimer]:
    """The timer of a PyTorch network on the CPU: of a copy of its own, which has the hooks."""
    with contender.source.open(contender.file) as runner:
        assert isinstance(runner, PyTorchRunner)
        yield _Timer(runner.module, runner.prepare(contender.feeds))


@dataclass
class _Call:
    path: str
    start: int
    inner: int = 0


class _Timer(LayerTimer):
    def __init__(self, module: nn.Module, execution: Execution) -> None:
        self._modules = dict(_timed(module))
        self._stack: list[_Call] = []
        self._runs: list[defaultdict[str, int]] = []  # Nanoseconds.
        self.execution = _OneByOne(execution, self._runs)
        for path, part in self._modules.items():
            self._hook(path, part)

    def _hook(self, path: str, module: nn.Module) -> None:
        def enter(*_: object) -> None:
            self._stack.append(_Call(path, time.perf_counter_ns()))

        def leave(*_: object) -> None:
            call = self._stack.pop()
            taken = time.perf_counter_ns() - call.start
            if self._stack:
                self._stack[-1].inner += taken
            self._runs[-1][call.path] += taken - call.inner

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)

    def kernels(self) -> Sequence[Kernel]:
        """The modules that took time, in the order in which the network lists them."""
        paths = list(self._modules)
        own = [np.array([run[path] * 1e-9 for run in self._runs]) for path in paths]
        seconds = dict(zip(paths, typical(own).tolist(), strict=True))
        return [
            Kernel(
                path or "(whole network)",
                GATE if isinstance(part, AttentionGate) else type(part).__name__,
                seconds[path],
                _precision(part),
                (path,),
            )
            for path, part in self._modules.items()
            if seconds[path]
        ]


class _OneByOne(Execution):
    """Opens a run's record before each run."""

    def __init__(self, execution: Execution, runs: list[defaultdict[str, int]]) -> None:
        self._execution, self._runs = execution, runs

    def measure(self, runs: int) -> NDArray[np.float64]:
        """Wall-clock seconds of each run, the hooks in it."""
        seconds = np.empty(runs)
        for index in range(runs):
            self._runs.append(defaultdict(int))
            seconds[index] = self._execution.measure(1)[0]
        return seconds


def _timed(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a network, but a gate as one."""
    gates: list[str] = []
    for name, part in module.named_modules():
        if any(name.startswith(f"{gate}.") for gate in gates):
            continue
        if isinstance(part, AttentionGate):
            gates.append(name)
        yield name, part


def _precision(module: nn.Module) -> str:
    weight = next(module.parameters(recurse=False), None)
    return "" if weight is None else precision_of([str(weight.dtype).removeprefix("torch.")])
