"""The launch of the fused kernel, ``kernels/fused.cuh``."""

from __future__ import annotations

from cbam_deploy.plugins.entries import boolean
from cbam_deploy.plugins.gate import Gate, round_up
from cbam_deploy.plugins.launches import (
    LaunchPlan,
    hidden_parameters,
    kernel_type,
    launch_of,
    scale_parameters,
    shape_parameters,
)
from cbam_deploy.plugins.shared_memory import (
    aligned,
    convolution_bytes,
    described_bytes,
    second_layer_bytes,
    total_bytes,
)
from cbam_deploy.plugins.stages import branches, described, pools
from cbam_deploy.plugins.tiling import Tiling


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
    launch = launch_of(
        gate,
        "fused",
        f"cbam::{function}<{tiling.expression}, {kernel_type(gate)}, {cluster}, {last}>",
        tiling,
        blocks=cluster,
        cluster=cluster,
        shared_bytes=fused_fixed_bytes(gate, tiling, cluster, at_a_time) + aligned(kept_bytes),
        images=at_a_time,
        persistent=images is not None,
        integers=(
            *shape_parameters(gate),
            *hidden_parameters(gate),
            ("positions_per_block", per_block),
            ("kept_rows", kept_rows),
            *scale_parameters(gate),
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
        pieces.append(images * second_layer_bytes(gate))
        first_phase = aligned(tiling.channel_scratch * pools(gate) * 4)
        later.append(images * gate.stored * 4)
    if spec.has_spatial:
        pieces += [convolution_bytes(gate), images * described_bytes(gate)]
        pieces.append(tiling.position_scratch * described(gate) * 4)
        window = min(gate.positions, per_block + 2 * gate.halo)
        later += [images * window * described(gate) * 4, images * per_block * 4]
    if spec.arrangement == "spatial-channel":
        return total_bytes(pieces) + first_phase + total_bytes(later)
    return total_bytes(pieces) + max(first_phase, total_bytes(later))
