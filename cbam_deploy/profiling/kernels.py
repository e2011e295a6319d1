"""What a runtime says of the pieces that it runs: the one interface to every profiler."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cbam_deploy.runtimes.base import Execution

Conversion = Literal["", "quantize", "dequantize", "cast", "reorder"]

CONVERSIONS: dict[str, Conversion] = {
    "QuantizeLinear": "quantize",
    "DequantizeLinear": "dequantize",
    "Cast": "cast",
    "ReorderInput": "reorder",
    "ReorderOutput": "reorder",
    "MemcpyFromHost": "reorder",
    "MemcpyToHost": "reorder",
}

_PRECISIONS = {
    "float": "fp32", "float32": "fp32", "f32": "fp32", "float16": "fp16", "f16": "fp16",
    "bfloat16": "bf16", "bf16": "bf16", "double": "fp64", "float64": "fp64", "f64": "fp64",
    "int8": "int8", "uint8": "int8", "i8": "int8", "u8": "int8",
}  # fmt: skip


@dataclass(frozen=True)
class Kernel:
    """What a runtime runs as one piece.

    Attributes:
        name: as the runtime calls it.
        operator: as the runtime calls it.
        seconds: of one run.
        precision: ``fp32``, ``fp16``, ``int8``, ... of what it computes in; empty where not told.
        nodes: names of the nodes of the file that it carries out; empty where not known.
        conversion: what it does where it changes only how numbers lie in memory.
    """

    name: str
    operator: str
    seconds: float
    precision: str = ""
    nodes: tuple[str, ...] = ()
    conversion: Conversion = ""


class LayerTimer(ABC):
    """A network on inputs of its own, ready to run with the runtime's profiler on.

    Attributes:
        execution: runs it.
    """

    execution: Execution

    @abstractmethod
    def kernels(self) -> Sequence[Kernel]:
        """What was run, in order, when all runs were made; may be asked once."""


def precision_of(types: Sequence[str]) -> str:
    """The precision of a kernel that reads tensors of `types`, by the first that has one."""
    return next((_PRECISIONS[kind] for kind in types if kind in _PRECISIONS), "")
