"""Kernel launches that compute a gate, described without choosing anything and without a driver.

A `Launch` carries a kernel's name and its parameters in order, so the PyTorch op, the TensorRT
plugin and the tests on the host carry out the same `LaunchPlan`. `geometry.plan` chooses one.
Kernels, and the names used here, are those of ``kernels/``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from cbam_deploy.gates.operators import in_lower_case, snake_case
from cbam_deploy.plugins.gate import ELEMENTS, Gate, round_up

STAT_BYTES = 8
_BATCH = 4  # Tiling::batch


@dataclass(frozen=True)
class Tiling:
    """How a block walks its slice: the template ``Tiling`` of ``kernels/tile.cuh``.

    Attributes:
        gate: gives element, layout and vector.
        threads: T, of the block.
        column_lanes: Q, a power of two.
        warp: lanes of a warp: 32, but for the tests on the host.
    """

    gate: Gate
    threads: int
    column_lanes: int
    warp: int = 32

    @property
    def row_lanes(self) -> int:
        """R."""
        return self.threads // self.column_lanes

    @property
    def channel_scratch_bytes(self) -> int:
        """Shared memory of the reduction over positions."""
        return self._row_scratch if self.gate.storage.rows_are_channels else self._column_scratch

    @property
    def position_scratch_bytes(self) -> int:
        """Shared memory of the reduction over channels."""
        return self._column_scratch if self.gate.storage.rows_are_channels else self._row_scratch

    @property
    def _warps_per_row(self) -> int:
        return max(1, self.column_lanes * self.gate.storage.run_rows // self.warp)

    @property
    def _row_scratch(self) -> int:
        alone = self._warps_per_row == 1
        return 0 if alone else self.row_lanes * _BATCH * self._warps_per_row * STAT_BYTES

    @property
    def _column_scratch(self) -> int:
        warp_rows = self.threads // self.warp // self._warps_per_row
        return warp_rows * self.column_lanes * min(4, self.gate.vector) * STAT_BYTES

    @property
    def expression(self) -> str:
        """The C++ type."""
        gate = self.gate
        return (
            f"cbam::Tiling<{ELEMENTS[gate.dtype][0]}, cbam::Layout::{gate.layout}, "
            f"{_bool(gate.stored > gate.channels)}, {gate.vector}, {self.threads}, "
            f"{self.column_lanes}>"
        )


@dataclass(frozen=True)
class Launch:
    """One kernel launch; its parameters are `inputs`, then `integers`, then `outputs`.

    Attributes:
        kernel: C++ name expression of the kernel.
        blocks_per_image: the grid is this times the batch.
        cluster: blocks of a cluster, fixed in the kernel.
        threads: of a block.
        shared_bytes: dynamic shared memory of a block.
        inputs, outputs: names of buffers: x, r, y, the gate's weights, or the plan's workspace.
        integers: 32-bit parameters by name.
    """

    kernel: str
    blocks_per_image: int
    cluster: int
    threads: int
    shared_bytes: int
    inputs: tuple[str, ...]
    integers: tuple[tuple[str, int], ...]
    outputs: tuple[str, ...]

    def integer(self, name: str) -> int:
        """The value of one of `integers`."""
        return dict(self.integers)[name]


@dataclass(frozen=True)
class LaunchPlan:
    """The launches that compute one gate, in order: one fused, or three staged.

    Attributes:
        gate: what is computed.
        launches: to be run one after the other on one stream.
        workspace: float32 elements per image of each intermediate buffer, by name.
    """

    gate: Gate
    launches: tuple[Launch, ...]
    workspace: tuple[tuple[str, int], ...] = ()


def fused_plan(
    gate: Gate, tiling: Tiling, cluster: int, kept_rows: int | None = None
) -> LaunchPlan:
    """One launch of the fused kernel on `cluster` blocks per image.

    `kept_rows` rows of each block's slice stay in shared memory; None: all.
    """
    per_block = positions_per_block(gate, cluster)
    rows, columns = gate.matrix(per_block, gate.stored)
    kept_rows = rows if kept_rows is None else min(rows, kept_rows)
    entry = gate.operator.function
    launch = Launch(
        kernel=f"cbam::{entry}<{tiling.expression}, {cluster}{_kernel_size(gate)}>",
        blocks_per_image=cluster,
        cluster=cluster,
        threads=tiling.threads,
        shared_bytes=fused_fixed_bytes(gate, tiling, cluster)
        + _aligned(kept_rows * columns * gate.vector * gate.element_bytes),
        inputs=in_lower_case(gate.operator.inputs),
        integers=(
            *_shape(gate),
            ("hidden", gate.hidden),
            ("positions_per_block", per_block),
            ("kept_rows", kept_rows),
            *_scales(gate),
        ),
        outputs=("y",),
    )
    return LaunchPlan(gate, (launch,))


def positions_per_block(gate: Gate, cluster: int) -> int:
    """Positions of each block's slice where `cluster` blocks share an image."""
    unit = gate.vector if gate.storage.rows_are_channels else 1
    return round_up(-(-gate.positions // cluster), unit)


def fused_fixed_bytes(gate: Gate, tiling: Tiling, cluster: int) -> int:
    """Shared memory of the fused kernel but for the kept map, in the order it takes the pieces."""
    share = -(-gate.channels // cluster)
    per_block = positions_per_block(gate, cluster)
    pieces = [cluster * share * STAT_BYTES, cluster * gate.hidden * STAT_BYTES, gate.hidden * 4]
    later = [gate.stored * 4]
    if gate.kernel_size:
        pieces += [2 * gate.kernel_size**2 * 4, tiling.position_scratch_bytes]
        window = min(gate.positions, per_block + 2 * gate.halo)
        later += [window * STAT_BYTES, per_block * 4]
    first_phase = _aligned(tiling.channel_scratch_bytes)
    return sum(map(_aligned, pieces)) + max(first_phase, sum(map(_aligned, later)))


@dataclass(frozen=True)
class Cut:
    """How launches of the staged kernels cut an image into slices, one per block."""

    positions: int
    channels: int

    def splits(self, gate: Gate) -> tuple[int, int]:
        """Slices along positions and along channels."""
        return -(-gate.positions // self.positions), -(-gate.stored // self.channels)


def channel_statistics(gate: Gate, tiling: Tiling, cut: Cut) -> Launch:
    """First staged launch: sums and maxima per channel."""
    position_splits, channel_splits = cut.splits(gate)
    return Launch(
        kernel=f"cbam::channel_statistics<{tiling.expression}>",
        blocks_per_image=position_splits * channel_splits,
        cluster=1,
        threads=tiling.threads,
        shared_bytes=_aligned(tiling.channel_scratch_bytes),
        inputs=("x",),
        integers=(*_shape(gate), *_cut(cut)),
        outputs=("partials",),
    )


def gating(gate: Gate, tiling: Tiling, positions: int, splits: int, *, in_place: bool) -> Launch:
    """Second staged launch: the channel gate, with the spatial statistics where there are any.

    Args:
        gate: the gate.
        tiling: of a slice of all channels; without a spatial gate only its threads matter.
        positions: of a block's slice.
        splits: position splits of the launch before.
        in_place: use the channels' statistics where they stand, so that shared memory need not grow
            with the number of channels; needs one split before and one block per image here.
    """
    pieces = [gate.hidden * 4]
    if not in_place:
        pieces.append(gate.channels * STAT_BYTES)
    weights = in_lower_case(gate.operator.channel_weights)
    x_scale, _, y_scale = _scales(gate)
    if not gate.kernel_size:
        return Launch(
            kernel=f"cbam::channel_excitation<{tiling.threads}, {_bool(in_place)}>",
            blocks_per_image=1,
            cluster=1,
            threads=tiling.threads,
            shared_bytes=sum(map(_aligned, pieces)),
            inputs=("partials", *weights),
            integers=(
                ("channels", gate.channels),
                ("stored", gate.stored),
                ("positions", gate.positions),
                ("hidden", gate.hidden),
                ("splits", splits),
                x_scale,
                y_scale,
            ),
            outputs=("channel_gates",),
        )
    pieces.append(tiling.position_scratch_bytes)
    if not in_place:
        pieces.append(gate.stored * 4)
    return Launch(
        kernel=f"cbam::spatial_statistics<{tiling.expression}, {_bool(in_place)}>",
        blocks_per_image=-(-gate.positions // positions),
        cluster=1,
        threads=tiling.threads,
        shared_bytes=sum(map(_aligned, pieces)),
        inputs=("x", "partials", *weights),
        integers=(
            *_shape(gate),
            ("hidden", gate.hidden),
            ("positions_per_block", positions),
            ("splits", splits),
            x_scale,
        ),
        outputs=("channel_gates", "pooled"),
    )


def apply(gate: Gate, tiling: Tiling, cut: Cut, shared_limit: int) -> Launch:
    """Last staged launch: the spatial gate, and y.

    The convolution's window stands in shared memory, or where it does not fit in `shared_limit`
    bytes (very wide maps), is read from device memory.
    """
    position_splits, channel_splits = cut.splits(gate)
    window, pieces = 0, []
    if gate.kernel_size:
        pieces = [cut.positions * 4, 2 * gate.kernel_size**2 * 4]
        window = min(gate.positions, cut.positions + 2 * gate.halo)
        if sum(map(_aligned, [*pieces, window * STAT_BYTES])) > shared_limit:
            window = 0
        pieces.append(window * STAT_BYTES)
    operator = gate.operator
    entry = snake_case(f"Apply{operator.name.replace('Gate', '')}")
    maps, convolution = map(in_lower_case, (operator.maps, operator.spatial_weights))
    return Launch(
        kernel=f"cbam::{entry}<{tiling.expression}{_kernel_size(gate)}>",
        blocks_per_image=position_splits * channel_splits,
        cluster=1,
        threads=tiling.threads,
        shared_bytes=sum(map(_aligned, pieces)),
        inputs=(
            *maps,
            "channel_gates",
            *(("pooled",) if gate.kernel_size else ()),
            *convolution,
        ),
        integers=(
            *_shape(gate),
            *_cut(cut),
            *((("window_size", window),) if gate.kernel_size else ()),
            *_scales(gate),
        ),
        outputs=("y",),
    )


def staged_plan(statistics: Launch, second: Launch, last: Launch, gate: Gate) -> LaunchPlan:
    """The three launches with the buffers between them."""
    splits = second.integer("splits")
    workspace = [("partials", splits * gate.stored * 2), ("channel_gates", gate.stored)]
    if gate.kernel_size:
        workspace.append(("pooled", gate.positions * 2))
    return LaunchPlan(gate, (statistics, second, last), tuple(workspace))


def _aligned(size: int) -> int:
    """As `Arena` of ``kernels/gate.cuh`` counts: pieces start at multiples of 16 bytes."""
    return round_up(size, 16)


def _kernel_size(gate: Gate) -> str:
    return f", {gate.kernel_size}" if gate.kernel_size else ""


def _shape(gate: Gate) -> tuple[tuple[str, int], ...]:
    return tuple((name, getattr(gate, name)) for name in ("channels", "stored", "height", "width"))


def _cut(cut: Cut) -> tuple[tuple[str, int], ...]:
    return (("positions_per_block", cut.positions), ("channels_per_block", cut.channels))


def _scales(gate: Gate) -> tuple[tuple[str, int], ...]:
    """The scales' bits: TensorRT passes an embedded kernel nothing but pointers and integers."""
    return tuple(
        (name, struct.unpack("<i", struct.pack("<f", getattr(gate, name)))[0])
        for name in ("x_scale", "r_scale", "y_scale")
    )


def _bool(value: bool) -> str:
    return "true" if value else "false"
