"""Shared memory of the kernels: bytes of the pieces that several of them take.

``Arena`` of ``kernels/gate.cuh`` hands the pieces out; `total_bytes` counts as it does.
"""

from __future__ import annotations

from collections.abc import Iterable

from cbam_deploy.plugins.gate import Gate, round_up
from cbam_deploy.plugins.stages import described, logits


def second_layer_bytes(gate: Gate) -> int:
    """Of what the second layer sees: hidden units, or channels."""
    return (gate.hidden or gate.channels) * logits(gate) * 4


def convolution_bytes(gate: Gate) -> int:
    """Of the convolution's weights; 0 without one."""
    return described(gate) * gate.kernel_size**2 * 4


def described_bytes(gate: Gate) -> int:
    """Of the channels' weights in a position's descriptor, where they have any; else 0."""
    return gate.stored * 4 if gate.operator.gate.spatial == "conv1x1" else 0


def total_bytes(pieces: Iterable[int]) -> int:
    """Of all pieces together."""
    return sum(map(aligned, pieces))


def aligned(size: int) -> int:
    """As `Arena` of ``kernels/gate.cuh`` counts: pieces start at multiples of 16 bytes."""
    return round_up(size, 16)
