"""Time spent on the GPU, from medians of CUDA graph replays with a cold L2 cache.

A contender runs several times in one graph, each time on other buffers, which together are several
times as large as L2: no run finds its inputs there, and the gaps between launches are those inside
a network. Before every replay L2 is filled with something else. Contenders take turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

import torch

from cbam_deploy.machine import clocks
from cbam_deploy.plugins.cuda_launch import call, current_device

REPLAYS = 15
_FLUSH_FACTOR = 4
_MOST_SETS = 256
_EMPTY_LAUNCHES = 64
_EMPTY_PTX = b".version 7.0\n.target sm_75\n.address_size 64\n.visible .entry empty() { ret; }\n\0"


class Timer:
    """Times functions on the current CUDA device."""

    def __init__(self) -> None:
        self.l2_bytes: int = torch.cuda.get_device_properties(0).L2_cache_size
        self._flush = torch.empty(_FLUSH_FACTOR * self.l2_bytes, dtype=torch.uint8, device="cuda")

    def sets(self, set_bytes: int) -> int:
        """How many sets of buffers it takes so that none is still in L2 when its turn comes."""
        return min(_MOST_SETS, max(2, -(-2 * self.l2_bytes // set_bytes)))

    def seconds(self, contenders: Sequence[Callable[[], object]]) -> list[float]:
        """Median duration of each contender, which enqueues its work on the current stream.

        What a contender returns is kept, so that the outputs of its runs do not share memory.
        """
        graphs = [_capture(contender) for contender in contenders]
        events = [[(_event(), _event()) for _ in range(REPLAYS)] for _ in graphs]
        for turn in range(REPLAYS):
            for (graph, _), own in zip(graphs, events, strict=True):
                self._flush.zero_()
                start, end = own[turn]
                start.record()
                graph.replay()
                end.record()
        torch.cuda.synchronize()
        return [median(start.elapsed_time(end) for start, end in own) * 1e-3 for own in events]

    def copy_bytes_per_second(self) -> float:
        """Device-to-device copy of a large buffer, bytes read and written."""
        free, _ = torch.cuda.mem_get_info()
        size = min(4 << 30, free // 4)
        source = torch.empty(size, dtype=torch.uint8, device="cuda").random_(0, 255)
        target = torch.empty_like(source)
        (seconds,) = self.seconds([lambda: target.copy_(source)])
        return 2 * size / seconds

    def empty_launch_seconds(self) -> float:
        """A kernel that does nothing, one of many in a graph."""
        launch = empty_kernel()
        (seconds,) = self.seconds([lambda: [launch() for _ in range(_EMPTY_LAUNCHES)]])
        return seconds / _EMPTY_LAUNCHES


def empty_kernel() -> Callable[[], None]:
    """Enqueues a kernel that does nothing on the current stream."""
    with current_device(0):
        module = call("cuModuleLoadData", _EMPTY_PTX)
        function = call("cuModuleGetFunction", module, b"empty")

    def launch() -> None:
        stream = torch.cuda.current_stream().cuda_stream
        with current_device(0):
            call("cuLaunchKernel", function, 1, 1, 1, 32, 1, 1, 0, stream, 0, 0)

    return launch


def described_clocks() -> str:
    """The GPU's clocks now, which right after measuring are those of the measurement."""
    now = clocks()
    pairs = zip(now["gpu_sm_mhz"], now["gpu_memory_mhz"], strict=True)
    return ", ".join(f"SM {sm:.0f} MHz, memory {memory:.0f} MHz" for sm, memory in pairs)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)


def _capture(contender: Callable[[], object]) -> tuple[torch.cuda.CUDAGraph, object]:
    """A graph of the contender's work, after two runs that load and choose what it needs."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            contender()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = contender()
    return graph, kept
