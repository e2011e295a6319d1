"""The gate in float64, with a bound on what float32 kernels may differ from it, element by element.

The bound is a running error analysis (Higham, "Accuracy and Stability of Numerical Algorithms", 2nd
edition, sections 3.3 and 4.2), carried through the same formulas as the value. With u = 2^-24, the
unit roundoff of float32, and gamma(n) = 4 sqrt(n) u:

- a sum of n products is off by at most gamma(n) times the sum of their magnitudes, plus what the
  errors of its terms amount to. That holds for certain where no term goes through more than
  4 sqrt(n) additions, as in sums over many lanes, and for longer chains with rounding errors that
  fall to either side (Higham and Mary, SIAM J. Sci. Comput. 41(5), 2019, theorem 2.4);
- maxima and ReLU pass errors on unchanged, any other function at most its steepest slope times
  them (`_SLOPES`); the sigmoid adds at most `SIGMOID_ERROR` of its own, a function made with one
  that times its argument;
- what is written is rounded once to the map's type: `OUTPUT_ROUNDING` of its magnitude.

So tolerances follow from type and number of terms and are written nowhere else. The same check
serves the kernels on the host (tests/plugins) and on a GPU.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cbam_deploy.gates.description import Activation, GateFunction, GateSpec
from cbam_deploy.gates.operators import GateOperator

Array = NDArray[np.float64]

UNIT_ROUNDOFF = 2.0**-24
SIGMOID_ERROR = 2.0**-21
"""Of `sigmoid` in ``kernels/gate.cuh``: fast exponential and division, absolute."""

OUTPUT_ROUNDING = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8, "int8": 0.0}
"""Half a unit in the last place relative to the value; int8 rounds absolutely, see `apply_gate`."""

# The steepest slope of each function: of SiLU at 2.4, of GELU at sqrt(2), of hard swish at 3.
_SLOPES: dict[Activation, float] = {
    "relu": 1.0,
    "leaky_relu": 1.0,
    "silu": 1.1,
    "gelu": 1.13,
    "hard_swish": 1.5,
}

_SMALLEST = {"float32": 2.0**-149, "float16": 2.0**-24, "bfloat16": 2.0**-133, "int8": 0.0}


class Gate(Protocol):
    """What the formula needs to know of a gate on maps of a type, such as `plugins.gate.Gate`."""

    @property
    def operator(self) -> GateOperator:
        """What is computed."""

    @property
    def dtype(self) -> str:
        """Of the maps."""

    @property
    def x_scale(self) -> float:
        """Of x, where it is int8; 1 for floats, as are the other two."""

    @property
    def r_scale(self) -> float:
        """Of the residual."""

    @property
    def y_scale(self) -> float:
        """Of the output."""


@dataclass(frozen=True)
class Weights:
    """A gate's weights, float32, as the ONNX operator takes them; None where it has none.

    Attributes:
        w0, b0: first layer of the channel part's MLP, [hidden, C] and [hidden].
        w1, b1: its second layer, or its only one, [C, hidden or C] and [C].
        ws, bs: convolution of the spatial part, [1, d, k, k] (maximum, mean) and [1].
        wc, bc: convolution along the channels, [1, 1, k] and [1].
        wd: 1x1 convolution to the spatial part's descriptor, [1, C, 1, 1].
    """

    w0: NDArray[np.float32] | None = None
    b0: NDArray[np.float32] | None = None
    w1: NDArray[np.float32] | None = None
    b1: NDArray[np.float32] | None = None
    ws: NDArray[np.float32] | None = None
    bs: NDArray[np.float32] | None = None
    wc: NDArray[np.float32] | None = None
    bc: NDArray[np.float32] | None = None
    wd: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Bounded:
    """A value and how far a float32 computation of it may be off, both of one shape."""

    value: Array
    error: Array

    def __add__(self, other: Bounded) -> Bounded:
        value = self.value + other.value
        return Bounded(value, self.error + other.error + UNIT_ROUNDOFF * np.abs(value))

    def __mul__(self, other: Bounded) -> Bounded:
        value = self.value * other.value
        passed_on = np.abs(self.value) * other.error + np.abs(other.value) * self.error
        return Bounded(value, passed_on + self.error * other.error + UNIT_ROUNDOFF * np.abs(value))

    def activated(self, activation: Activation) -> Bounded:
        """The function of that name; ReLU keeps NaN, as PyTorch does."""
        z = self.value
        values: dict[Activation, Callable[[], Array]] = {
            "relu": lambda: np.where(z < 0, 0.0, z),
            "leaky_relu": lambda: np.where(z < 0, np.float64(np.float32(0.01)) * z, z),
            "silu": lambda: z * _logistic(z),
            "gelu": lambda: z * (0.5 + 0.5 * _erf(z / np.sqrt(2.0))),
            "hard_swish": lambda: z * np.clip(z / 6 + 0.5, 0.0, 1.0),
        }
        value = values[activation]()
        own = {"relu": 0.0, "leaky_relu": UNIT_ROUNDOFF}.get(activation, SIGMOID_ERROR)
        return Bounded(value, self.error * _SLOPES[activation] + own * np.abs(z))

    def gate(self, function: GateFunction) -> Bounded:
        """The gate function of that name."""
        if function == "hard_sigmoid":
            value = np.clip(self.value / 6 + 0.5, 0.0, 1.0)
            own = 2 * UNIT_ROUNDOFF * (np.abs(self.value) / 6 + 0.5)
            return Bounded(value, np.minimum(self.error / 6 + own, 1.0))
        value = _logistic(self.value)
        return Bounded(value, np.minimum(self.error / 4 + SIGMOID_ERROR, 1.0))


def _logistic(z: Array) -> Array:
    value: Array = np.exp(-np.logaddexp(0.0, -z))
    return value


def _erf(z: Array) -> Array:
    value: Array = np.vectorize(math.erf, otypes=[np.float64])(z)
    return value


def exact(value: NDArray[np.generic]) -> Bounded:
    """A value that the kernels are given."""
    array = value.astype(np.float64)
    return Bounded(array, np.zeros_like(array))


def weighted_sum(weights: NDArray[np.float32], terms: Bounded) -> Bounded:
    """`weights` [m, n] times `terms` [..., n], summed over n: [..., m]."""
    w = weights.astype(np.float64)
    magnitude = np.abs(terms.value) @ np.abs(w).T
    error = terms.error @ np.abs(w).T + _gamma(w.shape[1] + 2) * magnitude
    return Bounded(terms.value @ w.T, error)


def mean(terms: Bounded, axis: tuple[int, ...] | int) -> Bounded:
    """Mean over `axis`."""
    count = terms.value.size // max(1, np.mean(terms.value, axis=axis).size)
    magnitude = np.mean(np.abs(terms.value), axis=axis)
    error = np.mean(terms.error, axis=axis) + _gamma(count + 3) * magnitude
    return Bounded(np.mean(terms.value, axis=axis), error)


def maximum(terms: Bounded, axis: tuple[int, ...] | int) -> Bounded:
    """Maximum over `axis`; NaN if there is one."""
    return Bounded(np.max(terms.value, axis=axis), np.max(terms.error, axis=axis))


def apply_gate(
    gate: Gate, weights: Weights, x: NDArray[np.generic], r: NDArray[np.generic] | None = None
) -> Bounded:
    """The gate of `x` [N, C, H, W], in real values (int8 integers times their scale).

    The result is y before saturation, for int8 in units of y_scale, with the error of everything
    the kernels do, the rounding to the map's type included.
    """
    spec, last = gate.operator.gate, gate.operator.activation
    with np.errstate(all="ignore"):
        real = exact(x) * exact(np.array([gate.x_scale], np.float32))
        y = real
        if spec.arrangement in ("parallel", "sum"):
            mc, ms = channel_gate(spec, weights, real), spatial_gate(spec, weights, real)
            y = real * mc * ms if spec.arrangement == "parallel" else real * (mc + ms)
        else:
            for part in spec.arrangement.split("-"):
                attention = channel_gate if part == "channel" else spatial_gate
                y = y * attention(spec, weights, y)
        magnitude = np.abs(y.value)
        if r is not None:
            residual = exact(r) * exact(np.array([gate.r_scale], np.float32))
            y, magnitude = y + residual, magnitude + np.abs(residual.value)
        if last != "none":
            y, magnitude = y.activated(last), magnitude * _SLOPES[last]
        if gate.dtype == "int8":
            y = y * exact(1 / np.array([gate.y_scale], np.float32).astype(np.float64))
            # The kernels fold the scales into the gates and r: a quotient, off by two units in the
            # last place (4 u), and a product each with what they have in Mc and in Ms.
            rounding = 0.5 + 6 * UNIT_ROUNDOFF * magnitude / gate.y_scale
        else:
            rounding = OUTPUT_ROUNDING[gate.dtype] * (np.abs(y.value) + y.error)
        error = y.error + rounding + _SMALLEST[gate.dtype]
        return Bounded(y.value, np.where(np.isnan(error), np.inf, error))


def channel_gate(spec: GateSpec, weights: Weights, x: Bounded) -> Bounded:
    """Mc [N, C, 1, 1], of `x` [N, C, H, W]; one mixer for both pools."""
    pools = {"avg": (mean,), "max": (maximum,), "avg+max": (mean, maximum)}[spec.channel_pool]
    pooled = [pool(x, (2, 3)) for pool in pools]
    if len(pooled) == 2 and spec.join == "pools":
        pooled = [(pooled[0] + pooled[1]) * exact(np.array([0.5], np.float32))]
    logits = [mixed(spec, weights, statistic) for statistic in pooled]
    if spec.join == "gates":
        gates = functools.reduce(Bounded.__add__, [z.gate(spec.channel_gate) for z in logits])
    else:
        gates = functools.reduce(Bounded.__add__, logits).gate(spec.channel_gate)
    return Bounded(gates.value[:, :, None, None], gates.error[:, :, None, None])


def mixed(spec: GateSpec, weights: Weights, statistic: Bounded) -> Bounded:
    """Logits [N, C] of one statistic [N, C] of each channel."""
    if spec.mixer == "conv":
        return _along_channels(weights, statistic)
    assert weights.w1 is not None
    assert weights.b1 is not None
    if spec.mixer == "mlp":
        assert weights.w0 is not None
        assert weights.b0 is not None
        hidden = weighted_sum(weights.w0, statistic) + exact(weights.b0)
        statistic = hidden.activated(spec.activation)
    return weighted_sum(weights.w1, statistic) + exact(weights.b1)


def _along_channels(weights: Weights, statistic: Bounded) -> Bounded:
    """The convolution of [N, C] along C, zeros beyond the ends (Wang et al., equation 8)."""
    assert weights.wc is not None
    assert weights.bc is not None
    taps = weights.wc.reshape(-1).astype(np.float64)
    channels, reach = statistic.value.shape[1], len(taps) // 2
    border = ((0, 0), (reach, reach))
    value, error = np.pad(statistic.value, border), np.pad(statistic.error, border)
    terms, errors = [], []
    for tap, weight in enumerate(taps):
        # Beyond the ends nothing is multiplied: 0 times an infinite weight stays 0.
        channel = np.arange(channels) + tap - reach
        inside = (channel >= 0) & (channel < channels)
        terms.append(np.where(inside, weight * value[:, tap : tap + channels], 0.0))
        errors.append(np.where(inside, abs(weight) * error[:, tap : tap + channels], 0.0))
    magnitude = np.abs(terms).sum(axis=0)
    bound = np.sum(errors, axis=0) + _gamma(len(taps) + 2) * magnitude
    return Bounded(np.sum(terms, axis=0), bound) + exact(weights.bc)


def spatial_gate(spec: GateSpec, weights: Weights, x: Bounded) -> Bounded:
    """Ms [N, 1, H, W]: convolution of the positions' descriptor, zeros beyond the border."""
    ws, bs = weights.ws, weights.bs
    assert ws is not None
    assert bs is not None
    kernel_size, (height, width) = ws.shape[-1], x.value.shape[2:]
    reach = kernel_size // 2
    border = ((0, 0), (reach, reach), (reach, reach))
    logits = exact(bs)
    terms = []
    for channel, statistic in enumerate(_descriptor(spec, weights, x)):
        value, error = np.pad(statistic.value, border), np.pad(statistic.error, border)
        for dy in range(kernel_size):
            for dx in range(kernel_size):
                window = np.s_[:, dy : dy + height, dx : dx + width]
                inside = np.pad(np.ones((1, height, width), bool), border)[window]
                weight = float(ws[0, channel, dy, dx])
                # Beyond the border nothing is multiplied: 0 times an infinite weight stays 0.
                terms.append(
                    (
                        np.where(inside, weight * value[window], 0.0),
                        np.where(inside, abs(weight) * error[window], 0.0),
                    )
                )
    values = np.stack([value for value, _ in terms])
    magnitude = np.abs(values).sum(axis=0) + np.abs(logits.value)
    error = np.sum([error for _, error in terms], axis=0) + _gamma(len(terms) + 2) * magnitude
    gates = Bounded(values.sum(axis=0) + logits.value, error).gate(spec.spatial_gate)
    return Bounded(gates.value[:, None], gates.error[:, None])


def _descriptor(spec: GateSpec, weights: Weights, x: Bounded) -> list[Bounded]:
    """What the convolution sees of each position, maps [N, H, W]."""
    if spec.spatial == "conv1x1":
        assert weights.wd is not None
        by_position = Bounded(np.moveaxis(x.value, 1, -1), np.moveaxis(x.error, 1, -1))
        described = weighted_sum(weights.wd.reshape(1, -1), by_position)
        return [Bounded(described.value[..., 0], described.error[..., 0])]
    pools = {"pool": (maximum, mean), "avg": (mean,), "max": (maximum,)}[spec.spatial]
    return [pool(x, 1) for pool in pools]


def disagreement(gate: Gate, y: NDArray[np.generic], expected: Bounded) -> str | None:
    """Where `y` [N, C, H, W] is not what `expected` allows; None if it agrees everywhere.

    NaN must be where it is expected and nowhere else; a value beyond the type's range must saturate
    (int8) or become infinite.
    """
    found = y.astype(np.float64)
    value, error = expected.value, expected.error
    with np.errstate(invalid="ignore"):
        if gate.dtype == "int8":
            # Where NaN was expected, int8 has nothing to say it with.
            allowed = np.isnan(value) | (np.abs(found - np.clip(value, -128, 127)) <= error)
        else:
            limit = {"float16": 65504.0, "bfloat16": 3.3895e38, "float32": 3.4028234e38}[gate.dtype]
            overflow = np.isinf(found) & (np.abs(value) + error > limit)
            allowed = np.where(
                np.isnan(value),
                np.isnan(found),
                (found == value)
                | (np.abs(found - value) <= error)
                | (overflow & (np.sign(found) == np.sign(value))),
            )
    if allowed.all():
        return None
    index = tuple(int(i[0]) for i in np.nonzero(~allowed))
    return (
        f"{int((~allowed).sum())} of {allowed.size} elements; first at {index}: "
        f"{found[index]}, expected {value[index]} within {error[index]}"
    )


def _gamma(terms: int) -> float:
    return float(4 * np.sqrt(terms) * UNIT_ROUNDOFF)
