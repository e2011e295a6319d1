"""Device memory of exactly the size that is asked for, so that a step outside shows.

Through the driver alone: compute-sanitizer, which slows a process down, then has no framework to
wait for, and PyTorch's allocator does not hide what lies between two buffers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from cbam_deploy.plugins.cuda_launch import call


class DeviceBuffers:
    """Named buffers on the current device; `held_buffers` makes one and frees what it holds."""

    def __init__(self) -> None:
        self.addresses: dict[str, int] = {}
        self._bytes: dict[str, int] = {}
        self._handles: list[object] = []

    def allocate(self, name: str, size: int) -> None:
        """A buffer of `size` bytes, all bits set: NaN in every type that has one."""
        handle = call("cuMemAlloc", size)
        self._handles.append(handle)
        self.addresses[name], self._bytes[name] = int(handle), size
        self.poison(name)

    def poison(self, name: str) -> None:
        """Set all bits of a buffer."""
        call("cuMemsetD8", self.addresses[name], 0xFF, self._bytes[name])

    def put(self, name: str, array: NDArray[np.generic]) -> None:
        """A buffer that holds `array`."""
        array = np.ascontiguousarray(array)
        self.allocate(name, array.nbytes)
        call("cuMemcpyHtoD", self.addresses[name], array.ctypes.data, array.nbytes)

    def get(self, name: str, dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
        """What a buffer holds, flat; waits for the device."""
        call("cuCtxSynchronize")
        array = np.empty(self._bytes[name] // dtype.itemsize, dtype)
        call("cuMemcpyDtoH", array.ctypes.data, self.addresses[name], self._bytes[name])
        return array

    def free(self) -> None:
        """Give all buffers back."""
        for handle in self._handles:
            call("cuMemFree", handle)
        self.__init__()


@contextmanager
def held_buffers() -> Iterator[DeviceBuffers]:
    """Buffers that are freed at the end."""
    buffers = DeviceBuffers()
    try:
        yield buffers
    finally:
        buffers.free()
