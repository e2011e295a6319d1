"""Timing on a CUDA GPU, shared by every runtime that launches work on PyTorch's streams.

PyTorch is used for what it does well: streams, events, pinned memory, CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from cbam_deploy.errors import MissingCapability
from cbam_deploy.runtimes.base import Execution

WARM_UP_RUNS = 3


def require_cuda(purpose: str) -> torch.device:
    """The current CUDA device.

    Raises:
        MissingCapability: no GPU, or a PyTorch without CUDA; the message starts with `purpose`.
    """
    from cbam_deploy.machine import gpus

    if not gpus():
        raise MissingCapability(
            f"{purpose} needs an NVIDIA GPU, and this machine has none", "run it where a GPU is"
        )
    if not torch.cuda.is_available():
        raise MissingCapability(
            f"{purpose} needs PyTorch with CUDA, and torch {torch.__version__} has none",
            "install the CUDA build of torch",
        )
    return torch.device("cuda", torch.cuda.current_device())


def to_host(tensors: dict[str, torch.Tensor]) -> dict[str, NDArray[np.generic]]:
    """Copy device tensors to host arrays through pinned memory, all in flight at once."""
    pinned = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        for name, tensor in tensors.items()
    }
    for name, tensor in tensors.items():
        pinned[name].copy_(tensor, non_blocking=True)
    torch.cuda.current_stream().synchronize()
    return {name: tensor.numpy().copy() for name, tensor in pinned.items()}


def to_device(array: NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """Copy a host array to the device through pinned memory."""
    pinned = torch.from_numpy(np.ascontiguousarray(array)).pin_memory()
    return pinned.to(device, non_blocking=True)


def used_memory_bytes() -> int:
    """Device memory in use now, spare blocks of PyTorch's allocator left out."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return total - free


class CudaExecution(Execution):
    """Work on fixed device buffers, timed by CUDA events.

    Args:
        launch: enqueues the work on PyTorch's current stream.
        capture: record it as a CUDA graph and replay that; `launch` must then neither allocate nor
            synchronize after its first runs.
        held_bytes: device memory that the runner took before, for `peak_memory_bytes`.
    """

    def __init__(self, launch: Callable[[], object], *, capture: bool, held_bytes: int) -> None:
        before = used_memory_bytes()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UP_RUNS):
                launch()
        self._stream.synchronize()
        self._launch = launch
        if capture:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=self._stream):
                launch()
            self._launch = self._graph.replay
        self._memory_bytes = held_bytes + used_memory_bytes() - before

    def measure(self, runs: int) -> NDArray[np.float64]:
        """Seconds between an event before and one after each run, on the device's clock."""
        before, after = _events(runs), _events(runs)
        with torch.cuda.stream(self._stream):
            for start, end in zip(before, after, strict=True):
                start.record()
                self._launch()
                end.record()
        self._stream.synchronize()
        milliseconds = [start.elapsed_time(end) for start, end in zip(before, after, strict=True)]
        return np.array(milliseconds) * 1e-3

    def peak_memory_bytes(self) -> int:
        """What network, buffers and graph take of the device, told by the driver."""
        return self._memory_bytes


def _events(count: int) -> list[torch.cuda.Event]:
    return [torch.cuda.Event(enable_timing=True) for _ in range(count)]  # type: ignore[no-untyped-call]
