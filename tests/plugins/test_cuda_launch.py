"""What is asked of the CUDA driver, shown on a stand-in for it that records every call.

It does not show that a GPU carries the kernels out: that is for tests/gpu and ``make gpu-check``.
"""

from __future__ import annotations

import ctypes
import enum
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest import mock

import pytest
import torch

from cbam_deploy.errors import BadInput, MissingCapability
from cbam_deploy.gates.description import GateSpec
from cbam_deploy.gates.operators import GATE_OPERATORS, operator_for
from cbam_deploy.plugins import cuda_launch, torch_cuda
from cbam_deploy.plugins.compile import CompiledKernels
from cbam_deploy.plugins.gate import Gate
from cbam_deploy.plugins.geometry import KNOWN_DEVICES, fused_candidates, plan, ranked_plans
from cbam_deploy.plugins.torch_inputs import bind

CBAM_ADD_RELU = GATE_OPERATORS["CbamGateAddRelu"]
LARGE_CLUSTERS = replace(KNOWN_DEVICES[90], large_clusters=True)
FUSED = plan(Gate(CBAM_ADD_RELU, 256, 56, 56, 16, 7), KNOWN_DEVICES[90])
SPATIAL_FIRST = operator_for(GateSpec(arrangement="spatial-channel"))
ALONE = fused_candidates(Gate(CBAM_ADD_RELU, 64, 8, 8, 4, 7), KNOWN_DEVICES[90])[0]
STAGED = plan(Gate(SPATIAL_FIRST, 24, 5, 5, 3, 3), KNOWN_DEVICES[75], strategy="staged")


class Result(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_INVALID_CLUSTER_SIZE = 912


class RecordingDriver:
    """The part of ``cuda.bindings.driver`` that launching needs; launches are kept in `launched`.

    `plan` tells how many parameters the kernels have, so that they can be read as the driver would.
    """

    ATTRIBUTES: ClassVar = {
        "COMPUTE_CAPABILITY_MAJOR": 9,
        "COMPUTE_CAPABILITY_MINOR": 0,
        "MULTIPROCESSOR_COUNT": 132,
        "MAX_SHARED_MEMORY_PER_BLOCK_OPTIN": 227 * 1024,
        "MAX_SHARED_MEMORY_PER_MULTIPROCESSOR": 228 * 1024,
        "MAX_GRID_DIM_X": 2**31 - 1,
    }
    OWN_CONTEXT, OTHER_CONTEXT, DEFAULT_CAPTURE, RELAXED = 7, 0, "global", "relaxed"

    def __init__(self):
        attributes = {f"CU_DEVICE_ATTRIBUTE_{name}": name for name in self.ATTRIBUTES}
        self.CUdevice_attribute = SimpleNamespace(**attributes)
        self.CUfunction_attribute = SimpleNamespace(
            CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES="shared",
            CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED="large cluster",
        )
        self.CUlaunchConfig = SimpleNamespace
        self.CUlaunchAttribute = lambda: SimpleNamespace(value=SimpleNamespace())
        self.CUlaunchAttributeID = SimpleNamespace(
            CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION="programmatic"
        )
        self.CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_RELAXED=self.RELAXED)
        self.context, self.capture = self.OTHER_CONTEXT, self.DEFAULT_CAPTURE
        self.programmatic = []
        self.launched, self.shared_limits, self.large_clusters, self.loads = [], {}, [], 0
        self.room_for, self.largest_known = 16, 16  # blocks of a cluster
        self.blocks_at_once = 2  # on a multiprocessor
        self.initialized = Result.CUDA_SUCCESS
        self.launches_by_name = {}

    def cuInit(self, flags):  # noqa: N802
        return (self.initialized,)

    def cuDeviceGet(self, index):  # noqa: N802
        return Result.CUDA_SUCCESS, index

    def cuDeviceGetAttribute(self, name, device):  # noqa: N802
        return Result.CUDA_SUCCESS, self.ATTRIBUTES[name]

    def cuDevicePrimaryCtxRetain(self, device):  # noqa: N802
        return Result.CUDA_SUCCESS, self.OWN_CONTEXT

    def cuCtxGetCurrent(self):  # noqa: N802
        return Result.CUDA_SUCCESS, self.context

    def cuCtxSetCurrent(self, context):  # noqa: N802
        self.context = context
        return (Result.CUDA_SUCCESS,)

    def cuThreadExchangeStreamCaptureMode(self, mode):  # noqa: N802
        before, self.capture = self.capture, mode
        return Result.CUDA_SUCCESS, before

    def cuModuleLoadData(self, image):  # noqa: N802
        assert self.context == self.OWN_CONTEXT
        assert self.capture == self.RELAXED
        self.loads += 1
        return Result.CUDA_SUCCESS, image

    def cuModuleGetFunction(self, module, name):  # noqa: N802
        return Result.CUDA_SUCCESS, name.decode()

    def cuFuncSetAttribute(self, function, attribute, value):  # noqa: N802
        if attribute == "shared":
            self.shared_limits[function] = value
        else:
            assert (attribute, value) == ("large cluster", 1)
            self.large_clusters.append(function)
        return (Result.CUDA_SUCCESS,)

    def cuOccupancyMaxActiveClusters(self, function, config):  # noqa: N802
        assert self.context == self.OWN_CONTEXT
        launch = self.launches_by_name[function]
        assert (config.gridDimX, config.gridDimY, config.gridDimZ) == (launch.cluster, 1, 1)
        assert (config.blockDimX, config.blockDimY, config.blockDimZ) == (launch.threads, 1, 1)
        assert config.sharedMemBytes == self.shared_limits.get(function, config.sharedMemBytes)
        assert launch.cluster <= 8 or function in self.large_clusters
        if launch.cluster > self.largest_known:
            return Result.CUDA_ERROR_INVALID_CLUSTER_SIZE, None
        return Result.CUDA_SUCCESS, 3 * self.room_for // launch.cluster

    def cuOccupancyMaxActiveBlocksPerMultiprocessor(self, function, threads, shared):  # noqa: N802
        assert self.context == self.OWN_CONTEXT
        launch = self.launches_by_name[function]
        assert (threads, shared) == (launch.threads, launch.shared_bytes)
        return Result.CUDA_SUCCESS, self.blocks_at_once

    def cuLaunchKernelEx(self, config, function, parameters, extra):  # noqa: N802
        (attribute,) = config.attrs
        assert config.numAttrs == 1
        assert attribute.id == "programmatic"
        assert attribute.value.programmaticStreamSerializationAllowed == 1
        grid = (config.gridDimX, config.gridDimY, config.gridDimZ)
        block = (config.blockDimX, config.blockDimY, config.blockDimZ)
        shape = (*grid, *block, config.sharedMemBytes, config.hStream)
        self.programmatic.append(function)
        return self.cuLaunchKernel(function, *shape, parameters, extra)

    def cuLaunchKernel(self, function, *rest):  # noqa: N802
        assert self.context == self.OWN_CONTEXT
        *grid_and_block, shared, stream, parameters, extra = rest
        assert extra == 0
        launch = self.launches_by_name[function]
        self.launched.append(
            (function, tuple(grid_and_block), shared, stream, values(parameters, launch))
        )
        return (Result.CUDA_SUCCESS,)


def values(parameters, launch):
    """What lies at the addresses that `parameters` points to."""
    buffers = {*launch.inputs, *launch.outputs}
    kinds: list[Any] = [
        ctypes.c_void_p if one in buffers else ctypes.c_int for one in launch.arguments
    ]
    addresses = (ctypes.c_void_p * len(kinds)).from_address(parameters)
    return [kind.from_address(at).value for kind, at in zip(kinds, addresses, strict=True)]


@pytest.fixture
def driver(monkeypatch):
    recording = RecordingDriver()

    def compile_plan(plan, capability, without):
        assert capability == 90
        recording.launches_by_name.update({one.kernel.name: one for one in plan.launches})
        return CompiledKernels("sm_90", b"image", tuple(recording.launches_by_name), "")

    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", recording)
    monkeypatch.setattr(cuda_launch, "compile_plan", compile_plan)
    forget()
    yield recording
    forget()


def forget():
    asked = (cuda_launch.driver, cuda_launch.device_limits, cuda_launch.primary_context)
    for cached in (*asked, cuda_launch.load, torch_cuda.planned):
        cached.cache_clear()


def addresses(plan):
    names = {name for launch in plan.launches for name in (*launch.inputs, *launch.outputs)}
    return {name: 0x7F0000000000 + 256 * number for number, name in enumerate(sorted(names))}


@pytest.mark.parametrize("plan", [FUSED, STAGED], ids=["fused", "staged"])
def test_launches_are_those_of_the_plan_in_order(plan, driver):
    buffers = addresses(plan)
    cuda_launch.load(plan, 0).launch(buffers, batch=3, stream=42)
    assert len(driver.launched) == len(plan.launches)
    for launch, (name, grid_and_block, shared, stream, parameters) in zip(
        plan.launches, driver.launched, strict=True
    ):
        assert name == launch.kernel.name
        assert grid_and_block == (3 * launch.blocks_per_image, 1, 1, launch.threads, 1, 1)
        assert (shared, stream) == (launch.shared_bytes, 42)
        assert parameters == [
            *[buffers[buffer] for buffer in launch.inputs],
            *[value for _, value in launch.integers],
            *([3] if launch.stage == "fused" else []),
            *[buffers[buffer] for buffer in launch.outputs],
        ]


def test_only_launches_behind_another_may_start_before_it_ends(driver):
    staged = plan(STAGED.gate, KNOWN_DEVICES[90], strategy="staged")
    for one in (FUSED, STAGED, staged):
        cuda_launch.load(one, 0).launch(addresses(one), 1, 0)
    assert driver.programmatic == [launch.kernel.name for launch in staged.launches[1:]]
    assert len(driver.launched) == sum(len(one.launches) for one in (FUSED, STAGED, staged))


def test_a_fused_kernel_has_as_many_blocks_as_run_at_the_same_time(driver):
    """48 in clusters; of blocks without clusters two on each of 132 multiprocessors."""
    for one in (FUSED, ALONE, STAGED):
        cuda_launch.load(one, 0).launch(addresses(one), batch=1000, stream=0)
    grids = [grid_and_block[0] for _, grid_and_block, *_ in driver.launched]
    assert grids[:2] == [48, 2 * 132]
    assert grids[2:] == [1000 * launch.blocks_per_image for launch in STAGED.launches]


def test_more_than_48_kib_of_shared_memory_is_asked_for(driver):
    (launch,) = FUSED.launches
    assert launch.shared_bytes > 48 * 1024
    cuda_launch.load(FUSED, 0)
    assert driver.shared_limits == {launch.kernel.name: launch.shared_bytes}


def test_less_shared_memory_is_not_asked_for(driver):
    cuda_launch.load(STAGED, 0)
    assert driver.shared_limits == {}


def test_context_and_capture_mode_are_left_as_they_were(driver):
    loaded = cuda_launch.load(FUSED, 0)
    assert (driver.context, driver.capture) == (driver.OTHER_CONTEXT, driver.DEFAULT_CAPTURE)
    loaded.launch(addresses(FUSED), 1, 0)
    assert driver.context == driver.OTHER_CONTEXT


def test_a_plan_is_loaded_once_per_device(driver):
    assert cuda_launch.load(FUSED, 0) is cuda_launch.load(FUSED, 0)
    assert driver.loads == 1
    cuda_launch.load(FUSED, 1)
    assert driver.loads == 2


def test_device_limits_are_the_drivers(driver):
    assert cuda_launch.device_limits(0) == LARGE_CLUSTERS
    driver.ATTRIBUTES = {**driver.ATTRIBUTES, "COMPUTE_CAPABILITY_MAJOR": 12}
    cuda_launch.device_limits.cache_clear()
    assert cuda_launch.device_limits(0).largest_cluster == 8


def test_the_driver_says_how_many_clusters_run_at_a_time(driver):
    (launch,) = FUSED.launches
    assert cuda_launch.load(FUSED, 0).active_clusters == (48 // launch.cluster,)
    assert cuda_launch.load(STAGED, 0).active_clusters == (None,) * len(STAGED.launches)


@pytest.mark.parametrize(("room_for", "largest"), [(16, 16), (5, 8), (2, 4), (0, 1)])
def test_a_cluster_without_room_is_replaced_by_the_next_plan(room_for, largest, driver):
    driver.room_for = room_for
    gate = Gate(CBAM_ADD_RELU, 2048, 7, 7, 128, 7)
    plans = ranked_plans(gate, LARGE_CLUSTERS, batch=1)
    assert plans[0].launches[0].cluster == 16
    loaded = cuda_launch.load_first(plans, 0)
    assert loaded.plan == next(one for one in plans if one.launches[0].cluster <= largest)
    loaded.launch(addresses(loaded.plan), 1, 0)
    assert len(driver.launched) == len(loaded.plan.launches)


def test_a_cluster_that_the_gpu_does_not_know_is_replaced_too(driver):
    driver.largest_known = 8
    plans = ranked_plans(Gate(CBAM_ADD_RELU, 2048, 7, 7, 128, 7), LARGE_CLUSTERS, batch=1)
    assert cuda_launch.load_first(plans, 0).plan.launches[0].cluster == 8
    driver.cuOccupancyMaxActiveClusters = lambda *_: (Result.CUDA_ERROR_INVALID_VALUE, None)
    cuda_launch.load.cache_clear()
    with pytest.raises(RuntimeError, match="cuOccupancyMaxActiveClusters answers"):
        cuda_launch.load_first(plans, 0)


def test_only_a_large_cluster_is_asked_for(driver):
    gate = Gate(CBAM_ADD_RELU, 256, 56, 56, 16, 7)
    for one in fused_candidates(gate, LARGE_CLUSTERS):
        cuda_launch.load(one, 0)
    asked = {driver.launches_by_name[name].cluster for name in driver.large_clusters}
    assert asked == {16}


def test_without_room_for_any_plan_that_is_said(driver):
    driver.room_for = 0
    with pytest.raises(cuda_launch.NoRoom, match="has no room on GPU 0"):
        cuda_launch.load_first([FUSED], 0)
    assert driver.launched == []


def test_without_room_for_a_block_that_is_said(driver):
    """An empty grid would be the driver's error, in the middle of a network."""
    assert ALONE.launches[0].cluster == 1
    driver.blocks_at_once = 0
    with pytest.raises(cuda_launch.NoRoom, match="has no room on GPU 0"):
        cuda_launch.load(ALONE, 0)


def test_a_batch_beyond_the_grid_is_refused_before_any_launch(driver):
    driver.ATTRIBUTES = {**driver.ATTRIBUTES, "MAX_GRID_DIM_X": 65535}
    with pytest.raises(BadInput, match="grid"):
        cuda_launch.load(FUSED, 0).launch(addresses(FUSED), 10**6, 0)
    assert driver.launched == []


def test_a_refusing_driver_is_an_error_that_names_the_call(driver):
    driver.cuLaunchKernel = lambda *_: (Result.CUDA_ERROR_INVALID_VALUE,)
    with pytest.raises(RuntimeError, match="cuLaunchKernel answers CUDA_ERROR_INVALID_VALUE"):
        cuda_launch.load(FUSED, 0).launch(addresses(FUSED), 1, 0)
    assert driver.context == driver.OTHER_CONTEXT


def test_without_cuda_bindings_the_hint_names_the_extra(driver, monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(MissingCapability) as raised:
        cuda_launch.load(FUSED, 0)
    assert ".[kernels]" in raised.value.hint


def test_without_a_gpu_that_is_said(driver):
    driver.initialized = Result.CUDA_ERROR_INVALID_VALUE
    with pytest.raises(MissingCapability, match="needs an NVIDIA GPU"):
        cuda_launch.load(FUSED, 0)


class Device:
    """Stands in for ``torch.cuda`` so that tensors on the CPU play the part of CUDA tensors."""

    def __init__(self, monkeypatch):
        stream = SimpleNamespace(cuda_stream=42)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
        monkeypatch.setattr(torch.cuda, "device", lambda device: torch.no_grad())


def launched_gate(operator, tensors):
    """The gate that `torch_cuda.run` chose kernels for."""
    seen = []
    original = torch_cuda.planned

    def noted(gate, batch, device):
        seen.append(gate)
        return original(gate, batch, 0)

    with mock.patch.object(torch_cuda, "planned", noted):
        y = torch_cuda.run(operator, bind(operator, tuple(tensors)))
    return seen[0], y


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("operator", GATE_OPERATORS.values(), ids=lambda operator: operator.name)
def test_tensors_become_the_plans_buffers(operator, layout, driver, monkeypatch):
    Device(monkeypatch)
    memory = torch.channels_last if layout == "nhwc" else torch.contiguous_format
    maps = [torch.zeros(5, 16, 6, 8, dtype=torch.float16) for _ in range(1 + operator.residual)]
    maps[0] = maps[0].contiguous(memory_format=memory)
    weights = [torch.zeros(shape) for shape in operator.weight_shapes(16, 4, 7, 3).values()]
    gate, y = launched_gate(operator, [*maps, *weights])
    assert (gate.layout, gate.dtype, gate.operator) == (layout, "float16", operator)
    assert (gate.channels, gate.height, gate.width) == (16, 6, 8)
    assert gate.hidden == (4 if "W0" in operator.weights else 0)
    assert gate.kernel_size == (7 if "WS" in operator.weights else 0)
    assert gate.channel_kernel_size == (3 if "WC" in operator.weights else 0)
    assert y.is_contiguous(memory_format=memory)
    *_, (_, grid_and_block, _, stream, parameters) = driver.launched
    assert stream == 42
    assert grid_and_block[0] % 5 == 0
    assert parameters[0] == maps[0].data_ptr()
    assert parameters[-1] == y.data_ptr()


def test_addresses_that_are_not_aligned_narrow_the_vectors(driver, monkeypatch):
    Device(monkeypatch)
    storage = torch.zeros(2 * 16 * 16 + 3, dtype=torch.float16)
    x = storage[3:].view(2, 16, 4, 4)
    weights = [torch.zeros(shape) for shape in [(4, 16), (4,), (16, 4), (16,)]]
    gate, _ = launched_gate(GATE_OPERATORS["SeGate"], [x, *weights])
    assert gate.alignment == 2
    assert gate.vector == 1
