"""The counts that plans are compared by, and orderings that no constant may turn round."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from cbam_deploy.gates.description import CBAM
from cbam_deploy.gates.operators import operator_for
from cbam_deploy.plugins import cost_model
from cbam_deploy.plugins.cost_model import Work, chip, resident_blocks, seconds, works
from cbam_deploy.plugins.fused_launch import fused_plan
from cbam_deploy.plugins.gate import Gate
from cbam_deploy.plugins.geometry import (
    KNOWN_DEVICES,
    fused_candidates,
    plan,
    ranked_plans,
    staged_candidates,
)
from cbam_deploy.plugins.tiling import Tiling

CBAM_ADD_RELU = operator_for(CBAM, residual=True, activation="relu")
RESNET50 = ((256, 56), (512, 28), (1024, 14), (2048, 7))
H100 = chip(90, 132, 228 * 1024)
HOPPER = replace(KNOWN_DEVICES[90], large_clusters=True)
CONSTANTS = (
    "LAUNCH_SECONDS",
    "PROGRAMMATIC_LAUNCH_SECONDS",
    "WAVE_SECONDS",
    "CLUSTER_BARRIER_SECONDS",
    "BLOCK_BARRIER_SECONDS",
    "MEMORY_SECONDS",
    "L2_SECONDS",
    "L2_BYTES_PER_CLOCK",
    "SHARED_BYTES_PER_CLOCK",
    "L2_SHARE",
)


def gate_on(channels, edge, **storage):
    return Gate(CBAM_ADD_RELU, channels, edge, edge, channels // 16, 7, **storage)


def weight_bytes(gate):
    """Of each of CBAM's weights, written out."""
    c, h, k = gate.channels, gate.hidden, gate.kernel_size
    return {"w0": 4 * h * c, "b0": 4 * h, "w1": 4 * c * h, "b1": 4 * c, "ws": 8 * k * k, "bs": 4}


def window(gate, positions):
    """Positions that the convolution of some neighbouring `positions` looks at, one by one."""
    reach = gate.kernel_size // 2 * (gate.width + 1)
    looked_at = {p + d for p in positions for d in range(-reach, reach + 1)}
    return len([p for p in looked_at if 0 <= p < gate.positions])


def blocks_of(gate, per_block, count):
    every = list(range(gate.positions))
    return [every[rank * per_block : (rank + 1) * per_block] for rank in range(count)]


@pytest.mark.parametrize("kept_rows", [0, 5, 1000])
@pytest.mark.parametrize("cluster", [1, 4])
def test_bytes_of_the_fused_kernel_are_those_that_its_blocks_touch(cluster, kept_rows):
    gate = Gate(CBAM_ADD_RELU, 32, 7, 5, 4, 3)
    one = fused_plan(gate, Tiling(gate, 256, 4), cluster, kept_rows)
    per_block = -(-35 // cluster)
    weights = weight_bytes(gate)
    l2 = weights["w0"] + weights["w1"] + weights["b1"]
    for positions in blocks_of(gate, per_block, cluster):
        l2 += weights["b0"] + weights["ws"] + weights["bs"]
        for row, _ in enumerate(positions):
            first_read, residual, written = 64, 64, 64
            l2 += first_read + residual + written
            if row >= kept_rows:
                l2 += 2 * 64
    (work,) = works(one, 3, H100)
    assert work.l2_bytes == 3 * l2
    assert work.memory_bytes == 3 * 3 * 35 * 64 + sum(weights.values())
    assert work.shared_bytes == 2 * 64 * min(kept_rows, per_block)
    assert (work.barriers, work.cluster_barriers) == ((5, 0) if cluster == 1 else (0, 5))


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_bytes_of_the_staged_kernels_are_those_that_their_blocks_touch(layout):
    gate = Gate(CBAM_ADD_RELU, 192, 24, 20, 12, 7, layout=layout)
    image, weights = 192 * 480 * 2, weight_bytes(gate)
    layers = ("w0", "b0", "w1", "b1")
    for one in staged_candidates(gate, KNOWN_DEVICES[80], 4):
        _, *excitation, spatial, applied = one.launches
        partials = one.splits * (12 if excitation else 192) * 8
        expected = [image + partials + (weights["w0"] if excitation else 0)]
        per_block = spatial.integer("positions_per_block")
        l2 = image + 480 * 8  # x, and written: descriptors
        if excitation:
            blocks = excitation[0].blocks_per_image
            shared = weights["w1"] + weights["b1"]
            expected.append(blocks * (partials + weights["b0"]) + shared + 192 * 4)
            l2 += spatial.blocks_per_image * 192 * 4  # channel gates
        else:
            l2 += 192 * 4  # channel gates, written
            l2 += spatial.blocks_per_image * (partials + sum(weights[name] for name in layers))
        expected.append(l2)
        assert spatial.blocks_per_image == -(-480 // per_block)
        per_block = applied.integer("positions_per_block")
        l2 = 3 * image
        for positions in blocks_of(gate, per_block, -(-480 // per_block)):
            for first in range(0, 192, applied.integer("channels_per_block")):
                l2 += 4 * min(applied.integer("channels_per_block"), 192 - first)
                l2 += 8 * window(gate, positions) + weights["ws"] + weights["bs"]
        expected.append(l2)
        found = works(one, 4, chip(80, 108, 164 * 1024))
        assert [work.l2_bytes for work in found] == [4 * size for size in expected]
        first = weights["w0"] if excitation else 0
        others = sum(weights[name] for name in layers) - first
        assert [work.memory_bytes for work in found] == [
            4 * image + first,
            *([others, 0] if excitation else [others]),
            4 * 2 * image + weights["ws"] + weights["bs"],
        ]


def test_a_kept_map_comes_while_the_image_before_it_is_worked_on():
    gate = Gate(CBAM_ADD_RELU, 32, 7, 5, 4, 3)
    for kept_rows, starts in ((35, 1), (34, 10)):
        one = fused_plan(gate, Tiling(gate, 256, 4), 1, kept_rows, 1 if starts == 1 else None)
        running = resident_blocks(one.launches[0], H100)
        (work,) = works(one, 10 * running, H100)
        assert (work.waves, work.starts) == (10, starts)


def test_images_that_a_cluster_takes_at_a_time_share_a_reading_of_the_weights():
    gate = gate_on(2048, 7)
    alone, pairs = (fused_plan(gate, Tiling(gate, 256, 256), 8, None, n) for n in (1, 2))
    read = sum(weight_bytes(gate)[name] for name in ("w0", "w1", "b1"))
    running = resident_blocks(pairs.launches[0], H100) // 8
    for batch, shared in ((running, 0), (2 * running, running)):
        (one,), (two,) = (works(plan, batch, H100) for plan in (alone, pairs))
        assert one.l2_bytes - two.l2_bytes == shared * read
        assert two.waves == 1
        assert two.shared_bytes == one.shared_bytes * (2 if shared else 1)


def test_what_l2_does_not_hold_comes_from_device_memory_again():
    gate = gate_on(256, 56)
    (one, *_) = staged_candidates(gate, HOPPER, 8)
    image, weights = 256 * 56 * 56 * 2, sum(weight_bytes(gate).values())
    few, many = (sum(work.memory_bytes for work in works(one, batch, H100)) for batch in (8, 64))
    assert few - weights == 3 * 8 * image
    assert many - weights == 5 * 64 * image


def scaled(monkeypatch, name, factor):
    if name:
        monkeypatch.setattr(cost_model, name, factor * getattr(cost_model, name))


every_constant = pytest.mark.parametrize(
    ("name", "factor"), [("", 1), *((name, by) for name in CONSTANTS for by in (0.5, 2))]
)


@every_constant
def test_more_of_anything_is_never_cheaper(name, factor, monkeypatch):
    scaled(monkeypatch, name, factor)
    work = Work(10**6, 10**6, 3, 2, 20, 20, 5, 5, 10**4)
    counts = [field for field in fields(work) if field.name != "programmatic"]
    assert len(counts) == 9
    for field in counts:
        count = getattr(work, field.name)
        durations = [
            replace(work, **{field.name: by * count}).seconds(H100) for by in (0, 1, 2, 100, 10**5)
        ]
        assert durations == sorted(durations)
        assert durations[0] < durations[-1], f"{field.name} counts"


def test_a_launch_that_starts_before_the_last_one_ends_costs_less():
    work = Work(10**6, 10**6, 3, 3)
    assert replace(work, programmatic=True).seconds(H100) < work.seconds(H100)


@every_constant
def test_more_images_never_take_less_time(name, factor, monkeypatch):
    scaled(monkeypatch, name, factor)
    for channels, edge in RESNET50:
        for one in ranked_plans(gate_on(channels, edge), HOPPER, batch=8):
            durations = [seconds(one, batch, H100) for batch in (1, 2, 8, 33, 64, 200)]
            assert durations == sorted(durations)


@every_constant
def test_large_batches_of_resnet50_are_fused(name, factor, monkeypatch):
    scaled(monkeypatch, name, factor)
    for channels, edge in RESNET50:
        for limits in (HOPPER, KNOWN_DEVICES[90]):
            assert len(plan(gate_on(channels, edge), limits, batch=64).launches) == 1


@every_constant
def test_one_image_is_not_left_to_eight_multiprocessors(name, factor, monkeypatch):
    scaled(monkeypatch, name, factor)
    for channels, edge in RESNET50:
        chosen = plan(gate_on(channels, edge), HOPPER, batch=1)
        assert chosen.launches[-1].blocks_per_image > 8
    large = plan(gate_on(256, 112), KNOWN_DEVICES[90], batch=1)
    assert [launch.cluster for launch in large.launches] == [1, 1, 1]
    assert large.launches[-1].blocks_per_image >= 132


def test_one_image_of_the_largest_map_is_staged_over_the_whole_chip():
    chosen = plan(gate_on(256, 56), KNOWN_DEVICES[90], batch=1)
    assert len(chosen.launches) == 3
    assert chosen.launches[-1].blocks_per_image >= 100


@pytest.mark.parametrize("capability", [75, 80, 87, 90])
@pytest.mark.parametrize(("channels", "edge"), RESNET50[2:])
def test_for_one_image_of_a_deep_map_blocks_share_the_weights(channels, edge, capability):
    gate, limits = gate_on(channels, edge), KNOWN_DEVICES[capability]
    chosen = plan(gate, limits, batch=1, strategy="staged")
    readers = {
        name: [launch for launch in chosen.launches if name in launch.inputs]
        for name in ("w0", "w1")
    }
    for name, (launch,) in readers.items():
        work = works(chosen, 1, limits.chip)[chosen.launches.index(launch)]
        assert work.l2_bytes < 2 * weight_bytes(gate)[name] + 10**6
        assert launch.blocks_per_image >= 8


def test_a_slice_of_a_gpu_has_its_share():
    part = chip(90, 33, 228 * 1024)
    assert part.memory_bytes_per_s == pytest.approx(H100.memory_bytes_per_s / 4)
    assert part.l2_bytes_per_s == pytest.approx(H100.l2_bytes_per_s / 4)
    assert part.l2_bytes == pytest.approx(H100.l2_bytes / 4)
    assert chip(88, 16, 164 * 1024).clock_hz == chip(87, 16, 164 * 1024).clock_hz


@pytest.mark.parametrize("multiprocessors", [1, 4, 7, 14, 16, 26, 60, 132])
def test_no_plan_needs_a_cluster_that_a_slice_has_no_room_for(multiprocessors):
    limits = replace(HOPPER, multiprocessors=multiprocessors)
    for channels, edge in RESNET50:
        gate = gate_on(channels, edge)
        for one in fused_candidates(gate, limits):
            launch = one.launches[0]
            assert resident_blocks(launch, limits.chip) >= launch.cluster
            # Blocks of more than half the shared memory are alone on their multiprocessor.
            if launch.shared_bytes > 114 * 1024:
                assert launch.cluster <= multiprocessors
        assert any(len(one.launches) > 1 for one in ranked_plans(gate, limits))
