from __future__ import annotations

import re
from dataclasses import replace
from itertools import product
from math import ceil

import numpy as np
import pytest
from gate_cases import GENERATED, VARIANTS
from host_device import visits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.kernel_report import FORMATS, MAPS
from cbam_deploy.errors import BadInput
from cbam_deploy.gates.description import CBAM, KERNEL_SIZES, GateSpec
from cbam_deploy.gates.operators import operator_for
from cbam_deploy.plugins.gate import Gate
from cbam_deploy.plugins.geometry import (
    CLUSTER_SIZES,
    KNOWN_DEVICES,
    choose_tiling,
    fused_candidates,
    grid,
    plan,
    ranked_plans,
    staged_candidates,
)

size = st.one_of(st.integers(1, 80), st.sampled_from([56, 112, 224, 513]))
channels = st.one_of(st.integers(1, 300), st.sampled_from([512, 1000, 1024, 2048, 4096, 9000]))


operators = st.sampled_from(sorted({v.operator for v in (*GENERATED, *VARIANTS)}, key=str))
CBAM_GATE = operator_for(CBAM)
CBAM_ADD_RELU = operator_for(CBAM, residual=True, activation="relu")


@st.composite
def gates(draw) -> Gate:
    dtype, layout = draw(st.sampled_from(FORMATS))
    operator = draw(operators)
    # Without a hidden layer every channel's statistics stand in shared memory.
    count = min(draw(channels), 9000 if "W0" in operator.weights else 4096)
    return Gate(
        operator,
        channels=count,
        height=draw(size),
        width=draw(st.one_of(size, st.just(5000))) if count < 300 else draw(st.integers(1, 20)),
        hidden=draw(st.integers(1, 256)) if "W0" in operator.weights else 0,
        kernel_size=draw(st.sampled_from(KERNEL_SIZES)) if "WS" in operator.weights else 0,
        channel_kernel_size=draw(st.sampled_from(KERNEL_SIZES)) if "WC" in operator.weights else 0,
        dtype=dtype,
        layout=layout,
        stored=-(-count // 8) * 8 if layout == "nhwc" and draw(st.booleans()) else 0,
        alignment=draw(st.sampled_from([4, 8, 16])),
    )


devices = st.sampled_from(
    [*KNOWN_DEVICES.values(), replace(KNOWN_DEVICES[90], large_clusters=True, multiprocessors=60)]
)
many = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@many
@given(gates(), devices, st.sampled_from([1, 8, 128]), st.sampled_from(["auto", "staged"]))
def test_a_launch_has_the_blocks_that_its_cut_needs_and_cuts_no_vector(
    gate, limits, batch, strategy
):
    for launch in plan(gate, limits, batch=batch, strategy=strategy).launches:
        if launch.tiling is None:
            continue
        cut = dict(launch.integers)
        positions, channels = cut["positions_per_block"], cut.get("channels_per_block", gate.stored)
        busy = ceil(gate.positions / positions) * ceil(gate.stored / channels)
        assert launch.blocks_per_image == busy or launch.cluster > busy > launch.cluster // 2
        in_rows = gate.storage.rows_are_channels
        assert (positions if in_rows else channels) % gate.vector == 0
        assert (gate.positions if in_rows else gate.stored) % gate.vector == 0
        assert gate.layout != "chw32" or channels % 32 == 0


def test_more_statistics_than_shared_memory_holds_are_refused():
    operator = operator_for(GateSpec(mixer="conv", join="gates"))
    gate = Gate(operator, 9000, 1, 1, 0, 7, 3, dtype="float32", layout="nchw")
    with pytest.raises(BadInput, match="its statistics exceed the shared memory of a block"):
        plan(gate, KNOWN_DEVICES[75], strategy="staged")


def test_threads_come_to_every_element_of_an_image_once(built):
    """By the kernels' own slices, tiles and lanes, in the blocks and warps of GPUs."""
    launches = []
    for (dtype, layout), shape in product(FORMATS, [(20, 5, 5), (130, 14, 13), (256, 56, 55)]):
        gate = Gate(CBAM_GATE, *shape, 4, 7, dtype=dtype, layout=layout)
        for capability, strategy in ((90, "fused"), (86, "staged")):
            chosen = plan(gate, KNOWN_DEVICES[capability], strategy=strategy)
            launches += [(gate, launch) for launch in chosen.launches]
    assert {launch.threads for _, launch in launches} == {256, 512}
    for (gate, launch), visits_of in zip(launches, visits(built, launches), strict=True):
        assert visits_of == (1, 1, 0), f"{gate}: {launch}"


@pytest.mark.parametrize("kernel_size", [3, 7])
@pytest.mark.parametrize("shape", [(9, 14), (1, 20), (20, 1), (5, 5)], ids=str)
def test_a_slice_with_its_halo_holds_what_its_convolution_reads(shape, kernel_size):
    height, width = shape
    gate = Gate(CBAM_GATE, 64, height, width, 4, kernel_size)
    reach = kernel_size // 2
    number = np.arange(gate.positions).reshape(shape)
    around = np.pad(number, reach, constant_values=-1)
    windows = np.lib.stride_tricks.sliding_window_view(around, (kernel_size, kernel_size))
    read = [window[window >= 0] for window in windows.reshape(gate.positions, -1)]
    launches = plan(gate, KNOWN_DEVICES[75], strategy="staged").launches
    cut = dict(launches[-1].integers)
    for first in range(0, gate.positions, cut["positions_per_block"]):
        last = min(gate.positions, first + cut["positions_per_block"]) - 1
        needed = np.unique(np.concatenate(read[first : last + 1]))
        assert first - gate.halo <= needed[0]
        assert needed[-1] <= last + gate.halo
        assert needed[-1] - needed[0] < cut["window_size"]


@many
@given(gates(), devices, st.sampled_from([1, 8, 128]), st.sampled_from(["auto", "staged"]))
def test_no_limit_is_exceeded(gate, limits, batch, strategy):
    launch_plan = plan(gate, limits, batch=batch, strategy=strategy)
    for launch in launch_plan.launches:
        assert launch.shared_bytes <= limits.block_shared_bytes
        assert launch.threads in (256, 512)
        assert launch.cluster in CLUSTER_SIZES
        assert launch.cluster <= limits.largest_cluster
        assert launch.blocks_per_image % launch.cluster == 0
        assert grid(launch, batch, limits, running=1) <= limits.grid_blocks
        assert all(-(2**31) <= value < 2**31 for _, value in launch.integers)
        if launch.tiling:
            arguments = re.search(r"(\d+), (\d+), (\d+)>", launch.tiling.expression)
            vector, threads, lanes = map(int, arguments.groups())
            assert vector * gate.element_bytes <= min(16, gate.alignment)
            assert threads == launch.threads
            assert lanes & (lanes - 1) == 0
            assert lanes <= (32 if gate.storage.rows_are_channels else threads)
            if gate.layout == "chw32":  # the kernel's own static assertions
                assert lanes % (32 // vector) == 0
                assert threads // lanes % 4 == 0


@pytest.mark.parametrize("dtype_layout", FORMATS, ids="-".join)
@pytest.mark.parametrize("shape", MAPS[:4], ids=str)
def test_resnet50_gates_are_fused_on_hopper_and_keep_most_of_the_map(shape, dtype_layout):
    dtype, layout = dtype_layout
    count, edge = shape
    gate = Gate(CBAM_ADD_RELU, count, edge, edge, count // 16, 7, dtype=dtype, layout=layout)
    chosen = plan(gate, KNOWN_DEVICES[90], batch=32)
    (launch,) = chosen.launches
    rows, _ = gate.matrix(launch.integer("positions_per_block"), gate.stored)
    assert launch.integer("kept_rows") > rows / 2


def test_plans_of_every_size_and_kind_are_ranked():
    gate = Gate(CBAM_GATE, 256, 56, 56, 16, 7)
    ranked = ranked_plans(gate, KNOWN_DEVICES[90], batch=8)
    assert len(set(ranked)) == len(ranked)
    assert set(ranked) == {
        *fused_candidates(gate, KNOWN_DEVICES[90]),
        *staged_candidates(gate, KNOWN_DEVICES[90], 8),
    }
    assert plan(gate, KNOWN_DEVICES[90], batch=8) == ranked[0]


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((2048, 7, 7), "float16", {1, 2}),
        ((2048, 7, 7), "int8", {1, 2, 4}),
        ((1024, 14, 14), "float16", {1}),
    ],
)
def test_a_cluster_may_take_as_many_images_as_fit_where_weights_are_most(shape, dtype, expected):
    gate = Gate(CBAM_ADD_RELU, *shape, hidden=shape[0] // 16, kernel_size=7, dtype=dtype)
    candidates = fused_candidates(gate, KNOWN_DEVICES[90])
    assert {
        one.launches[0].images for one in candidates if one.launches[0].cluster == 8
    } == expected


def test_large_clusters_are_for_devices_that_say_so():
    gate = Gate(CBAM_GATE, 256, 56, 56, 16, 7)
    clusters = [
        {one.launches[0].cluster for one in fused_candidates(gate, limits)}
        for limits in (KNOWN_DEVICES[90], replace(KNOWN_DEVICES[90], large_clusters=True))
    ]
    assert clusters == [{1, 2, 4, 8}, {1, 2, 4, 8, 16}]
    assert replace(KNOWN_DEVICES[86], large_clusters=True).largest_cluster == 1


def test_without_clusters_a_small_map_is_fused_and_a_large_one_is_not():
    small = Gate(CBAM_GATE, 64, 8, 8, 4, 7)
    large = Gate(CBAM_GATE, 256, 56, 56, 16, 7)
    assert len(plan(small, KNOWN_DEVICES[86]).launches) == 1
    assert len(plan(large, KNOWN_DEVICES[86]).launches) == 3
    assert plan(small, KNOWN_DEVICES[86]).launches[0].cluster == 1


def test_a_small_shared_memory_limit_is_kept():
    """What a kernel embedded in a TensorRT engine may use: 48 KiB, without opting in."""
    limits = replace(KNOWN_DEVICES[90], block_shared_bytes=48 * 1024)
    for count, edge in MAPS:
        gate = Gate(CBAM_GATE, count, edge, edge, max(1, count // 16), 7)
        for strategy in ("auto", "fused", "staged"):
            for launch in plan(gate, limits, strategy=strategy).launches:
                assert launch.shared_bytes <= 48 * 1024


def test_a_batch_beyond_the_grid_is_refused_by_name():
    launch = plan(Gate(CBAM_GATE, 64, 8, 8, 4, 7), KNOWN_DEVICES[90]).launches[0]
    with pytest.raises(BadInput, match="batch 2147483648"):
        grid(launch, 2**31, KNOWN_DEVICES[90], running=1)


@pytest.mark.parametrize(("batch", "running", "blocks"), [(5, 24, 24), (5, 64, 40), (1, 24, 8)])
def test_a_persistent_launch_has_no_more_blocks_than_run_at_the_same_time(batch, running, blocks):
    launch = plan(Gate(CBAM_GATE, 256, 56, 56, 16, 7), KNOWN_DEVICES[90]).launches[0]
    assert launch.blocks_per_image == 8
    for persistent, expected in ((True, blocks), (False, 8 * batch)):
        one = replace(launch, persistent=persistent)
        assert grid(one, batch, KNOWN_DEVICES[90], running) == expected
        assert one.arguments.count("batch") == persistent


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": 0}, "positive"),
        ({"kernel_size": 17}, "13, 15"),
        ({"kernel_size": 4}, "kernel size 4"),
        ({"channel_kernel_size": 3}, "without a convolution"),
        ({"hidden": 0}, "hidden"),
        ({"layout": "chw32"}, "int8"),
        ({"stored": 3}, "stored"),
        ({"alignment": 1}, "aligned"),
        ({"height": 2**15, "width": 2**15}, "2\\^30"),
    ],
)
def test_a_gate_without_kernels_is_refused(change, message):
    sizes = {"channels": 64, "height": 8, "width": 8, "hidden": 4, "kernel_size": 7}
    with pytest.raises(BadInput, match=message):
        Gate(CBAM_GATE, **{**sizes, **change})


def test_fused_refuses_a_map_that_is_too_large():
    gate = Gate(CBAM_GATE, 64, 1024, 1024, 4, 7)
    assert fused_candidates(gate, KNOWN_DEVICES[90]) == ()
    with pytest.raises(BadInput, match="too large for the fused kernel"):
        plan(gate, KNOWN_DEVICES[90], strategy="fused")


def test_neighbouring_lanes_read_whole_lines():
    gate = Gate(CBAM_GATE, 256, 56, 56, 16, 7, layout="nchw")
    tiling = choose_tiling(gate, 256, 49, 512, 32)
    assert tiling.column_lanes * gate.vector * gate.element_bytes >= 128
