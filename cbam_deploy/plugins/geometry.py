"""Launch geometry: which kernels compute a gate on a device, and how they cut its map.

`plan` is one plain function of shape, type, layout and the device's limits. Whatever it chooses is
right for any batch; what is fast is chosen by counting bytes and blocks, as the comments say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cbam_deploy.errors import BadInput
from cbam_deploy.plugins.gate import Gate, round_up
from cbam_deploy.plugins.launches import (
    Cut,
    Launch,
    LaunchPlan,
    apply,
    channel_excitation,
    channel_statistics,
    fused_fixed_bytes,
    fused_plan,
    positions_per_block,
    spatial_statistics,
    staged_plan,
)
from cbam_deploy.plugins.stages import Stage, stages
from cbam_deploy.plugins.tiling import Tiling

Strategy = Literal["auto", "fused", "staged"]

CLUSTER_SIZES = (1, 2, 4, 8)
DEFAULT_SHARED_BYTES = 48 * 1024
"""Dynamic shared memory a kernel may use without opting in to more."""

_RESERVED_SHARED_BYTES = 1024  # taken by the system from each block's shared memory
_MOST_SPLITS = 16  # blocks that repeat one channel gate; parts of one channel's sum
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
    """

    capability: int
    multiprocessors: int
    block_shared_bytes: int
    multiprocessor_shared_bytes: int
    grid_blocks: int = 2**31 - 1
    warp: int = 32
    small_block: int = 256
    large_block: int = 512

    @property
    def largest_cluster(self) -> int:
        """Blocks in a cluster that every device of this kind can launch; 1 without clusters."""
        return CLUSTER_SIZES[-1] if self.capability >= 90 else 1


# CUDA C++ Programming Guide 13.0, "Memory Information per Compute Capability". The number of
# multiprocessors is that of a common product: T4, A100, A10, Jetson AGX Orin, L4, H100 and H200,
# B200, Jetson AGX Thor, RTX PRO 6000, DGX Spark.
KNOWN_DEVICES: dict[int, DeviceLimits] = {
    capability: DeviceLimits(capability, multiprocessors, block * 1024, whole * 1024)
    for capability, multiprocessors, block, whole in (
        (75, 40, 64, 64),
        (80, 108, 163, 164),
        (86, 72, 99, 100),
        (87, 16, 163, 164),
        (89, 58, 99, 100),
        (90, 132, 227, 228),
        (100, 148, 227, 228),
        (110, 20, 227, 228),
        (120, 188, 99, 100),
        (121, 48, 99, 100),
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
    splits: int | None = None,
) -> LaunchPlan:
    """Choose kernels and geometry for `gate`.

    The plan is right for every batch; `batch` is the one it is to be fast for. ``auto`` takes the
    fused kernel where at least a quarter of the map stays in shared memory (without clusters: all
    of it), so that what is read again comes from L2; ``fused`` takes it wherever it can run.
    `splits` fixes the parts in which the first staged launch writes a channel's statistics, as
    another plan of the same gate has them, so that launches of both may follow one another.

    Raises:
        BadInput: `strategy` is ``fused`` and the map is too large for it, the gate's hidden layer
            alone exceeds the shared memory of a block, or `splits` cannot be had.
    """
    if strategy != "staged":
        enough = 0.25 if limits.largest_cluster > 1 else 1.0
        candidates = fused_candidates(gate, limits, 0.0 if strategy == "fused" else enough)
        if candidates:
            return _preferred(candidates, limits, batch)
        if strategy == "fused":
            raise BadInput(f"{gate}: too large for the fused kernel", "use the staged kernels")
    return _staged(gate, limits, batch, splits)


def fused_candidates(
    gate: Gate, limits: DeviceLimits, least_kept: float = 0.0
) -> tuple[LaunchPlan, ...]:
    """The fused kernel with every cluster size and block size that works, smallest first.

    `least_kept` is the part of the map that shared memory has to hold.
    """
    candidates = []
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
            kept = min(rows, free // 16 * 16 // (columns * gate.vector * gate.element_bytes))
            if free >= 0 and kept >= least_kept * rows:
                candidates.append(fused_plan(gate, tiling, cluster, kept))
    return tuple(candidates)


def kept_part(candidate: LaunchPlan) -> float:
    """The part of the map that a fused plan keeps in shared memory."""
    gate, launch = candidate.gate, candidate.launches[0]
    rows, _ = gate.matrix(launch.integer("positions_per_block"), gate.stored)
    return launch.integer("kept_rows") / rows


def grid(launch: Launch, batch: int, limits: DeviceLimits) -> int:
    """Blocks of `launch` for `batch` images; `BadInput` if the device's grid is too small."""
    blocks = launch.blocks_per_image * batch
    if blocks > limits.grid_blocks:
        raise BadInput(f"batch {batch} needs a grid of {blocks} blocks", "split the batch")
    return blocks


def _preferred(candidates: tuple[LaunchPlan, ...], limits: DeviceLimits, batch: int) -> LaunchPlan:
    """The smallest cluster that keeps most of the map, fills the device and leaves room for a peer.

    Two blocks on a multiprocessor hide each other's barriers. A block that is alone there gets more
    threads instead.
    """

    def rank(candidate: LaunchPlan) -> tuple[float, ...]:
        launch = candidate.launches[0]
        blocks = -(-candidate.gate.positions // launch.integer("positions_per_block"))
        bytes_used = launch.shared_bytes + _RESERVED_SHARED_BYTES
        pair = 2 * bytes_used <= limits.multiprocessor_shared_bytes
        right_threads = launch.threads == (limits.small_block if pair else limits.large_block)
        busy = min(batch * blocks, limits.multiprocessors)
        return (kept_part(candidate), busy, pair, right_threads, -launch.cluster)

    return max(candidates, key=rank)


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


def _staged(gate: Gate, limits: DeviceLimits, batch: int, splits: int | None) -> LaunchPlan:
    wanted = -(-4 * limits.multiprocessors // batch)  # blocks per image
    in_place = not _gating_fits(gate, limits)
    shared = min(DEFAULT_SHARED_BYTES, limits.block_shared_bytes)
    statistics_cut = _statistics_cut(gate, wanted, splits, in_place)
    parts, _ = statistics_cut.splits(gate)

    def launch(stage: Stage) -> Launch:
        if stage == "channel_statistics":
            tiling = _small_tiling(gate, limits, statistics_cut.positions, statistics_cut.channels)
            return channel_statistics(gate, tiling, statistics_cut, shared)
        if stage == "channel_excitation":
            tiling = _small_tiling(gate, limits, gate.positions, gate.stored)
            # Only C^2 weights are worth several blocks: each pools all channels anew.
            linear = gate.operator.gate.mixer == "linear"
            blocks = min(_MOST_SPLITS, wanted) if linear else 1
            channels = _part(gate.channels, limits.small_block // limits.warp, blocks)
            return channel_excitation(gate, tiling, channels, parts, in_place=in_place)
        if stage == "spatial_statistics":
            most = 1 if in_place else _MOST_SPLITS
            positions = _part(gate.positions, _positions_unit(gate), min(most, wanted))
            tiling = _small_tiling(gate, limits, positions, gate.stored)
            return spatial_statistics(gate, tiling, positions, parts, in_place=in_place)
        cut = _apply_cut(gate, wanted)
        return apply(gate, _small_tiling(gate, limits, cut.positions, cut.channels), cut, shared)

    launches = tuple(map(launch, stages(gate.operator)))
    if any(one.shared_bytes > limits.block_shared_bytes for one in launches):
        raise BadInput(
            f"{gate}: its statistics exceed the shared memory of a block",
            "leave this gate unfused: its standard operators run everywhere",
        )
    return staged_plan(gate, launches)


def _statistics_cut(gate: Gate, wanted: int, splits: int | None, in_place: bool) -> Cut:
    """Slices of the launch that computes the channels' statistics."""
    channels = _part(gate.stored, _channel_unit(gate), wanted)
    blocks = -(-wanted * channels // gate.stored)
    least, most = 1, 1 if in_place else _MOST_SPLITS
    if gate.operator.gate.arrangement == "spatial-channel":
        least = -(-gate.positions // _MOST_POSITIONS)  # as in the last launch
        most = max(least, most)
    wanted = max(least, min(most, blocks))
    cut = Cut(_part(gate.positions, _positions_unit(gate), splits or wanted), channels)
    if splits and (cut.splits(gate)[0] != splits or splits > most):
        raise BadInput(f"{gate}: its statistics cannot be split in {splits}", "leave splits out")
    return cut


def _apply_cut(gate: Gate, wanted: int) -> Cut:
    unit = _positions_unit(gate)
    positions = _part(min(gate.positions, _MOST_POSITIONS), unit, wanted)
    blocks = -(-wanted * positions // gate.positions)
    return Cut(positions, _part(gate.stored, 4 * _channel_unit(gate), blocks))


def _gating_fits(gate: Gate, limits: DeviceLimits) -> bool:
    """Whether one block has the shared memory for all channels' statistics and gates."""
    if not gate.operator.gate.has_channel:
        return True
    tiling = _small_tiling(gate, limits, gate.positions, gate.stored)
    if "channel_excitation" in stages(gate.operator):
        launch = channel_excitation(gate, tiling, gate.channels, 1, in_place=False)
    else:
        launch = spatial_statistics(gate, tiling, gate.positions, 1, in_place=False)
    return launch.shared_bytes <= limits.block_shared_bytes


def _small_tiling(gate: Gate, limits: DeviceLimits, positions: int, channels: int) -> Tiling:
    rows, columns = gate.matrix(positions, channels)
    return choose_tiling(gate, rows, columns, limits.small_block, limits.warp)


def _positions_unit(gate: Gate) -> int:
    return round_up(64, gate.vector)


def _channel_unit(gate: Gate) -> int:
    """Channels that one block reads at least: whole vectors, and 128-byte lines where they run."""
    if gate.storage.rows_are_channels:
        return 8
    return gate.storage.block if gate.storage.block > 1 else 128 // gate.element_bytes


def _part(size: int, unit: int, wanted: int) -> int:
    """Part of `size`, a multiple of `unit`, of which at most `wanted` make the whole."""
    return round_up(-(-size // wanted), unit)
