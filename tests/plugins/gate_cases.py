"""Variants of the kernels that the tests build for the host, and how to draw gates that fit them.

A variant fixes what a kernel is compiled for: operator, type, layout, vector, tiling, cluster.
Shapes, cuts and what is kept in shared memory are drawn by Hypothesis.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import get_args

import numpy as np
from host_device import DTYPES, WARP
from hypothesis import strategies as st

from cbam_deploy.gates.description import (
    CBAM,
    SE,
    Activation,
    Arrangement,
    ChannelPool,
    GateFunction,
    GateSpec,
    Join,
    Mixer,
    Spatial,
)
from cbam_deploy.gates.operators import GateOperator, Last, operator_for
from cbam_deploy.gates.reference import Weights
from cbam_deploy.plugins.entries import Kernel
from cbam_deploy.plugins.fused_launch import fused_plan, positions_per_block
from cbam_deploy.plugins.gate import ELEMENTS, Gate, round_up
from cbam_deploy.plugins.launches import Launch, LaunchPlan
from cbam_deploy.plugins.layouts import Dtype, LayoutName
from cbam_deploy.plugins.staged_launches import (
    Cut,
    apply,
    channel_excitation,
    channel_statistics,
    spatial_statistics,
    staged_plan,
)
from cbam_deploy.plugins.stages import stages
from cbam_deploy.plugins.tiling import Tiling


@dataclass(frozen=True)
class Variant:
    dtype: Dtype
    layout: LayoutName
    vector: int
    threads: int
    column_lanes: int
    operator: GateOperator
    kernel_size: int
    cluster: int | None  # None: staged
    padded: bool = False
    first_layer: bool = False  # by the launch of the channels' statistics, where it is staged
    channel_kernel_size: int = 0
    keeps_all: bool = True  # in shared memory, where the kernel is fused
    images: int | None = (
        1  # that a cluster takes at a time, where it keeps all; None: not persistent
    )

    @property
    def at_a_time(self) -> int | None:
        return self.images if self.keeps_all else None

    def __str__(self) -> str:
        kind = f"cluster{self.cluster}" if self.cluster else "staged"
        flags = "-padded" * self.padded + "-first_layer" * self.first_layer
        flags += "-keeps_part" * (not self.keeps_all)
        flags += f"-images{self.images}" * (self.images != 1)
        sizes = f"-k{self.kernel_size}" * bool(self.kernel_size)
        sizes += f"-taps{self.channel_kernel_size}" * bool(self.channel_kernel_size)
        return (
            f"{self.operator.name}-{kind}-{self.dtype}-{self.layout}-v{self.vector}"
            f"-t{self.threads}-q{self.column_lanes}{sizes}{flags}"
        )

    def sizes(self, hidden: int) -> dict[str, int]:
        """Of the weights."""
        return {
            "hidden": hidden if "W0" in self.operator.weights else 0,
            "kernel_size": self.kernel_size,
            "channel_kernel_size": self.channel_kernel_size,
        }


def V(  # noqa: N802
    dtype: str,
    layout: str,
    vector: int,
    threads: int,
    lanes: int,
    kernel_size: int,
    residual: bool,
    cluster: int | None,
    **flags: int | None,
) -> Variant:
    """CBAM, or without a kernel size SE, alone or with residual and ReLU."""
    gate = CBAM if kernel_size else SE
    operator = operator_for(gate, residual=residual, activation="relu" if residual else "none")
    tiling = (vector, threads, lanes)
    return Variant(dtype, layout, *tiling, operator, kernel_size, cluster, **flags)


VARIANTS = (
    # Row reductions inside a warp, across warps; column reductions with idle and with many rows.
    V("float32", "nchw", 4, 16, 4, 7, True, 2, images=4),
    V("float32", "nchw", 1, 16, 8, 3, False, None),
    V("float32", "nhwc", 4, 32, 16, 3, True, 4, keeps_all=False),
    V("float32", "nhwc", 1, 16, 1, 0, True, None),
    V("float16", "nchw", 8, 16, 2, 3, False, 1, keeps_all=False),
    V("float16", "nchw", 4, 32, 8, 0, True, 2, images=2),
    V("float16", "nhwc", 8, 16, 4, 7, True, 2),
    V("float16", "nhwc", 8, 16, 16, 7, False, None, padded=True),
    V("float16", "nhwc", 2, 32, 32, 7, True, None, first_layer=True),
    V("bfloat16", "nchw", 1, 16, 4, 7, False, 4),
    V("bfloat16", "nhwc", 8, 32, 2, 0, False, 2, padded=True),
    V("bfloat16", "nhwc", 4, 16, 8, 3, True, None),
    V("int8", "nchw", 16, 16, 2, 7, True, None),
    V("int8", "nchw", 2, 16, 8, 0, False, 1, images=None),
    V("int8", "nhwc", 16, 16, 4, 3, False, 2, images=2),
    V("int8", "nhwc", 1, 32, 16, 0, True, None, first_layer=True),
    V("int8", "chw32", 16, 16, 4, 7, True, 2, padded=True),
    V("int8", "chw32", 16, 32, 8, 0, False, 4),
    V("int8", "chw32", 16, 32, 4, 3, False, 2, keeps_all=False),
    V("int8", "chw32", 16, 16, 2, 7, False, None),
    V("int8", "chw32", 16, 16, 4, 3, True, None, padded=True),
)


# Tilings of each type and layout that the generated variants take in turn.
TILINGS: dict[tuple[str, str], tuple[tuple[int, int, int], ...]] = {
    ("float32", "nchw"): ((4, 16, 4), (1, 16, 8)),
    ("float32", "nhwc"): ((4, 32, 16), (1, 16, 2)),
    ("float16", "nchw"): ((8, 16, 2), (4, 16, 8)),
    ("float16", "nhwc"): ((8, 16, 4), (2, 32, 32)),
    ("bfloat16", "nchw"): ((1, 16, 4), (4, 16, 2)),
    ("bfloat16", "nhwc"): ((8, 16, 2), (4, 16, 8)),
    ("int8", "nchw"): ((16, 16, 2), (2, 16, 8)),
    ("int8", "nhwc"): ((16, 16, 4), (1, 16, 16)),
    ("int8", "chw32"): ((16, 16, 4), (16, 16, 2)),
}
CHOICES: dict[str, tuple] = {
    "arrangement": get_args(Arrangement),
    "channel_pool": get_args(ChannelPool),
    "mixer": get_args(Mixer),
    "activation": get_args(Activation),
    "join": get_args(Join),
    "channel_gate": get_args(GateFunction),
    "channel_kernel_size": (1, 5),
    "spatial": tuple(one for one in get_args(Spatial) if one != "none"),
    "spatial_gate": get_args(GateFunction),
    "kernel_size": (1, 3, 5, 7, 15),
}
LAST: tuple[Last, ...] = ("none", *get_args(Activation))


# What a gate is made of meets a layout, and whether numbers are levels; how a float is stored is
# apart from both, so that the types of floats take turns.
FLOATS = ("float32", "float16", "bfloat16")
GROUPS = (
    *((FLOATS, layout) for layout in ("nchw", "nhwc")),
    *((("int8",), layout) for layout in ("nchw", "nhwc", "chw32")),
)


def generated(seed: int = 0) -> tuple[Variant, ...]:
    """Variants in which every choice of every field stands, in each layout of floats and of INT8.

    The operators are drawn: of a few, the one that has most of what is still missing.
    """
    made: list[Variant] = []
    orders = get_args(Arrangement)
    for number, (dtypes, layout) in enumerate(GROUPS):
        rng = random.Random(f"{seed} {dtypes} {layout}")
        missing = {(name, value) for name, values in CHOICES.items() for value in values}
        missing |= {("last", value) for value in LAST} | {("residual", True)}
        missing |= {("cluster", 1), ("cluster", 2)}
        # Staged kernels, of which one gate needs several: half of the orders in each.
        missing |= {("staged", order) for order in orders[number % 2 :: 2]}
        kinds = [(d, layout, tiling) for tiling in range(2) for d in dtypes]
        missing |= {("kind", kind) for kind in kinds}
        for dtype, _, tiling in itertools.cycle(kinds):
            tile = TILINGS[dtype, layout][tiling]
            drawn = [_drawn(dtype, layout, tile, rng) for _ in range(400)]
            best = max(drawn, key=lambda variant: len(_choices(variant) & missing))
            missing -= _choices(best) | {("kind", (dtype, layout, tiling))}
            made.append(best)
            if not missing:
                break
    return tuple(made)


def _drawn(dtype: str, layout: str, tiling: tuple[int, int, int], rng: random.Random) -> Variant:
    fields = {name: rng.choice(values) for name, values in CHOICES.items()}
    if fields["arrangement"] == "channel":
        fields["spatial"] = "none"
    spec = GateSpec(**fields)
    operator = operator_for(spec, residual=rng.random() < 0.5, activation=rng.choice(LAST))
    return Variant(
        *(dtype, layout, *tiling, operator),
        kernel_size=spec.kernel_size if spec.has_spatial else 0,
        cluster=rng.choice((1, 2, 2, 2, None)),
        padded=layout == "chw32" or (layout == "nhwc" and tiling[0] > 1 and rng.random() < 0.5),
        first_layer="W0" in operator.weights and rng.random() < 0.5,
        channel_kernel_size=spec.channel_kernel_size if "WC" in operator.weights else 0,
        keeps_all=rng.random() < 0.5,
        images=1 if operator.residual else None,
    )


def _choices(variant: Variant) -> set[tuple[str, object]]:
    """What a variant shows, of `CHOICES` and of what follows the gate."""
    operator, spec = variant.operator, variant.operator.gate
    shown = {"arrangement"}
    if spec.has_channel:
        shown |= {"channel_pool", "mixer", "channel_gate"}
        shown |= {"join"} if spec.channel_pool == "avg+max" else set()
        shown |= {"activation"} if spec.mixer == "mlp" else set()
    if spec.has_spatial:
        shown |= {"spatial", "spatial_gate"}
    found = {(name, getattr(spec, name)) for name in shown}
    found |= {("kernel_size", variant.kernel_size), ("last", operator.activation)}
    found |= {("channel_kernel_size", variant.channel_kernel_size), ("cluster", variant.cluster)}
    if variant.cluster is None:
        found.add(("staged", spec.arrangement))
    return found | {("residual", operator.residual)}


GENERATED = generated()


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
        v.operator,
        channels=channels,
        height=height,
        width=width,
        **v.sizes(draw(small(9))),
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
        kept = rows if v.keeps_all else draw(st.integers(0, rows - 1))
        return fused_plan(gate, tiling, v.cluster, kept, v.at_a_time)
    first, last = (Cut(*draw(st.tuples(_positions(gate), _channels(gate)))) for _ in range(2))
    positions = draw(_positions(gate))
    if v.first_layer:
        first = Cut(gate.positions, first.channels)
    limit = draw(st.sampled_from([48 * 1024, 1000]))
    return _staged(gate, tiling, first, last, positions, v.first_layer, limit)


def _staged(
    gate: Gate,
    tiling: Tiling,
    first: Cut,
    last: Cut,
    positions: int,
    first_layer: bool,
    shared_limit: int,
) -> LaunchPlan:
    splits = first.splits(gate)[first_layer]
    make: dict[str, Callable[[], Launch]] = {
        "channel_statistics": lambda: channel_statistics(
            gate, tiling, first, shared_limit, first_layer=first_layer
        ),
        "channel_excitation": lambda: channel_excitation(
            gate, tiling, min(last.channels, gate.channels), splits, first_layer=first_layer
        ),
        "spatial_statistics": lambda: spatial_statistics(
            gate, tiling, positions, splits, first_layer=first_layer
        ),
        "apply": lambda: apply(gate, tiling, last, shared_limit),
    }
    order = stages(gate.operator, first_layer=first_layer)
    return staged_plan(gate, [make[stage]() for stage in order], programmatic=True)


def _positions(gate: Gate) -> st.SearchStrategy[int]:
    unit = gate.vector if gate.storage.rows_are_channels else 1
    return st.integers(1, gate.positions // unit + 1).map(lambda parts: parts * unit)


def _channels(gate: Gate) -> st.SearchStrategy[int]:
    unit = _channel_unit(gate)
    return st.integers(1, gate.stored // unit).map(lambda parts: parts * unit)


def example_plan(v: Variant, **sizes: int) -> LaunchPlan:
    """A plan for `v` without drawing: every position split in two where the kernels are staged."""
    bytes_ = ELEMENTS[v.dtype][1]
    gate = Gate(
        v.operator,
        **v.sizes(sizes.pop("hidden", 3)),
        dtype=v.dtype,
        layout=v.layout,
        alignment=v.vector * bytes_,
        **sizes,
    )
    tiling = Tiling(gate, v.threads, v.column_lanes, WARP)
    if v.cluster:
        return fused_plan(gate, tiling, v.cluster, None if v.keeps_all else 0, v.at_a_time)
    unit = gate.vector if gate.storage.rows_are_channels else 1
    half = round_up(-(-gate.positions // 2), unit)
    last = Cut(half, gate.stored)
    half_of_channels = round_up(-(-gate.stored // 2), _channel_unit(gate))
    first = Cut(gate.positions, half_of_channels) if v.first_layer else last
    return _staged(gate, tiling, first, last, half, v.first_layer, 48 * 1024)


def _channel_unit(gate: Gate) -> int:
    return {"nchw": 1, "nhwc": gate.vector, "chw32": 32}[gate.layout]


def kernels_of(v: Variant) -> set[Kernel]:
    """The kernels that `v` is made of; shapes do not matter to them."""
    channels = {"nchw": 3, "nhwc": 2 * v.vector, "chw32": 64}[v.layout]
    sizes = {"channels": channels - 1 if v.padded else channels, "height": 2, "width": 16}
    if v.padded and v.layout == "nhwc":
        sizes["stored"] = channels
    return {launch.kernel for launch in example_plan(v, **sizes).launches}


def random_weights(gate: Gate, rng: np.random.Generator, scale: float = 1.0) -> Weights:
    shapes = gate.operator.weight_shapes(
        gate.channels, gate.hidden, gate.kernel_size, gate.channel_kernel_size
    )
    return Weights(**{name.lower(): _weight(shape, rng, scale) for name, shape in shapes.items()})


def _weight(shape: tuple[int, ...], rng: np.random.Generator, scale: float) -> np.ndarray:
    """Normal numbers whose weighted sums are about as large as what they weigh."""
    values = (scale * rng.standard_normal(shape)).astype(np.float32)
    return values / np.float32(np.sqrt(np.prod(shape[1:])))


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
