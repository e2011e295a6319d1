"""The parts of the check, in order, and the seconds each may take.

Together they stay below eight minutes. What a part leaves of its time goes to the next.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from benchmarks.gpu_check.job import Job

TOTAL_SECONDS = 465.0


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        name: as reported.
        place: ``module:function`` that runs it, a module of this package.
        seconds: its share of the time.
        needed: whether the kernels count as correct only if it passes.
    """

    name: str
    place: str
    seconds: float
    needed: bool = False

    def run(self, job: Job) -> None:
        """Run it; its module is imported now, since some need PyTorch and some must not load it."""
        module, _, function = self.place.partition(":")
        getattr(importlib.import_module(f"benchmarks.gpu_check.{module}"), function)(job)


PARTS = (
    Part("kernels", "kernels:run", 45),
    Part("correctness", "correctness:run", 50, needed=True),
    Part("torch.compile", "compiled_gates:run", 60),
    Part("gates", "gates:run", 125),
    Part("networks", "networks:run", 60),
    Part("sanitizer", "sanitizer:run", 55),
    Part("operators", "operators:run", 40),
    Part("TensorRT-RTX", "rtx:run", 30),
)
SMALL_CASES = Part("small cases", "correctness:run_small", 60)
"""What `sanitizer` runs under its tools."""


def part_called(name: str) -> Part:
    """The part of that name."""
    return next(part for part in (*PARTS, SMALL_CASES) if part.name == name)
