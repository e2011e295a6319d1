"""Launch geometry: which kernels compute a gate on a device, and how they cut its map.

`plan` is one plain function of shape, type, layout and the device's limits. Whatever it chooses is
right for any batch; what is fast is for `cost_model` to say.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from cbam_deploy.errors import BadInput
from cbam_deploy.plugins.cost_model import (
    DATASHEETS,
    Chip,
    chip,
    resident_blocks,
    seconds,
    weight_bytes,
)
from cbam_deploy.plugins.fused_launch import fused_fixed_bytes, fused_plan, positions_per_block
from cbam_deploy.plugins.gate import Gate, round_up
from cbam_deploy.plugins.launches import Launch, LaunchPlan
from cbam_deploy.plugins.staged_launches import (
    Cut,
    apply,
    channel_excitation,
    channel_statistics,
    spatial_statistics,
    staged_plan,
)
from cbam_deploy.plugins.stages import Stage, stages
from cbam_deploy.plugins.tiling import Tiling

Strategy = Literal["auto", "fused", "staged"]

CLUSTER_SIZES = (1, 2, 4, 8, 16)
PORTABLE_CLUSTER = 8
"""CUDA C++ Programming Guide 13.0, "Thread Block Clusters": larger ones not every GPU launches."""
DEFAULT_SHARED_BYTES = 48 * 1024
"""Dynamic shared memory a kernel may use without opting in to more."""

_PERSISTENT = (9,)
"""Major compute capabilities whose clusters go on from image to image: of others ptxas spills."""
_MOST_SPLITS = 16  # parts of one channel's sum; blocks that share a layer's weights
_ROWS_OF_WARP = 4  # of weights, at once: multiply_rows
_BLOCKS_PER_MULTIPROCESSOR = (4, 1)  # that staged launches are cut into, as far as the map allows
_MOST_POSITIONS = 2048  # of a block of the last launch: their gates stand in shared memory


@dataclass(frozen=True)
class DeviceLimits:
    """What a GPU allows.

    Attributes:
        capability: compute capability, 90 for 9.0.
        multiprocessors: their number.
        block_shared_bytes: largest dynamic shared memory of one block, with opting in.
        multiprocessor_shared_bytes: shared memory of a multiprocessor.
        grid_blocks: most blocks in a grid's first dimension.
        warp: lanes of a warp.
        small_block, large_block: threads of a block that shares its multiprocessor with others, and
            of one that has it alone.
        large_clusters: whether clusters of more than `PORTABLE_CLUSTER` blocks may be tried. The
            driver is asked before one is launched (`cuda_launch.load_first`).
    """

    capability: int
    multiprocessors: int
    block_shared_bytes: int
    multiprocessor_shared_bytes: int
    grid_blocks: int = 2**31 - 1
    warp: int = 32
    small_block: int = 256
    large_block: int = 512
    large_clusters: bool = False

    @property
    def largest_cluster(self) -> int:
        """Blocks in a cluster; 1 without clusters."""
        if self.capability < 90:
            return 1
        return CLUSTER_SIZES[-1] if self.large_clusters else PORTABLE_CLUSTER

    @property
    def programmatic(self) -> bool:
        """Whether a launch may start before the one in front of it has ended."""
        return self.capability >= 90

    @property
    def chip(self) -> Chip:
        """What durations on it depend on."""
        return chip(self.capability, self.multiprocessors, self.multiprocessor_shared_bytes)


# CUDA C++ Programming Guide 13.0, "Memory Information per Compute Capability".
KNOWN_DEVICES: dict[int, DeviceLimits] = {
    capability: DeviceLimits(
        capability, DATASHEETS[capability].multiprocessors, block * 1024, whole * 1024
    )
    for capability, block, whole in (
        (75, 64, 64),
        (80, 163, 164),
        (86, 99, 100),
        (87, 163, 164),
        (89, 99, 100),
        (90, 227, 228),
        (100, 227, 228),
        (110, 227, 228),
        (120, 99, 100),
        (121, 99, 100),
    )
}


def known_device(capability: int) -> DeviceLimits:
    """The device of `KNOWN_DEVICES` whose launches a GPU of compute capability `capability` takes.

    That is the closest earlier one where it is not among them.

    Raises:
        BadInput: the GPU is older than all of them.
    """
    earlier = [known for known in KNOWN_DEVICES if known <= capability]
    if not earlier:
        raise BadInput(
            f"compute capability {capability // 10}.{capability % 10} is older than the kernels",
            "use --gate native",
        )
    return KNOWN_DEVICES[max(earlier)]


def plan(
    gate: Gate,
    limits: DeviceLimits,
    *,
    batch: int = 8,
    strategy: Strategy = "auto",
) -> LaunchPlan:
    """The kernels and geometry for `gate` that are predicted to be fastest.

    The plan is right for every batch; `batch` is the one it is to be fast for. ``fused`` and
    ``staged`` leave no choice between the two.

    Raises:
        BadInput: `strategy` is ``fused`` and the map is too large for it, or the gate's statistics
            exceed the shared memory of a block.
    """
    return ranked_plans(gate, limits, batch=batch, strategy=strategy)[0]


def ranked_plans(
    gate: Gate,
    limits: DeviceLimits,
    *,
    batch: int = 8,
    strategy: Strategy = "auto",
) -> tuple[LaunchPlan, ...]:
    """Every plan for `gate`, by predicted duration, the fastest first; arguments as for `plan`.

    A GPU that cannot launch the first, whose cluster has no room on it, can launch a later one:
    with ``auto`` the launches of one that is staged need no cluster.
    """
    plans = [] if strategy == "staged" else list(fused_candidates(gate, limits))
    if strategy == "fused":
        if not plans:
            raise BadInput(f"{gate}: too large for the fused kernel", "use the staged kernels")
    else:
        try:
            plans += staged_candidates(gate, limits, batch)
        except BadInput:
            if not plans:
                raise
    on = limits.chip

    def rank(one: LaunchPlan) -> tuple[float, ...]:
        # Of equals, the one that can have more loads in flight.
        first = one.launches[0]
        return seconds(one, batch, on), len(one.launches), first.images, -first.threads

    return tuple(sorted(plans, key=rank))


def fused_candidates(gate: Gate, limits: DeviceLimits) -> tuple[LaunchPlan, ...]:
    """The fused kernel with every cluster size and block size that works, smallest first."""
    return tuple(_fused(gate, limits))


def _fused(gate: Gate, limits: DeviceLimits) -> Iterator[LaunchPlan]:
    for cluster in CLUSTER_SIZES:
        per_block = positions_per_block(gate, cluster)
        if cluster > limits.largest_cluster:
            break
        if cluster > 1 and per_block == positions_per_block(gate, cluster // 2):
            continue  # the added blocks would have nothing to do
        for threads in (limits.small_block, limits.large_block):
            rows, columns = gate.matrix(per_block, gate.stored)
            tiling = choose_tiling(gate, rows, columns, threads, limits.warp)
            free = limits.block_shared_bytes - fused_fixed_bytes(gate, tiling, cluster)
            if free < 0:
                continue
            kept = min(rows, free // 16 * 16 // (columns * gate.vector * gate.element_bytes))
            persistent = kept == rows and limits.capability // 10 in _PERSISTENT
            copied = gate.vector * gate.element_bytes == 16  # in the background
            choices: list[int | None] = [1 if persistent and copied else None]
            if persistent and threads == limits.small_block and _weights_are_most(gate):
                choices += [2, 4]
            for images in choices:
                candidate = fused_plan(gate, tiling, cluster, kept, images)
                launch = candidate.launches[0]
                fits = launch.shared_bytes <= limits.block_shared_bytes
                if fits and resident_blocks(launch, limits.chip):
                    yield candidate


def _weights_are_most(gate: Gate) -> bool:
    """Whether an image's maps are less than the weights that every image needs."""
    image = gate.stored * gate.positions * gate.element_bytes
    return sum(weight_bytes(gate).values()) > (len(gate.operator.maps) + 1) * image


def staged_candidates(gate: Gate, limits: DeviceLimits, batch: int) -> tuple[LaunchPlan, ...]:
    """The staged kernels in a few geometries; arguments as for `plan`.

    Raises:
        BadInput: the gate's statistics exceed the shared memory of a block.
    """
    plans = [
        _staged(gate, limits, -(-blocks * limits.multiprocessors // batch), threads, first_layer)
        for blocks in _BLOCKS_PER_MULTIPROCESSOR
        for threads in (limits.small_block, limits.large_block)
        for first_layer in ((False, True) if gate.hidden else (False,))
    ]
    fitting = [
        one
        for one in dict.fromkeys(plans)
        if all(launch.shared_bytes <= limits.block_shared_bytes for launch in one.launches)
    ]
    if not fitting:
        raise BadInput(
            f"{gate}: its statistics exceed the shared memory of a block",
            "leave this gate unfused: its standard operators run everywhere",
        )
    return tuple(fitting)


def grid(launch: Launch, batch: int, limits: DeviceLimits, running: int) -> int:
    """Blocks of `launch` for `batch` images, of which the device runs `running` at the same time.

    Raises:
        BadInput: the device's grid is too small, or its integers for the number of images.
    """
    blocks = launch.blocks(batch, running)
    if max(blocks, batch) > limits.grid_blocks:
        raise BadInput(f"batch {batch} needs a grid of {blocks} blocks", "split the batch")
    return blocks


def choose_tiling(gate: Gate, rows: int, columns: int, threads: int, warp: int) -> Tiling:
    """The power of two of column lanes that leaves fewest lanes idle; of equals, the largest.

    Neighbouring lanes read at least one 128-byte line of a row, or the whole row.
    """
    storage = gate.storage
    # One warp reduces a row of positions, and needs no scratch for it.
    largest = warp if storage.rows_are_channels else threads // storage.run_rows
    line = min(columns, 128 // (gate.vector * gate.element_bytes))
    smallest = min(largest, 1 << (line - 1).bit_length())
    if storage.block > 1:
        smallest = storage.block // gate.vector  # Tiling::run

    def busy(lanes: int) -> float:
        row_lanes = threads // lanes
        return columns / round_up(columns, lanes) * rows / round_up(rows, row_lanes)

    choices = [2**power for power in range(11) if smallest <= 2**power <= largest]
    return Tiling(gate, threads, max(choices, key=lambda lanes: (busy(lanes), lanes)), warp)


def _staged(
    gate: Gate, limits: DeviceLimits, wanted: int, threads: int, first_layer: bool
) -> LaunchPlan:
    """The staged kernels on about `wanted` blocks per image, each of so many `threads`.

    `first_layer` is as in `channel_statistics`.
    """
    shared = min(DEFAULT_SHARED_BYTES, limits.block_shared_bytes)
    statistics_cut = _statistics_cut(gate, wanted, first_layer)
    position_parts, channel_parts = statistics_cut.splits(gate)
    parts = channel_parts if first_layer else position_parts
    order = stages(gate.operator, first_layer=first_layer)

    def tiling(positions: int, channels: int) -> Tiling:
        rows, columns = gate.matrix(positions, channels)
        return choose_tiling(gate, rows, columns, threads, limits.warp)

    def launch(stage: Stage) -> Launch:
        if stage == "channel_statistics":
            cut = statistics_cut
            block = tiling(cut.positions, cut.channels)
            return channel_statistics(gate, block, cut, shared, first_layer=first_layer)
        if stage == "channel_excitation":
            # Several blocks share the second layer, where not each has to do the first one anew.
            shares = first_layer or gate.operator.gate.mixer == "linear"
            blocks = min(_MOST_SPLITS, wanted) if shares else 1
            channels = _part(gate.channels, threads // limits.warp * _ROWS_OF_WARP, blocks)
            whole = tiling(gate.positions, gate.stored)
            return channel_excitation(gate, whole, channels, parts, first_layer=first_layer)
        if stage == "spatial_statistics":
            positions = _part(gate.positions, _positions_unit(gate), wanted)
            whole = tiling(positions, gate.stored)
            return spatial_statistics(gate, whole, positions, parts, first_layer=first_layer)
        cut = _apply_cut(gate, wanted)
        return apply(gate, tiling(cut.positions, cut.channels), cut, shared)

    return staged_plan(gate, map(launch, order), programmatic=limits.programmatic)


def _statistics_cut(gate: Gate, wanted: int, first_layer: bool) -> Cut:
    """Slices of the launch that computes the channels' statistics."""
    if first_layer:
        parts = min(_MOST_SPLITS, wanted)
        return Cut(gate.positions, _part(gate.stored, _channel_unit(gate), parts))
    channels = _part(gate.stored, _channel_unit(gate), wanted)
    blocks = -(-wanted * channels // gate.stored)
    least, most = 1, _MOST_SPLITS
    if gate.operator.gate.arrangement == "spatial-channel":
        least = -(-gate.positions // _MOST_POSITIONS)  # as in the last launch
        most = max(least, most)
    wanted = max(least, min(most, blocks))
    return Cut(_part(gate.positions, _positions_unit(gate), wanted), channels)


def _apply_cut(gate: Gate, wanted: int) -> Cut:
    unit = _positions_unit(gate)
    positions = _part(min(gate.positions, _MOST_POSITIONS), unit, wanted)
    blocks = -(-wanted * positions // gate.positions)
    return Cut(positions, _part(gate.stored, _channel_unit(gate), blocks))


def _positions_unit(gate: Gate) -> int:
    """Positions that one block reads at least: 128-byte lines where they run along positions."""
    return round_up(64, gate.vector) if gate.storage.rows_are_channels else 16


def _channel_unit(gate: Gate) -> int:
    """Channels that one block reads at least: whole vectors, and 128-byte lines where they run."""
    if gate.storage.rows_are_channels:
        return 8
    return gate.storage.block if gate.storage.block > 1 else 128 // gate.element_bytes


def _part(size: int, unit: int, wanted: int) -> int:
    """Part of `size`, a multiple of `unit`, of which at most `wanted` make the whole."""
    return round_up(-(-size // wanted), unit)
