"""The one interface to anything that can run a network, such as PyTorch or ONNX Runtime."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cbam_deploy.errors import BadInput
from cbam_deploy.numerics.tensors import Arrays, TensorSpec, batch_range

DEVICES = ("cpu", "cuda")
RunnerT = TypeVar("RunnerT", bound="Runner")


def known_device(device: str | None) -> str:
    """`device`, the CPU by default; raises `BadInput` for one that there is not."""
    if device not in (None, *DEVICES):
        raise BadInput(f"device {device!r} is unknown", f"choose {' or '.join(DEVICES)}")
    return device or "cpu"


def check_batch_axis(title: str, inputs: Sequence[TensorSpec]) -> None:
    """Raise `BadInput` where the first of a network's `inputs` has no axis for the batch."""
    if not inputs or not inputs[0].shape:
        raise BadInput(f"{title}: its first input has no batch", "give it one")


class Execution(ABC):
    """One prepared input, ready to be run again and again for timing."""

    @abstractmethod
    def measure(self, runs: int) -> NDArray[np.float64]:
        """Run `runs` times; return the duration of each run in seconds, shape [runs]."""

    def peak_memory_bytes(self) -> int | None:
        """Peak memory of the device in bytes while running, where the runtime can tell."""
        return None


class Runner(ABC):
    """A network loaded in one runtime. Enter it before use; leaving it frees what it holds.

    Attributes:
        name: short name of runtime and device, such as ``onnxruntime-cpu``.
        inputs: specs of the network inputs.
        outputs: specs of the network outputs.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __enter__(self: RunnerT) -> RunnerT:
        self.activate()
        return self

    def __exit__(self, *_: object) -> None:
        self.deactivate()

    @property
    def batch_range(self) -> tuple[int, int | None]:
        """Smallest and largest batch the network takes; None where it has no upper end."""
        return batch_range(self.inputs)

    @abstractmethod
    def activate(self) -> None:
        """Load the network; after it `inputs` and `outputs` are set."""

    @abstractmethod
    def deactivate(self) -> None:
        """Free what `activate` took; harmless when called twice."""

    @abstractmethod
    def infer(self, feeds: Arrays) -> dict[str, NDArray[np.generic]]:
        """Run once on host arrays by input name; return host arrays by output name."""

    @abstractmethod
    def prepare(self, feeds: Arrays) -> Execution:
        """Put `feeds` where the runtime wants them, for repeated timed runs."""
