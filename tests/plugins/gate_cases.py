"""Variants of the kernels that the tests build for the host, and how to draw gates that fit them.

A variant fixes what a kernel is compiled for: type, layout, vector, tiling, cluster. Shapes, cuts
and what is kept in shared memory are drawn by Hypothesis.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from host_device import DTYPES, WARP
from hypothesis import strategies as st

from cbam_deploy.gates.reference import Weights
from cbam_deploy.plugins.gate import ELEMENTS, Gate
from cbam_deploy.plugins.launches import (
    Cut,
    LaunchPlan,
    Tiling,
    apply,
    channel_statistics,
    fused_plan,
    gating,
    positions_per_block,
    staged_plan,
)


@dataclass(frozen=True)
class Variant:
    dtype: str
    layout: str
    vector: int
    threads: int
    column_lanes: int
    kernel_size: int
    residual: bool
    cluster: int | None  # None: staged
    padded: bool = False
    in_place: bool = False

    def __str__(self) -> str:
        kind = f"cluster{self.cluster}" if self.cluster else "staged"
        flags = "-residual" * self.residual + "-padded" * self.padded + "-in_place" * self.in_place
        return (
            f"{kind}-{self.dtype}-{self.layout}-v{self.vector}-t{self.threads}"
            f"-q{self.column_lanes}-k{self.kernel_size}{flags}"
        )


V = Variant
VARIANTS = (
    # Row reductions inside a warp, across warps; column reductions with idle and with many rows.
    V("float32", "nchw", 4, 16, 4, 7, True, 2),
    V("float32", "nchw", 1, 16, 8, 3, False, None),
    V("float32", "nhwc", 4, 32, 16, 3, True, 4),
    V("float32", "nhwc", 1, 16, 1, 0, True, None),
    V("float16", "nchw", 8, 16, 2, 3, False, 1),
    V("float16", "nchw", 4, 32, 8, 0, True, 2),
    V("float16", "nhwc", 8, 16, 4, 7, True, 2),
    V("float16", "nhwc", 8, 16, 16, 7, False, None, padded=True),
    V("float16", "nhwc", 2, 32, 32, 7, True, None, in_place=True),
    V("bfloat16", "nchw", 1, 16, 4, 7, False, 4),
    V("bfloat16", "nhwc", 8, 32, 2, 0, False, 2, padded=True),
    V("bfloat16", "nhwc", 4, 16, 8, 3, True, None),
    V("int8", "nchw", 16, 16, 2, 7, True, None),
    V("int8", "nchw", 2, 16, 8, 0, False, 1),
    V("int8", "nhwc", 16, 16, 4, 3, False, 2),
    V("int8", "nhwc", 1, 32, 16, 0, True, None, in_place=True),
    V("int8", "chw32", 16, 16, 4, 7, True, 2, padded=True),
    V("int8", "chw32", 16, 32, 8, 0, False, 4),
    V("int8", "chw32", 16, 16, 2, 7, False, None),
    V("int8", "chw32", 16, 16, 4, 3, True, None, padded=True),
)


@st.composite
def gates(draw, v: Variant) -> Gate:
    small = partial(st.integers, 1)
    bytes_ = ELEMENTS[v.dtype][1]
    height, width, stored = draw(small(7)), draw(small(7)), 0
    if v.layout == "nchw":
        channels, width = draw(small(20)), width * v.vector if height % v.vector else width
    elif v.layout == "chw32":
        blocks = draw(small(3))
        channels = 32 * blocks - (draw(st.integers(1, 31)) if v.padded else 0)
    else:
        stored = v.vector * draw(small(9))
        channels = stored - (draw(st.integers(1, v.vector - 1)) if v.padded else 0)
    scale = st.sampled_from([0.01, 0.05, 0.0078125, 1.0]) if v.dtype == "int8" else st.just(1.0)
    return Gate(
        channels=channels,
        height=height,
        width=width,
        hidden=draw(small(9)),
        kernel_size=v.kernel_size,
        residual=v.residual,
        dtype=v.dtype,
        layout=v.layout,
        stored=stored,
        alignment=v.vector * bytes_,
        x_scale=draw(scale),
        r_scale=draw(scale),
        y_scale=draw(scale),
    )


@st.composite
def plans(draw, v: Variant) -> LaunchPlan:
    gate = draw(gates(v))
    tiling = Tiling(gate, v.threads, v.column_lanes, WARP)
    if v.cluster:
        rows, _ = gate.matrix(positions_per_block(gate, v.cluster), gate.stored)
        kept = draw(st.integers(0, rows))
        return fused_plan(gate, tiling, v.cluster, kept)
    cuts = [Cut(*draw(st.tuples(_positions(gate), _channels(gate)))) for _ in range(2)]
    positions = draw(_positions(gate))
    if v.in_place:
        cuts[0], positions = Cut(gate.positions, cuts[0].channels), gate.positions
    splits, _ = cuts[0].splits(gate)
    return staged_plan(
        channel_statistics(gate, tiling, cuts[0]),
        gating(gate, tiling, positions, splits, in_place=v.in_place),
        apply(gate, tiling, cuts[1], shared_limit=draw(st.sampled_from([48 * 1024, 1000]))),
        gate,
    )


def _positions(gate: Gate) -> st.SearchStrategy[int]:
    unit = gate.vector if gate.storage.rows_are_channels else 1
    return st.integers(1, gate.positions // unit + 1).map(lambda parts: parts * unit)


def _channels(gate: Gate) -> st.SearchStrategy[int]:
    unit = {"nchw": 1, "nhwc": gate.vector, "chw32": 32}[gate.layout]
    return st.integers(1, gate.stored // unit).map(lambda parts: parts * unit)


def example_plan(v: Variant, **sizes: int) -> LaunchPlan:
    """A plan for `v` without drawing: every position split in two where the kernels are staged."""
    bytes_ = ELEMENTS[v.dtype][1]
    gate = Gate(
        hidden=sizes.pop("hidden", 3),
        kernel_size=v.kernel_size,
        residual=v.residual,
        dtype=v.dtype,
        layout=v.layout,
        alignment=v.vector * bytes_,
        **sizes,
    )
    tiling = Tiling(gate, v.threads, v.column_lanes, WARP)
    if v.cluster:
        return fused_plan(gate, tiling, v.cluster)
    unit = gate.vector if gate.storage.rows_are_channels else 1
    half = gate.positions if v.in_place else -(-gate.positions // (2 * unit)) * unit
    cut = Cut(half, gate.stored)
    splits, _ = cut.splits(gate)
    return staged_plan(
        channel_statistics(gate, tiling, cut),
        gating(gate, tiling, half, splits, in_place=v.in_place),
        apply(gate, tiling, cut, shared_limit=48 * 1024),
        gate,
    )


def kernels_of(v: Variant) -> set[str]:
    """Name expressions of the kernels that `v` is made of; shapes do not matter to them."""
    channels = {"nchw": 3, "nhwc": 2 * v.vector, "chw32": 64}[v.layout]
    sizes = {"channels": channels - 1 if v.padded else channels, "height": 2, "width": 16}
    if v.padded and v.layout == "nhwc":
        sizes["stored"] = channels
    return {launch.kernel for launch in example_plan(v, **sizes).launches}


def random_weights(gate: Gate, rng: np.random.Generator, scale: float = 1.0) -> Weights:
    def draw(*shape: int) -> np.ndarray:
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    k = gate.kernel_size
    return Weights(
        draw(gate.hidden, gate.channels) / np.float32(np.sqrt(gate.channels)),
        draw(gate.hidden),
        draw(gate.channels, gate.hidden) / np.float32(np.sqrt(gate.hidden)),
        draw(gate.channels),
        draw(1, 2, k, k) / np.float32(k) if k else None,
        draw(1) if k else None,
    )


VALUES = ("normal", "constant", "negative", "minus_zero", "extreme", "nan", "inf", "minus_inf")


def random_maps(gate: Gate, batch: int, kind: str, rng: np.random.Generator) -> np.ndarray:
    """A map [batch, C, H, W] of one kind of values."""
    shape = (batch, gate.channels, gate.height, gate.width)
    if gate.dtype == "int8":
        values = {
            "constant": lambda: np.full(shape, rng.integers(-128, 128)),
            "negative": lambda: rng.integers(-128, 0, shape),
            "extreme": lambda: rng.choice([-128, 127], shape),
        }.get(kind, lambda: rng.integers(-128, 128, shape))()
        return values.astype(np.int8)
    x = rng.standard_normal(shape)
    if kind == "constant":
        x[:] = rng.standard_normal()
    elif kind == "negative":
        x = -np.abs(x) - 0.01
    elif kind == "minus_zero":
        x = np.where(rng.random(shape) < 0.5, -0.0, 0.0)
    elif kind == "extreme":
        x *= 10000.0 if gate.dtype == "float16" else 1e6
    elif kind != "normal":
        special = {"nan": np.nan, "inf": np.inf, "minus_inf": -np.inf}[kind]
        x.flat[rng.integers(x.size)] = special
    return x.astype(DTYPES[gate.dtype])
