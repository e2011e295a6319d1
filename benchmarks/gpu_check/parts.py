"""The parts of the check, in order, and the seconds each may take.

The first two minutes are for what is right, the rest for what is fast, the most important first.
All stay below ten minutes. What a part leaves of its time goes to the next.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from benchmarks.gpu_check.job import Job

TOTAL_SECONDS = 560.0


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        name: as reported.
        place: ``module:function`` that runs it, a module of this package.
        seconds: its share of the time.
        needed: whether the kernels count as correct only if it passes.
        processes: among which its cases are shared.
    """

    name: str
    place: str
    seconds: float
    needed: bool = False
    processes: int = 1

    def run(self, job: Job) -> None:
        """Run it; its module is imported now, since some need PyTorch and some must not load it."""
        module, _, function = self.place.partition(":")
        getattr(importlib.import_module(f"benchmarks.gpu_check.{module}"), function)(job)


PARTS = (
    Part("correctness", "correctness:run", 85, needed=True, processes=12),
    Part("plugin library", "plugin_library:run", 35),
    Part("kernels", "kernels:run", 25),
    Part("gates", "gates:run", 95),
    Part("networks", "networks:run", 55),
    Part("candidates", "candidates:run", 45),
    Part("phases", "phases:run", 10),
    Part("torch.compile", "compiled_gates:run", 45),
    Part("compiled", "compiled:run", 45),
    Part("warm", "warm:run", 10),
    Part("sanitizer", "sanitizer:run", 50),
    Part("counters", "counters:run", 25),
    Part("operators", "operators:run", 25),
    Part("TensorRT-RTX", "rtx:run", 10),
)
INNER = (
    Part("small cases", "correctness:run_small", 60),
    Part("counted kernels", "counters:counted", 60),
)
"""What `sanitizer` and `counters` run under their tools."""


def part_called(name: str) -> Part:
    """The part of that name."""
    return next(part for part in (*PARTS, *INNER) if part.name == name)
