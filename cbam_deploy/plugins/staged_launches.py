"""The launches of the staged kernels, ``kernels/staged.cuh``, and the plan of all of a gate's."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from cbam_deploy.plugins.entries import boolean
from cbam_deploy.plugins.gate import Gate
from cbam_deploy.plugins.launches import (
    Launch,
    LaunchPlan,
    hidden_parameters,
    kernel_type,
    kernel_type_before_the_last,
    launch_of,
    scale_parameters,
    shape_parameters,
)
from cbam_deploy.plugins.shared_memory import (
    convolution_bytes,
    described_bytes,
    second_layer_bytes,
    total_bytes,
)
from cbam_deploy.plugins.stages import buffers, described, pools, stages, workspace_shapes
from cbam_deploy.plugins.tiling import Tiling


@dataclass(frozen=True)
class Cut:
    """How launches of the staged kernels cut an image into slices, one per block."""

    positions: int
    channels: int

    def splits(self, gate: Gate) -> tuple[int, int]:
        """Slices along positions and along channels."""
        return -(-gate.positions // self.positions), -(-gate.stored // self.channels)


def channel_statistics(
    gate: Gate, tiling: Tiling, cut: Cut, shared_limit: int, *, first_layer: bool = False
) -> Launch:
    """Staged launch: sums and maxima per channel, of x or of x times its spatial gate.

    Args:
        gate: the gate.
        tiling: of a slice.
        cut: the slices.
        shared_limit: as in `apply`.
        first_layer: pass on what the first layer makes of these; a slice then has all positions.
    """
    pieces = [tiling.channel_scratch * pools(gate) * 4]
    if first_layer:
        pieces.append(cut.channels * pools(gate) * 4)
    window: tuple[tuple[str, int], ...] = ()
    if gate.operator.gate.arrangement == "spatial-channel":
        size, more = _window(gate, cut, shared_limit - total_bytes(pieces))
        pieces += more
        window = (("window_size", size), *scale_parameters(gate))
    position_splits, channel_splits = cut.splits(gate)
    return launch_of(
        gate,
        "channel_statistics",
        f"cbam::channel_statistics<{tiling.expression}, {kernel_type_before_the_last(gate)}, "
        f"{boolean(first_layer)}>",
        tiling,
        blocks=position_splits * channel_splits,
        shared_bytes=total_bytes(pieces),
        integers=(
            *shape_parameters(gate),
            *(hidden_parameters(gate) if first_layer else ()),
            *_cut(cut),
            *window,
        ),
        first_layer=first_layer,
    )


def channel_excitation(
    gate: Gate, tiling: Tiling, channels: int, splits: int, *, first_layer: bool = False
) -> Launch:
    """Staged launch: the channel gate alone; of `tiling` only the threads matter.

    Args:
        gate: the gate.
        tiling: of any slice.
        channels: whose gates one block computes.
        splits: blocks of an image that have passed on something of each channel, or hidden unit.
        first_layer: whether `channel_statistics` went on to it.
    """
    arguments = f"{kernel_type_before_the_last(gate)}, {tiling.threads}, {boolean(first_layer)}"
    return launch_of(
        gate,
        "channel_excitation",
        f"cbam::channel_excitation<{arguments}>",
        tiling,
        blocks=-(-gate.channels // channels),
        shared_bytes=total_bytes(_excitation(gate, first_layer)),
        integers=(
            *shape_parameters(gate),
            *hidden_parameters(gate),
            ("channels_per_block", channels),
            ("splits", splits),
            *scale_parameters(gate),
        ),
        first_layer=first_layer,
    )


def spatial_statistics(
    gate: Gate, tiling: Tiling, positions: int, splits: int, *, first_layer: bool = False
) -> Launch:
    """Staged launch: what the convolution sees of each position; the channel gate where it is due.

    Args:
        gate: the gate.
        tiling: of a slice of all channels.
        positions: of a block's slice.
        splits: as in `channel_excitation`.
        first_layer: as in `channel_excitation`; the channel gate is then there already.
    """
    pieces = [tiling.position_scratch * described(gate) * 4, described_bytes(gate)]
    channel: tuple[tuple[str, int], ...] = ()
    _, outputs = buffers(gate.operator, "spatial_statistics", first_layer=first_layer)
    excites = "channel_gates" in outputs
    if excites:
        pieces += [*_excitation(gate, first_layer), gate.stored * 4]
        channel = (*hidden_parameters(gate), ("splits", splits))
    arguments = f"{tiling.expression}, {kernel_type_before_the_last(gate)}, {boolean(excites)}"
    return launch_of(
        gate,
        "spatial_statistics",
        f"cbam::spatial_statistics<{arguments}>",
        tiling,
        blocks=-(-gate.positions // positions),
        shared_bytes=total_bytes(pieces),
        integers=(
            *shape_parameters(gate),
            *channel,
            ("positions_per_block", positions),
            *scale_parameters(gate),
        ),
        first_layer=first_layer,
    )


def apply(gate: Gate, tiling: Tiling, cut: Cut, shared_limit: int) -> Launch:
    """Last staged launch: the spatial gate, and y.

    The convolution's window stands in shared memory, or where it does not fit in `shared_limit`
    bytes (very wide maps), is read from device memory.
    """
    window, pieces = _window(gate, cut, shared_limit)
    position_splits, channel_splits = cut.splits(gate)
    return launch_of(
        gate,
        "apply",
        f"cbam::apply_gate<{tiling.expression}, {kernel_type(gate)}>",
        tiling,
        blocks=position_splits * channel_splits,
        shared_bytes=total_bytes(pieces),
        integers=(
            *shape_parameters(gate),
            *_cut(cut),
            *((("window_size", window),) if gate.kernel_size else ()),
            *scale_parameters(gate),
        ),
    )


def staged_plan(gate: Gate, launches: Iterable[Launch], *, programmatic: bool) -> LaunchPlan:
    """The launches of `stages.stages` with the buffers between them.

    With `programmatic`, all but the first may start before the one in front of them has ended.
    """
    first, *others = launches
    if programmatic:
        others = [replace(one, kernel=one.kernel.programmatic, programmatic=True) for one in others]
    plan = LaunchPlan(gate, (first, *others))
    first_layer = plan.first_layer
    assert tuple(one.stage for one in plan.launches) == stages(
        gate.operator, first_layer=first_layer
    )
    shapes = workspace_shapes(gate, plan.splits, first_layer=first_layer)
    sizes = tuple((name, math.prod(shape)) for name, shape in shapes.items())
    return replace(plan, workspace=sizes)


def _excitation(gate: Gate, first_layer: bool) -> list[int]:
    """Shared memory of the channel gate in one block."""
    totals = gate.hidden and not first_layer
    return [
        second_layer_bytes(gate),
        *([gate.channels * pools(gate) * 4] if totals else []),
    ]


def _window(gate: Gate, cut: Cut, shared_limit: int) -> tuple[int, list[int]]:
    """Positions of the convolution's window, 0 where it does not fit, and shared memory."""
    if not gate.kernel_size:
        return 0, []
    pieces = [cut.positions * 4, convolution_bytes(gate)]
    window = min(gate.positions, cut.positions + 2 * gate.halo)
    statistic = described(gate) * 4
    if total_bytes([*pieces, window * statistic]) > shared_limit:
        window = 0
    return window, [*pieces, window * statistic]


def _cut(cut: Cut) -> tuple[tuple[str, int], ...]:
    return (("positions_per_block", cut.positions), ("channels_per_block", cut.channels))
