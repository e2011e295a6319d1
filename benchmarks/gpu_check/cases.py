"""The launches whose results are compared with the float64 reference, and their inputs.

Every kernel that the geometry plans in every type, layout and operator; the values at which
arithmetic goes wrong first; and maps that nothing divides.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_check.gate_cases import MAPS
from benchmarks.gpu_check.storage import encode
from benchmarks.kernel_report import FORMATS, OTHERS, gate_of, gates
from cbam_deploy.gates.description import CBAM
from cbam_deploy.gates.operators import operator_for
from cbam_deploy.gates.reference import Weights
from cbam_deploy.plugins.gate import Gate
from cbam_deploy.plugins.geometry import DeviceLimits, ranked_plans
from cbam_deploy.plugins.launches import LaunchPlan

VALUES = ("constant", "negative", "minus_zero", "extreme", "nan", "inf", "minus_inf")
INTEGER_VALUES = ("constant", "negative", "extreme")
SMALL = (20, 5, 5)  # channels, height, width: nothing divides it
TAILS = ((3, 9, 11, 1), (100, 13, 7, 9), (64, 1, 1, 4), (33, 30, 33, 5))  # and hidden units
_WITH_RESIDUAL = operator_for(CBAM, residual=True, activation="relu")
_TIMED = (("float16", "nhwc"), ("int8", "nhwc"))
_SCALES = {"x_scale": 0.05, "r_scale": 0.04, "y_scale": 0.03}


@dataclass(frozen=True)
class Case:
    """One plan, with a batch and a kind of values to try it on."""

    plan: LaunchPlan
    batch: int = 2
    values: str = "normal"

    @property
    def gate(self) -> Gate:
        """What is computed."""
        return self.plan.gate

    @property
    def is_small(self) -> bool:
        """Whether it is fit for tools that slow kernels down."""
        return self.gate.positions * self.gate.stored * self.batch < 50_000

    def __str__(self) -> str:
        launch = self.plan.launches[0]
        kind = f"cluster {launch.cluster}" if len(self.plan.launches) == 1 else "staged"
        size = f", k {self.gate.kernel_size}" if self.gate.kernel_size else ""
        storage = f", {self.gate.stored} stored" if self.gate.stored > self.gate.channels else ""
        vector = f"{kind} of {launch.threads} threads, vector {self.gate.vector}"
        return f"{self.gate}{size}{storage}, {vector}, batch {self.batch}, {self.values}"


@functools.cache
def all_cases(limits: DeviceLimits) -> tuple[Case, ...]:
    """Every case on a device, what is also timed first, those with one reference side by side."""

    def order(case: Case) -> tuple[object, ...]:
        timed = (case.gate.dtype, case.gate.layout) in _TIMED and case.values == "normal"
        return not timed, repr(reference_key(case)), str(case)

    return tuple(sorted(set(_cases(limits)), key=order))


def reference_key(case: Case) -> tuple[object, ...]:
    """Cases of one key have one reference: layout and geometry do not matter to it."""
    return (replace(case.gate, layout="nchw", stored=0, alignment=16), case.batch, case.values)


def _cases(limits: DeviceLimits) -> Iterator[Case]:
    for gate in gates():
        yield from _both(_scaled(gate), limits)
    for dtype, layout in FORMATS:
        of_maps: dict[str, Any] = {"dtype": dtype, "layout": layout}
        small = _scaled(Gate(_WITH_RESIDUAL, *SMALL, 2, 7, **of_maps))
        for operator, spec in OTHERS:
            yield from _both(_scaled(gate_of(operator, spec, *SMALL, **of_maps)), limits)
        for values in INTEGER_VALUES if dtype == "int8" else VALUES:
            yield from _both(small, limits, values=values)
        for tail in TAILS:
            yield from _both(_scaled(Gate(_WITH_RESIDUAL, *tail, 7, **of_maps)), limits, batch=3)
        if layout == "nhwc":
            padded = replace(small, stored=24, operator=operator_for(CBAM))
            yield from _both(padded, limits)
            yield from _both(replace(small, alignment=small.element_bytes), limits)
        # All geometries of what the timing parts compare, and of one gate more.
        compared = {**dict.fromkeys(_TIMED, MAPS), ("float32", "nchw"): MAPS[1:2]}
        for channels, size in compared.get((dtype, layout), ()):
            gate = _scaled(Gate(_WITH_RESIDUAL, channels, size, size, channels // 16, 7, **of_maps))
            for batch in (1, 2):
                for one in ranked_plans(gate, limits, batch=batch):
                    yield Case(one, batch)


def _both(
    gate: Gate, limits: DeviceLimits, batch: int = 2, values: str = "normal"
) -> Iterator[Case]:
    """The plan that is chosen, and the best of those that are staged."""
    ranked = ranked_plans(gate, limits, batch=batch)
    for one in (ranked[0], next(one for one in ranked if len(one.launches) > 1)):
        yield Case(one, batch, values)


def _scaled(gate: Gate) -> Gate:
    return replace(gate, **_SCALES) if gate.dtype == "int8" else gate


@dataclass(frozen=True)
class Inputs:
    """Weights, and maps [N, C, H, W] encoded in the gate's type."""

    weights: Weights
    x: NDArray[np.generic]
    r: NDArray[np.generic] | None


def draw(case: Case) -> Inputs:
    """The inputs of a case: the same for all cases of one `reference_key`."""
    gate = case.gate
    rng = np.random.default_rng([gate.channels, gate.height, gate.width, gate.kernel_size])
    shape = (case.batch, gate.channels, gate.height, gate.width)
    x = encode(_maps(gate, shape, case.values, rng), gate.dtype)
    r = encode(_maps(gate, shape, "normal", rng), gate.dtype) if gate.operator.residual else None
    return Inputs(draw_weights(gate, rng), x, r)


def draw_weights(gate: Gate, rng: np.random.Generator) -> Weights:
    """Weights at which the gates are neither shut nor open."""

    def normal(shape: tuple[int, ...]) -> NDArray[np.float32]:
        of_each = np.float32(np.sqrt(np.prod(shape[1:])))
        return rng.standard_normal(shape, dtype=np.float32) / of_each

    shapes = gate.operator.weight_shapes(
        gate.channels, gate.hidden, gate.kernel_size, gate.channel_kernel_size
    )
    return Weights(**{name.lower(): normal(shape) for name, shape in shapes.items()})


def _maps(
    gate: Gate, shape: tuple[int, ...], values: str, rng: np.random.Generator
) -> NDArray[np.float64]:
    if gate.dtype == "int8":
        return _integers(shape, values, rng).astype(np.float64)
    x = rng.standard_normal(shape)
    if values == "constant":
        x[:] = x.flat[0]
    elif values == "negative":
        x = -np.abs(x) - 0.01
    elif values == "minus_zero":
        x = np.where(x < 0, -0.0, 0.0)
    elif values == "extreme":
        x *= 10_000.0 if gate.dtype == "float16" else 1e6
    elif values != "normal":
        x.flat[x.size // 3] = {"nan": np.nan, "inf": np.inf, "minus_inf": -np.inf}[values]
    return x


def _integers(shape: tuple[int, ...], values: str, rng: np.random.Generator) -> NDArray[np.integer]:
    if values == "constant":
        return np.full(shape, -77)
    if values == "negative":
        return rng.integers(-128, 0, shape)
    if values == "extreme":
        return rng.choice([-128, 127], shape)
    return rng.integers(-128, 128, shape)
