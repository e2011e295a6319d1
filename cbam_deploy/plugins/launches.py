"""Kernel launches that compute a gate, described without choosing anything and without a driver.

A `Launch` carries a kernel and its parameters in order, so the PyTorch op, the TensorRT plugin and
the tests on the host carry out the same `LaunchPlan`. `geometry.plan` chooses one. Kernels, and the
names used here, are those of ``kernels/``.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace

from cbam_deploy.gates.operators import GateOperator
from cbam_deploy.plugins.entries import (
    Kernel,
    before_the_last,
    boolean,
    element_type,
    entry_point,
    gate_type,
)
from cbam_deploy.plugins.gate import Gate, round_up
from cbam_deploy.plugins.stages import (
    Stage,
    branches,
    buffers,
    described,
    logits,
    pools,
    stages,
    workspace_shapes,
)
from cbam_deploy.plugins.tiling import Tiling

BATCH = "batch"
"""Stands for the number of images among the `arguments` of a launch."""


@dataclass(frozen=True)
class Launch:
    """One kernel launch.

    Attributes:
        stage: what it computes.
        kernel: its entry point.
        tiling: of its slices; None where it reads no map.
        blocks_per_image: the grid is this times the batch, but for what `persistent` says.
        cluster: blocks of a cluster, fixed in the kernel.
        threads: of a block.
        shared_bytes: dynamic shared memory of a block.
        inputs, outputs: names of buffers: x, r, y, the gate's weights, or the plan's workspace.
        integers: 32-bit parameters by name.
        persistent: whether there are at most as many blocks as the device runs at the same time,
            which then take several images; the kernel is told the batch.
        programmatic: whether it may start before the launch in front of it has ended, whose results
            its kernel waits for: CUDA's programmatic dependent launch.
        images: the most that a cluster takes at a time, where it takes several.
    """

    stage: Stage
    kernel: Kernel
    tiling: Tiling | None
    blocks_per_image: int
    cluster: int
    threads: int
    shared_bytes: int
    inputs: tuple[str, ...]
    integers: tuple[tuple[str, int], ...]
    outputs: tuple[str, ...]
    persistent: bool = False
    programmatic: bool = False
    images: int = 1

    @property
    def arguments(self) -> tuple[str | int, ...]:
        """The kernel's parameters in order: names of buffers, integers, and `BATCH` for one."""
        integers = tuple(value for _, value in self.integers)
        return (*self.inputs, *integers, *([BATCH] if self.persistent else []), *self.outputs)

    def blocks(self, batch: int, running: int) -> int:
        """The grid for `batch` images on a device that runs `running` blocks at the same time."""
        blocks = self.blocks_per_image * batch
        return min(blocks, running) if self.persistent else blocks

    def integer(self, name: str) -> int:
        """The value of one of `integers`."""
        return dict(self.integers)[name]


@dataclass(frozen=True)
class LaunchPlan:
    """The launches that compute one gate, in order: one fused, or those of `stages.stages`.

    Attributes:
        gate: what is computed.
        launches: to be run one after the other on one stream.
        workspace: float32 elements per image of each intermediate buffer, by name.
    """

    gate: Gate
    launches: tuple[Launch, ...]
    workspace: tuple[tuple[str, int], ...] = ()

    @property
    def splits(self) -> int:
        """Parts in which staged launches pass on what comes of the channels; 0 without these."""
        return max(dict(launch.integers).get("splits", 0) for launch in self.launches)

    @property
    def first_layer(self) -> bool:
        """Whether the launch of the channels' statistics goes on to the first layer."""
        return any(
            launch.stage == "channel_statistics" and "w0" in launch.inputs
            for launch in self.launches
        )


def fused_plan(
    gate: Gate,
    tiling: Tiling,
    cluster: int,
    kept_rows: int | None = None,
    images: int | None = None,
) -> LaunchPlan:
    """One launch of the fused kernel on `cluster` blocks per image.

    Args:
        gate: the gate.
        tiling: of a block's slice.
        cluster: blocks.
        kept_rows: of each block's slice, that stay in shared memory; None: all.
        images: the most that a persistent cluster takes at a time, of which it keeps all; None: a
            cluster ends with its image.
    """
    at_a_time = images or 1
    per_block = positions_per_block(gate, cluster)
    rows, columns = gate.matrix(per_block, gate.stored)
    kept_rows = rows if kept_rows is None else min(rows, kept_rows)
    kept_bytes = at_a_time * kept_rows * columns * gate.vector * gate.element_bytes
    function, last = "persistent_gate", str(images)
    if images is None:
        function, last = "fused_gate", boolean(kept_rows == rows)
    launch = _launch(
        gate,
        "fused",
        f"cbam::{function}<{tiling.expression}, {_type(gate.operator, gate)}, {cluster}, {last}>",
        tiling,
        blocks=cluster,
        cluster=cluster,
        shared_bytes=fused_fixed_bytes(gate, tiling, cluster, at_a_time) + _aligned(kept_bytes),
        images=at_a_time,
        persistent=images is not None,
        integers=(
            *_shape(gate),
            *_hidden(gate),
            ("positions_per_block", per_block),
            ("kept_rows", kept_rows),
            *_scales(gate),
        ),
    )
    return LaunchPlan(gate, (launch,))


def positions_per_block(gate: Gate, cluster: int) -> int:
    """Positions of each block's slice where `cluster` blocks share an image."""
    unit = gate.vector if gate.storage.rows_are_channels else 1
    return round_up(-(-gate.positions // cluster), unit)


def fused_fixed_bytes(gate: Gate, tiling: Tiling, cluster: int, images: int = 1) -> int:
    """Shared memory of the fused kernel but for the kept map, in the order it takes the pieces."""
    spec = gate.operator.gate
    share = -(-gate.channels // cluster)
    per_block = positions_per_block(gate, cluster)
    rows, _ = gate.matrix(per_block, gate.stored)
    arrivals = (4 if cluster > 1 else 0, images * -(-rows // tiling.chunk))
    pieces, first_phase, later = [8 * count for count in arrivals], 0, []
    if spec.has_channel:
        pieces.append(images * cluster * share * pools(gate) * 4)
        pieces.append(images * cluster * gate.hidden * branches(gate) * 4)
        pieces.append(images * _second_layer_bytes(gate))
        first_phase = _aligned(tiling.channel_scratch * pools(gate) * 4)
        later.append(images * gate.stored * 4)
    if spec.has_spatial:
        pieces += [_convolution_bytes(gate), *(images * size for size in _described(gate))]
        pieces.append(tiling.position_scratch * described(gate) * 4)
        window = min(gate.positions, per_block + 2 * gate.halo)
        later += [images * window * described(gate) * 4, images * per_block * 4]
    if spec.arrangement == "spatial-channel":
        return _sum(pieces) + first_phase + _sum(later)
    return _sum(pieces) + max(first_phase, _sum(later))


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
        size, more = _window(gate, cut, shared_limit - _sum(pieces))
        pieces += more
        window = (("window_size", size), *_scales(gate))
    position_splits, channel_splits = cut.splits(gate)
    return _launch(
        gate,
        "channel_statistics",
        f"cbam::channel_statistics<{tiling.expression}, {_before_the_last(gate)}, "
        f"{boolean(first_layer)}>",
        tiling,
        blocks=position_splits * channel_splits,
        shared_bytes=_sum(pieces),
        integers=(*_shape(gate), *(_hidden(gate) if first_layer else ()), *_cut(cut), *window),
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
    arguments = f"{_before_the_last(gate)}, {tiling.threads}, {boolean(first_layer)}"
    return _launch(
        gate,
        "channel_excitation",
        f"cbam::channel_excitation<{arguments}>",
        tiling,
        blocks=-(-gate.channels // channels),
        shared_bytes=_sum(_excitation(gate, first_layer)),
        integers=(
            *_shape(gate),
            *_hidden(gate),
            ("channels_per_block", channels),
            ("splits", splits),
            *_scales(gate),
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
    pieces = [tiling.position_scratch * described(gate) * 4, *_described(gate)]
    channel: tuple[tuple[str, int], ...] = ()
    _, outputs = buffers(gate.operator, "spatial_statistics", first_layer=first_layer)
    excites = "channel_gates" in outputs
    if excites:
        pieces += [*_excitation(gate, first_layer), gate.stored * 4]
        channel = (*_hidden(gate), ("splits", splits))
    arguments = f"{tiling.expression}, {_before_the_last(gate)}, {boolean(excites)}"
    return _launch(
        gate,
        "spatial_statistics",
        f"cbam::spatial_statistics<{arguments}>",
        tiling,
        blocks=-(-gate.positions // positions),
        shared_bytes=_sum(pieces),
        integers=(*_shape(gate), *channel, ("positions_per_block", positions), *_scales(gate)),
        first_layer=first_layer,
    )


def apply(gate: Gate, tiling: Tiling, cut: Cut, shared_limit: int) -> Launch:
    """Last staged launch: the spatial gate, and y.

    The convolution's window stands in shared memory, or where it does not fit in `shared_limit`
    bytes (very wide maps), is read from device memory.
    """
    window, pieces = _window(gate, cut, shared_limit)
    position_splits, channel_splits = cut.splits(gate)
    return _launch(
        gate,
        "apply",
        f"cbam::apply_gate<{tiling.expression}, {_type(gate.operator, gate)}>",
        tiling,
        blocks=position_splits * channel_splits,
        shared_bytes=_sum(pieces),
        integers=(
            *_shape(gate),
            *_cut(cut),
            *((("window_size", window),) if gate.kernel_size else ()),
            *_scales(gate),
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


def _launch(
    gate: Gate,
    stage: Stage,
    function: str,
    tiling: Tiling,
    *,
    blocks: int,
    shared_bytes: int,
    integers: tuple[tuple[str, int], ...],
    cluster: int = 1,
    first_layer: bool = False,
    images: int = 1,
    persistent: bool = False,
) -> Launch:
    inputs, outputs = buffers(gate.operator, stage, first_layer=first_layer)
    reads_maps = "x" in inputs
    last = stage in ("fused", "apply")
    kind = (gate.operator if last else before_the_last(gate.operator)).function
    return Launch(
        stage=stage,
        kernel=entry_point(
            kind if stage == "fused" else f"{kind}_{stage}",
            function,
            # Without maps the scales are read as of int8, whatever the type.
            element_type(gate) if reads_maps else "signed char",
            cluster=cluster,
            threads=tiling.threads,
            resident=1 if images > 1 else 512 // tiling.threads,
            inputs=inputs,
            integers=[*(name for name, _ in integers), *([BATCH] if persistent else [])],
            outputs=outputs,
        ),
        tiling=tiling if reads_maps else None,
        blocks_per_image=blocks,
        cluster=cluster,
        threads=tiling.threads,
        shared_bytes=shared_bytes,
        inputs=inputs,
        integers=integers,
        outputs=outputs,
        persistent=persistent,
        images=images,
    )


def _type(operator: GateOperator, gate: Gate) -> str:
    return gate_type(operator, gate.kernel_size, gate.channel_kernel_size)


def _before_the_last(gate: Gate) -> str:
    return _type(before_the_last(gate.operator), gate)


def _second_layer_bytes(gate: Gate) -> int:
    """Of what the second layer sees: hidden units, or channels."""
    return (gate.hidden or gate.channels) * logits(gate) * 4


def _excitation(gate: Gate, first_layer: bool) -> list[int]:
    """Shared memory of the channel gate in one block."""
    totals = gate.hidden and not first_layer
    return [
        _second_layer_bytes(gate),
        *([gate.channels * pools(gate) * 4] if totals else []),
    ]


def _convolution_bytes(gate: Gate) -> int:
    return described(gate) * gate.kernel_size**2 * 4


def _described(gate: Gate) -> list[int]:
    """Shared memory of the channels' weights in a position's descriptor."""
    return [gate.stored * 4] if gate.operator.gate.spatial == "conv1x1" else []


def _window(gate: Gate, cut: Cut, shared_limit: int) -> tuple[int, list[int]]:
    """Positions of the convolution's window, 0 where it does not fit, and shared memory."""
    if not gate.kernel_size:
        return 0, []
    pieces = [cut.positions * 4, _convolution_bytes(gate)]
    window = min(gate.positions, cut.positions + 2 * gate.halo)
    statistic = described(gate) * 4
    if _sum([*pieces, window * statistic]) > shared_limit:
        window = 0
    return window, [*pieces, window * statistic]


def _sum(pieces: Iterable[int]) -> int:
    return sum(map(_aligned, pieces))


def _aligned(size: int) -> int:
    """As `Arena` of ``kernels/gate.cuh`` counts: pieces start at multiples of 16 bytes."""
    return round_up(size, 16)


def _shape(gate: Gate) -> tuple[tuple[str, int], ...]:
    return tuple((name, getattr(gate, name)) for name in ("channels", "stored", "height", "width"))


def _hidden(gate: Gate) -> tuple[tuple[str, int], ...]:
    return (("hidden", gate.hidden),) if gate.hidden else ()


def _cut(cut: Cut) -> tuple[tuple[str, int], ...]:
    return (("positions_per_block", cut.positions), ("channels_per_block", cut.channels))


def _scales(gate: Gate) -> tuple[tuple[str, int], ...]:
    """The scales' bits: a kernel is passed nothing but pointers and integers."""
    return tuple(
        (name, struct.unpack("<i", struct.pack("<f", getattr(gate, name)))[0])
        for name in ("x_scale", "r_scale", "y_scale")
    )
