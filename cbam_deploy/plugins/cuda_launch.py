"""Carry out launch plans on an NVIDIA GPU, through the CUDA driver (``cuda.bindings.driver``).

Nothing here knows PyTorch: buffers are device addresses, a stream is its handle. Kernels are loaded
into a device's primary context, which CUDA's runtime, and so PyTorch, uses as well. A launch is
only ever enqueued; nothing synchronizes. https://docs.nvidia.com/cuda/cuda-driver-api
"""

from __future__ import annotations

import ctypes
import functools
import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from cbam_deploy.errors import MissingCapability, installation_of
from cbam_deploy.plugins.compile import CompiledKernels, compile_kernels
from cbam_deploy.plugins.geometry import (
    DEFAULT_SHARED_BYTES,
    PORTABLE_CLUSTER,
    DeviceLimits,
    grid,
)
from cbam_deploy.plugins.launches import BATCH, Launch, LaunchPlan

_HINT = installation_of("kernels")
_LARGE_CLUSTERS = (90, 100, 103)
"""Capabilities of the data centre's GPUs, of which H100 is known to have clusters of 16 blocks."""
_NO_SUCH_CLUSTER = "CUDA_ERROR_INVALID_CLUSTER_SIZE"


class NoRoom(Exception):
    """A cluster of a plan's blocks has no room on the device, which may be a part of a GPU."""


def compile_plan(plan: LaunchPlan, capability: int, without: str = "") -> CompiledKernels:
    """Machine code of a plan's kernels for one compute capability, 90 for 9.0; no driver needed.

    `without` is as in `compile_kernels`.
    """
    kernels = (launch.kernel for launch in plan.launches)
    return compile_kernels(kernels, f"sm_{capability}", without=without)


class Parameters:
    """A launch's parameters as the driver takes them: the addresses of their values, in order.

    The driver copies the values when the kernel is enqueued.
    """

    def __init__(self, launch: Launch, buffers: Mapping[str, int], batch: int) -> None:
        known = {**buffers, BATCH: batch}
        values = [known[one] if isinstance(one, str) else one for one in launch.arguments]
        # Eight bytes for each: of an integer the kernel takes the lower four, which come first.
        self._values = (ctypes.c_int64 * len(values))(*values)
        first = ctypes.addressof(self._values)
        addresses = [first + 8 * position for position in range(len(values))]
        self._addresses = (ctypes.c_void_p * len(addresses))(*addresses)

    @property
    def address(self) -> int:
        """What ``cuLaunchKernel`` takes as `kernelParams`."""
        return ctypes.addressof(self._addresses)


class LoadedPlan:
    """A plan whose kernels are loaded on a device, ready to be launched; `load` makes one.

    Attributes:
        plan: what was loaded.
        running_blocks: of each launch, how many of its blocks the device can have running at the
            same time; of one that has neither clusters nor a bound on its grid, as many as a grid
            has.
    """

    def __init__(self, plan: LaunchPlan, device: int, without: str = "") -> None:
        self.plan = plan
        self._device = device
        self._limits = device_limits(device)
        compiled = compile_plan(plan, self._limits.capability, without)
        with current_device(device), _loading_allowed():
            self._module = call("cuModuleLoadData", compiled.image)
            self._functions = [
                _function(self._module, launch.kernel.name, launch) for launch in plan.launches
            ]
            self.running_blocks = tuple(
                _running_blocks(function, launch, self._limits)
                for function, launch in zip(self._functions, plan.launches, strict=True)
            )
        if 0 in self.running_blocks:
            raise NoRoom(f"{plan.gate}: a cluster of its blocks has no room on GPU {device}")

    @property
    def active_clusters(self) -> tuple[int | None, ...]:
        """Of each launch, how many of its clusters run at the same time; None without clusters."""
        return tuple(
            running // launch.cluster if launch.cluster > 1 else None
            for launch, running in zip(self.plan.launches, self.running_blocks, strict=True)
        )

    def launch(self, buffers: Mapping[str, int], batch: int, stream: int) -> None:
        """Enqueue the plan's kernels.

        Args:
            buffers: device addresses of x, r, y, the gate's weights and the plan's workspace,
                aligned as the gate says, all on this plan's device.
            batch: images.
            stream: handle of the stream, 0 for the default one.

        Raises:
            BadInput: the batch is too large for the device's grid.
            RuntimeError: the driver refuses.
        """
        blocks = [
            grid(launch, batch, self._limits, running)
            for launch, running in zip(self.plan.launches, self.running_blocks, strict=True)
        ]
        with current_device(self._device):
            for launch, function, count in zip(
                self.plan.launches, self._functions, blocks, strict=True
            ):
                parameters = Parameters(launch, buffers, batch)
                _enqueue(function, launch, count, parameters.address, stream)


@functools.lru_cache(maxsize=1024)
def load(plan: LaunchPlan, device: int, without: str = "") -> LoadedPlan:
    """`plan` with its kernels loaded on GPU number `device`, from memory when asked again.

    `without` is as in `compile_kernels`.

    Raises:
        MissingCapability: the driver or NVRTC is missing.
        BadInput: NVRTC does not know this GPU's architecture.
        NoRoom: the driver cannot have a single one of its clusters running.
    """
    return LoadedPlan(plan, device, without)


def load_first(plans: Sequence[LaunchPlan], device: int) -> LoadedPlan:
    """The first of `plans` that GPU number `device` has room for; errors are those of `load`."""
    for plan in plans[:-1]:
        try:
            return load(plan, device)
        except NoRoom:
            continue
    return load(plans[-1], device)


@functools.cache
def device_limits(device: int) -> DeviceLimits:
    """Limits of GPU number `device`, from its driver; makes no context."""
    handle = _device(device)
    attribute = driver().CUdevice_attribute

    def ask(name: str) -> int:
        code = getattr(attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(call("cuDeviceGetAttribute", code, handle))

    capability = 10 * ask("COMPUTE_CAPABILITY_MAJOR") + ask("COMPUTE_CAPABILITY_MINOR")
    return DeviceLimits(
        capability=capability,
        multiprocessors=ask("MULTIPROCESSOR_COUNT"),
        block_shared_bytes=ask("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"),
        multiprocessor_shared_bytes=ask("MAX_SHARED_MEMORY_PER_MULTIPROCESSOR"),
        grid_blocks=ask("MAX_GRID_DIM_X"),
        large_clusters=capability in _LARGE_CLUSTERS,
    )


@functools.cache
def primary_context(device: int) -> Any:
    """Of GPU number `device`; kept until the process ends, as the runtime does."""
    return call("cuDevicePrimaryCtxRetain", _device(device))


@contextmanager
def current_device(device: int) -> Iterator[None]:
    """With the primary context of GPU number `device` current; a new thread has none."""
    before, wanted = call("cuCtxGetCurrent"), primary_context(device)
    changed = int(before) != int(wanted)
    if changed:
        call("cuCtxSetCurrent", wanted)
    try:
        yield
    finally:
        if changed:
            call("cuCtxSetCurrent", before)


def call(name: str, *arguments: Any) -> Any:
    """Call the driver and return what it answers; `RuntimeError` names a failure."""
    result, *values = getattr(driver(), name)(*arguments)
    if int(result) != 0:
        raise RuntimeError(f"CUDA driver: {name} answers {result.name}")
    return values[0] if len(values) == 1 else tuple(values)


@functools.cache
def driver() -> Any:
    """The module ``cuda.bindings.driver``, with the driver initialized.

    Raises:
        MissingCapability: the package or NVIDIA's driver is not installed, or sees no GPU.
    """
    try:
        bindings = importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        raise MissingCapability(
            f"launching the gate's kernels needs cuda-bindings ({error})", _HINT
        ) from error
    try:
        (result,) = bindings.cuInit(0)
    except RuntimeError as error:
        raise MissingCapability(
            f"launching the gate's kernels needs NVIDIA's driver ({error})", "use a GPU machine"
        ) from error
    if int(result) != 0:
        raise MissingCapability(
            f"launching the gate's kernels needs an NVIDIA GPU ({result.name})", "use a GPU machine"
        )
    return bindings


def _device(device: int) -> Any:
    return call("cuDeviceGet", device)


def _function(module: Any, name: str, launch: Launch) -> Any:
    function = call("cuModuleGetFunction", module, name.encode())
    attribute = driver().CUfunction_attribute
    if launch.shared_bytes > DEFAULT_SHARED_BYTES:
        limit = attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        call("cuFuncSetAttribute", function, limit, launch.shared_bytes)
    if launch.cluster > PORTABLE_CLUSTER:
        allowed = attribute.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
        call("cuFuncSetAttribute", function, allowed, 1)
    return function


def _config(launch: Launch, blocks: int) -> Any:
    config = driver().CUlaunchConfig()  # the cluster's size is the kernel's own
    config.gridDimX, config.gridDimY, config.gridDimZ = blocks, 1, 1
    config.blockDimX, config.blockDimY, config.blockDimZ = launch.threads, 1, 1
    config.sharedMemBytes = launch.shared_bytes
    return config


def _enqueue(function: Any, launch: Launch, blocks: int, parameters: int, stream: int) -> None:
    if not launch.programmatic:
        block = (launch.threads, 1, 1)
        shape = (blocks, 1, 1, *block, launch.shared_bytes)
        call("cuLaunchKernel", function, *shape, stream, parameters, 0)
        return
    known = driver().CUlaunchAttributeID
    allowed = driver().CUlaunchAttribute()
    allowed.id = known.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    allowed.value.programmaticStreamSerializationAllowed = 1
    config = _config(launch, blocks)
    config.hStream, config.attrs, config.numAttrs = stream, [allowed], 1
    call("cuLaunchKernelEx", config, function, parameters, 0)


def _running_blocks(function: Any, launch: Launch, limits: DeviceLimits) -> int:
    """How many blocks of a launch run at the same time, as far as it matters; 0: it has no room."""
    if launch.cluster > 1:
        return launch.cluster * _active_clusters(function, launch)
    if not launch.persistent:
        return limits.grid_blocks
    of_one = call(
        "cuOccupancyMaxActiveBlocksPerMultiprocessor",
        *(function, launch.threads, launch.shared_bytes),
    )
    return int(of_one) * limits.multiprocessors


def _active_clusters(function: Any, launch: Launch) -> int:
    try:
        return int(call("cuOccupancyMaxActiveClusters", function, _config(launch, launch.cluster)))
    except RuntimeError as error:
        if _NO_SUCH_CLUSTER in str(error):
            return 0
        raise


@contextmanager
def _loading_allowed() -> Iterator[None]:
    """Loading a module is allowed even where this thread's stream is being captured.

    Capture forbids calls that might wait for the device; what is loaded here is not yet in use.
    """
    relaxed = driver().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
    before = call("cuThreadExchangeStreamCaptureMode", relaxed)
    try:
        yield
    finally:
        call("cuThreadExchangeStreamCaptureMode", before)
