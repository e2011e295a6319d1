"""How long a launch plan takes, by counting: what `geometry.plan` compares plans by.

Of every launch are counted the bytes that come from device memory and from L2, the waves of blocks,
the barriers that a block waits for, and the round trips to memory that one block makes one after
the other, because no more loads than `LOADS` are in flight per thread. A launch then takes

    launch + max(device memory, L2, starts x round trips to memory + waves x those to L2)
           + starts x start + waves x (barriers + shared memory)

Arithmetic is left out: every plan of one gate does much the same. So are bank conflicts. All
constants stand in this module with their source; ``make gpu-check`` sets the predicted beside the
measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from cbam_deploy.plugins.gate import Gate
from cbam_deploy.plugins.launches import Launch, LaunchPlan
from cbam_deploy.plugins.stages import branches, described, pools, workspace_shapes

LAUNCH_SECONDS = 1.3e-6
"""From one kernel's end to the next one's start on one stream of a CUDA graph. Guess."""
PROGRAMMATIC_LAUNCH_SECONDS = 0.7e-6
"""The same where the next one's blocks have started by then, and only wait. Guess."""
WAVE_SECONDS = 0.5e-6
"""To start the blocks of a wave and to drain their last writes. Guess."""
CLUSTER_BARRIER_SECONDS = 0.6e-6
"""To wait for what a cluster's other blocks send. Guess, from when that took a memory fence."""
BLOCK_BARRIER_SECONDS = 0.03e-6
"""A barrier of one block. Guess."""
MEMORY_SECONDS, L2_SECONDS = 0.8e-6, 0.25e-6
"""A load's round trip where many are under way. Guess: a few times what a lone load takes."""

L2_BYTES_PER_CLOCK = 24
"""Of each multiprocessor, from L2, where all read at once. Guess."""
SHARED_BYTES_PER_CLOCK = 128
"""CUDA C++ Programming Guide 13.0, "Shared Memory": 32 banks of 4 bytes."""
L2_SHARE = 0.5
"""Part of L2 that holds what is read again. Guess: A100 and H100 may hold a line in both halves."""

CLUSTER_MULTIPROCESSORS = 16
"""Multiprocessors that one cluster can be spread over, the least of a graphics processing cluster.
H100 whitepaper: 8 of them with 18, of which 132 in all are in use. A guess elsewhere."""
REGISTERS = 65536  # of a multiprocessor: Programming Guide, "Technical Specifications"
REGISTERS_PER_THREAD = 96  # about, on sm_90: benchmarks/results/kernel-report.md
RESERVED_SHARED_BYTES = 1024  # of each block, by the system: Programming Guide, as above
LOADS = 4  # in flight per thread: Tiling::batch of kernels/tile.cuh, the unrolled layers


@dataclass(frozen=True)
class Chip:
    """What durations depend on.

    Attributes:
        multiprocessors: their number.
        shared_bytes: shared memory of a multiprocessor.
        memory_bytes_per_s: of device memory.
        l2_bytes: size of L2.
        clock_hz: of the multiprocessors.
    """

    multiprocessors: int
    shared_bytes: int
    memory_bytes_per_s: float
    l2_bytes: float
    clock_hz: float

    @property
    def l2_bytes_per_s(self) -> float:
        """Of all multiprocessors together."""
        return self.multiprocessors * L2_BYTES_PER_CLOCK * self.clock_hz


@dataclass(frozen=True)
class Datasheet:
    """Multiprocessors, GB/s of device memory, MiB of L2, boost clock in MHz."""

    multiprocessors: int
    gigabytes_per_s: int
    l2_mebibytes: int
    megahertz: int


# NVIDIA's, of T4, A100 80GB SXM, A10, Jetson AGX Orin 64GB, L4, H100 SXM, B200, Jetson AGX Thor,
# RTX PRO 6000 Blackwell, DGX Spark; an H200 differs from an H100 in its memory alone, 4800 GB/s.
# Clock and L2 of the B200, of Thor and of the DGX Spark are guesses.
DATASHEETS: dict[int, Datasheet] = {
    75: Datasheet(40, 320, 4, 1590),
    80: Datasheet(108, 2039, 40, 1410),
    86: Datasheet(72, 600, 6, 1695),
    87: Datasheet(16, 204, 4, 1300),
    89: Datasheet(58, 300, 48, 2040),
    90: Datasheet(132, 3350, 50, 1980),
    100: Datasheet(148, 8000, 126, 1965),
    110: Datasheet(20, 273, 32, 1575),
    120: Datasheet(188, 1792, 128, 2617),
    121: Datasheet(48, 273, 24, 2400),
}
"""A common product of each compute capability."""


def chip(capability: int, multiprocessors: int, shared_bytes: int) -> Chip:
    """A GPU by its compute capability (90 for 9.0); one with fewer multiprocessors has less of all.

    So a MIG slice has its share. A GPU that is not in the table counts as the closest earlier one.
    """
    nearest = max((known for known in DATASHEETS if known <= capability), default=min(DATASHEETS))
    usual = DATASHEETS[nearest]
    share = min(1.0, multiprocessors / usual.multiprocessors)
    return Chip(
        multiprocessors,
        shared_bytes,
        share * usual.gigabytes_per_s * 1e9,
        share * usual.l2_mebibytes * 2**20,
        usual.megahertz * 1e6,
    )


@dataclass(frozen=True)
class Work:
    """What one launch does for a batch.

    Attributes:
        memory_bytes: read from and written to device memory.
        l2_bytes: read and written by the multiprocessors, whether they come from device memory or
            not.
        waves: of blocks, or of images, that are worked on at the same time.
        starts: waves that find nothing of their map under way.
        memory_trips, l2_trips: that one block waits for one after the other.
        barriers, cluster_barriers: that one block waits for.
        shared_bytes: of the map that one block keeps and reads again, in shared memory.
        programmatic: whether its blocks start while those of the launch before still run.
    """

    memory_bytes: int
    l2_bytes: int
    waves: int
    starts: int
    memory_trips: int = 0
    l2_trips: int = 0
    barriers: int = 0
    cluster_barriers: int = 0
    shared_bytes: int = 0
    programmatic: bool = False

    def seconds(self, on: Chip) -> float:
        """Predicted duration, with the launch; never shorter where any count is larger."""
        moving = max(
            self.memory_bytes / on.memory_bytes_per_s,
            self.l2_bytes / on.l2_bytes_per_s,
            self.starts * self.memory_trips * MEMORY_SECONDS
            + self.waves * self.l2_trips * L2_SECONDS,
        )
        waiting = (
            self.barriers * BLOCK_BARRIER_SECONDS
            + self.cluster_barriers * CLUSTER_BARRIER_SECONDS
            + self.shared_bytes / (SHARED_BYTES_PER_CLOCK * on.clock_hz)
        )
        launch = PROGRAMMATIC_LAUNCH_SECONDS if self.programmatic else LAUNCH_SECONDS
        return launch + moving + self.starts * WAVE_SECONDS + self.waves * waiting


def seconds(plan: LaunchPlan, batch: int, on: Chip) -> float:
    """Predicted duration of a plan, all launches together."""
    return sum(work.seconds(on) for work in works(plan, batch, on))


def works(plan: LaunchPlan, batch: int, on: Chip) -> tuple[Work, ...]:
    """What each launch of a plan does for `batch` images."""
    return tuple(_works(plan, batch, on))


def resident_blocks(launch: Launch, on: Chip) -> int:
    """Blocks that run at the same time; 0 where no cluster of the launch fits."""
    of_shared = on.shared_bytes // (launch.shared_bytes + RESERVED_SHARED_BYTES)
    per_multiprocessor = min(of_shared, REGISTERS // (REGISTERS_PER_THREAD * launch.threads))
    if launch.images > 1:  # whose kernels have more registers
        per_multiprocessor = min(1, per_multiprocessor)
    if launch.cluster == 1:
        return per_multiprocessor * on.multiprocessors
    groups = max(1, on.multiprocessors // CLUSTER_MULTIPROCESSORS)
    of_group = on.multiprocessors // groups * per_multiprocessor
    return groups * (of_group // launch.cluster) * launch.cluster


def _works(plan: LaunchPlan, batch: int, on: Chip) -> Iterator[Work]:
    known: set[str] = set()
    for launch in plan.launches:
        yield _work(plan, launch, batch, on, known)
        known |= set(launch.inputs)


def _work(plan: LaunchPlan, launch: Launch, batch: int, on: Chip, known: set[str]) -> Work:
    """Of one launch; `known` are the buffers that earlier ones have read."""
    gate = plan.gate
    image = gate.stored * gate.positions * gate.element_bytes
    slices = _slices(gate, launch)
    blocks = batch * launch.blocks_per_image
    resident = min(blocks, max(1, resident_blocks(launch, on)))
    together = min(launch.images, -(-blocks // resident))  # images that a cluster takes at a time
    waves = -(-blocks // (resident * together))
    held = L2_SHARE * on.l2_bytes
    trip = launch.threads * LOADS * gate.vector * gate.element_bytes
    slice_bytes = together * _slice_bytes(gate, launch)
    walk = -(-slice_bytes // trip)

    read = _others_read(gate, launch, plan.splits, slices)
    written = _written(gate, launch, plan.splits, image)
    for_images = _SHARED["fused"] if launch.stage == "fused" else ()
    l2 = sum(written.values())
    l2 += sum(-(-size // together) if name in for_images else size for name, size in read.items())
    threads = launch.blocks_per_image * launch.threads
    l2_trips = sum(
        -(-size // (threads * LOADS * _bytes_of_load(gate, launch, name)))
        for name, size in read.items()
    )
    memory = batch * written.get("y", 0)
    memory += sum(size for name, size in weight_bytes(gate).items() if name in {*read} - known)
    memory_trips, barriers, shared, copies = 0, 0, 0, False

    maps = [name for name in ("x", "r") if name in launch.inputs]
    l2 += image * len(maps)
    fresh = [name for name in maps if name not in known or batch * image > held]
    memory += batch * image * len(fresh)
    if launch.stage == "fused":
        spec = gate.operator.gate
        parts = spec.has_channel + spec.has_spatial
        lost = _not_kept(gate, launch, slices[0])
        lost_of_image = parts * sum(_not_kept(gate, launch, own) for own in slices)
        l2 += lost_of_image
        lost_trips = parts * -(-lost // trip)
        memory_trips = walk
        l2_trips += walk * ("r" in maps)  # it was brought to L2 meanwhile
        if lost and resident * (lost + slice_bytes * ("r" in maps)) > held:
            memory += batch * lost_of_image
            memory_trips += lost_trips
        else:
            l2_trips += lost_trips
        shared = parts * (slice_bytes - lost)
        # The next image's map is copied to where this one's was.
        copies = launch.persistent and gate.vector * gate.element_bytes == 16
        barriers = 1 + 3 * spec.has_channel + spec.has_spatial
    elif fresh and launch.programmatic and fresh == ["r"] and waves == 1:
        l2_trips += walk  # it was brought to L2 while the launch before still ran
    elif fresh:
        memory_trips = walk  # r along with x
    elif maps:
        l2_trips += walk
    return Work(
        memory,
        batch * l2,
        waves,
        1 if copies else waves,
        memory_trips,
        l2_trips,
        barriers if launch.cluster == 1 else 0,
        barriers if launch.cluster > 1 else 0,
        shared,
        launch.programmatic,
    )


_SHARED = {
    "fused": ("w0", "w1", "b1"),
    "channel_statistics": ("w0",),
    "channel_excitation": ("w1", "b1"),
}
"""By stage, the weights that an image's blocks share among them; all others each block reads."""


def weight_bytes(gate: Gate) -> dict[str, int]:
    """Bytes of each of the weights."""
    sizes = (gate.channels, gate.hidden, gate.kernel_size, gate.channel_kernel_size)
    shapes = gate.operator.weight_shapes(*sizes)
    return {name.lower(): 4 * math.prod(shape) for name, shape in shapes.items()}


def _slices(gate: Gate, launch: Launch) -> list[int]:
    """Positions of each of an image's slices along the positions, the first one's the most."""
    cut = dict(launch.integers).get("positions_per_block", gate.positions)
    return [min(cut, gate.positions - first) for first in range(0, gate.positions, cut)]


def _slice_bytes(gate: Gate, launch: Launch) -> int:
    """Of the first block's slice of a map."""
    channels = dict(launch.integers).get("channels_per_block", gate.stored)
    return _slices(gate, launch)[0] * min(channels, gate.stored) * gate.element_bytes


def _not_kept(gate: Gate, launch: Launch, positions: int) -> int:
    """Bytes of a fused block's slice that shared memory does not hold."""
    rows, columns = gate.matrix(positions, gate.stored)
    lost = max(0, rows - launch.integer("kept_rows"))
    return lost * columns * gate.vector * gate.element_bytes


def _others_read(gate: Gate, launch: Launch, splits: int, slices: list[int]) -> dict[str, int]:
    """Bytes that all blocks of an image read, by name, of what is no map."""
    blocks = launch.blocks_per_image
    read = {
        name: size * (1 if name in _SHARED.get(launch.stage, ()) else blocks)
        for name, size in weight_bytes(gate).items()
        if name in launch.inputs
    }
    if "partials" in launch.inputs:
        of_split = gate.channels * pools(gate)
        if gate.hidden and "w0" not in launch.inputs:
            of_split = gate.hidden * branches(gate)
        read["partials"] = blocks * splits * of_split * 4
    if "channel_gates" in launch.inputs:
        times = len(slices) if launch.stage == "apply" else blocks
        read["channel_gates"] = times * gate.stored * 4
    if "pooled" in launch.inputs:
        read["pooled"] = blocks // len(slices) * _windows(gate, slices) * described(gate) * 4
    return read


def _bytes_of_load(gate: Gate, launch: Launch, name: str) -> int:
    """That a thread reads at once of what is no map."""
    if name in ("w0", "w1"):
        row = gate.channels if name == "w0" else gate.hidden or gate.channels
        share = launch.integer("channels_per_block") if launch.stage == "channel_statistics" else 4
        return 16 if (row | share) % 4 == 0 else 4
    return 4 * {"partials": pools(gate), "pooled": described(gate)}.get(name, 1)


def _windows(gate: Gate, slices: list[int]) -> int:
    """Positions that the convolutions of all slices look at, with those that several look at."""
    first, total = 0, 0
    for own in slices:
        total += min(gate.positions, first + own + gate.halo) - max(0, first - gate.halo)
        first += own
    return total


def _written(gate: Gate, launch: Launch, splits: int, image: int) -> dict[str, int]:
    """Bytes of one image that a launch writes, by name."""
    shapes = workspace_shapes(gate, splits, first_layer="w0" in launch.inputs)
    sizes = {name: 4 * math.prod(shape) for name, shape in shapes.items()}
    return {name: sizes.get(name, image) for name in launch.outputs}
