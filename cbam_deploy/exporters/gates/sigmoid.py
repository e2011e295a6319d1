"""Read a gate function, as one node or written out.

    sigmoid       Sigmoid(z)     1 / (1 + exp(-z))     0.5 * (tanh(z / 2) + 1)
    hard sigmoid  HardSigmoid(z)     Clip(z + 3, 0, 6) / 6     Min(Relu(z / 6 + 0.5), 1)     ...

Sums, differences, products and quotients with scalars are followed as one affine function, and
clamps as one clamp, so the order and the operators in which they are written do not matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import onnx_ir as ir

from cbam_deploy.exporters.gates.matching import (
    MOST_STEPS,
    Matched,
    find_constant,
    input_of,
    is_op,
    said,
    split_scalar,
    view_of,
)
from cbam_deploy.gates.description import GateFunction

Read = tuple[ir.Value, list[ir.Node]]
"""The argument of a function, and the nodes that make the function."""

HARD_SIGMOID = (1 / 6, 1 / 2, 0.0, 1.0)
# Of scalars that files keep in FP32.
_RELATIVE = 1e-6


def read_gate_function(value: ir.Value, matched: Matched) -> tuple[GateFunction, ir.Value]:
    """The gate function that `value`, behind views, is, and what it is taken of."""
    value = matched.behind_views(value)
    for name, find in (("sigmoid", find_sigmoid), ("hard_sigmoid", find_hard_sigmoid)):
        read = find(value)
        if read is not None:
            matched.note(*read[1])
            return ("sigmoid" if name == "sigmoid" else "hard_sigmoid"), read[0]
    other = next((one for one in clamps(value) if (one.low, one.high) == (0, 1)), None)
    what = said(value)
    if other is not None and what != "σ":
        last = [one for one in clamps(value) if (one.low, one.high) == (0, 1)][-1]
        what = f"clip({last.scale:.3g}·z + {last.shift:.3g}, 0, 1)"
    raise matched.refused(
        f"its gate function is {what}; fused are σ(z) and the hard sigmoid clip(z/6 + 1/2, 0, 1)"
    )


def find_sigmoid(value: ir.Value) -> Read | None:
    """The argument where `value` is a sigmoid."""
    node = value.producer()
    if node is not None and is_op(value, "Sigmoid"):
        return input_of(node, 0), [node]
    return _by_exp(value) or affine_of(value, (0.5, 0.5), "Tanh", 0.5)


def find_hard_sigmoid(value: ir.Value, scale: float = 1.0) -> Read | None:
    """The argument z where scale * `value` is clip(z / 6 + 1 / 2, 0, 1)."""
    return next((one.read for one in clamps(value, scale) if one.equals(*HARD_SIGMOID)), None)


@dataclass(frozen=True)
class Clamped:
    """What a value is: clip(scale * argument + shift, low, high)."""

    argument: ir.Value
    scale: float = 1.0
    shift: float = 0.0
    low: float = -math.inf
    high: float = math.inf
    nodes: tuple[ir.Node, ...] = ()

    @property
    def read(self) -> Read:
        """The argument and the nodes."""
        return self.argument, list(self.nodes)

    def equals(self, *wanted: float) -> bool:
        """Whether scale, shift, low and high are these, but for rounding."""
        found = (self.scale, self.shift, self.low, self.high)
        return all(map(close, found, wanted))

    def within(self, low: float, high: float) -> Clamped:
        """The same where the argument is clamped to [low, high]."""
        ends = sorted(self.scale * end + self.shift for end in (low, high))
        low, high = (min(max(end, self.low), self.high) for end in ends)
        return replace(self, low=low, high=high)

    def of(self, scale: float, shift: float) -> Clamped:
        """The same where the argument is scale * another + shift."""
        return replace(self, scale=self.scale * scale, shift=self.shift + self.scale * shift)


def close(one: float, other: float) -> bool:
    """Whether two scalars of a file are the same."""
    return math.isclose(one, other, rel_tol=_RELATIVE, abs_tol=_RELATIVE)


def clamps(value: ir.Value, scale: float = 1.0) -> Iterator[Clamped]:
    """All that scale * `value` is, as a clamp of ever earlier values, the latest first."""
    known = Clamped(value, scale)
    for _ in range(MOST_STEPS):
        value, before = known.argument, known
        node = value.producer()
        if node is None or node.domain or node.op_type == "Transpose":
            return
        if view_of(value) is not None:
            value = input_of(node, 0)
        elif node.op_type == "Relu":
            known, value = known.within(0.0, math.inf), input_of(node, 0)
        elif node.op_type == "HardSigmoid":
            attributes = node.attributes
            slope, shift = attributes.get_float("alpha", 0.2), attributes.get_float("beta", 0.5)
            known, value = known.within(0.0, 1.0).of(slope, shift), input_of(node, 0)
        elif node.op_type == "Clip":
            bounds = [
                _bound(node, index, name, free)
                for index, name, free in ((1, "min", -math.inf), (2, "max", math.inf))
            ]
            if None in bounds:
                return
            low, high = (float(bound or 0.0) for bound in bounds)
            known, value = known.within(low, high), input_of(node, 0)
        elif node.op_type in ("Min", "Max"):
            split = split_scalar(node)
            if split is None:
                return
            value, scalar, _ = split
            low, high = (scalar, math.inf) if node.op_type == "Max" else (-math.inf, scalar)
            known = known.within(low, high)
        else:
            step = _affine_step(value)
            if step is None or not step[1]:
                return
            value, factor, shift = step
            known = known.of(factor, shift)
        known = replace(known, argument=value, nodes=(*before.nodes, node))
        yield known


def _bound(node: ir.Node, index: int, name: str, free: float) -> float | None:
    """A bound of a Clip; None where it is computed."""
    if index >= len(node.inputs) or node.inputs[index] is None:
        return node.attributes.get_float(name, free)
    array = find_constant(node.inputs[index])
    return None if array is None or array.size != 1 else float(array.reshape(()))


def _by_exp(value: ir.Value) -> Read | None:
    """Read 1 / (1 + exp(-z))."""
    inverse = value.producer()
    if inverse is None:
        return None
    if is_op(value, "Reciprocal"):
        below = input_of(inverse, 0)
    elif is_op(value, "Div", "Pow"):
        split = split_scalar(inverse)
        if split is None or split[1:] != ((1.0, True) if is_op(value, "Div") else (-1.0, False)):
            return None
        below = split[0]
    else:
        return None
    return one_plus_exp(below, [inverse])


def one_plus_exp(value: ir.Value, nodes: list[ir.Node]) -> Read | None:
    """Read 1 + exp(-z); return z and `nodes` with those met."""
    read = affine_of(value, (1.0, 1.0), "Exp", -1.0)
    return None if read is None else (read[0], [*nodes, *read[1]])


def affine_of(value: ir.Value, outer: tuple[float, float], op: str, inner: float) -> Read | None:
    """Read a * op(inner * z) + b with (a, b) `outer`."""
    around = _affine(value, *outer)
    if around is None or not is_op(around[0], op):
        return None
    function = around[0].producer()
    assert function is not None
    within = _affine(input_of(function, 0), inner, 0.0)
    return within and (within[0], [*around[1], function, *within[1]])


def _affine(value: ir.Value, scale: float, shift: float) -> Read | None:
    """Read scale * z + shift, written by any nodes."""
    known = Clamped(value)
    while not (close(known.scale, scale) and close(known.shift, shift)):
        step = _affine_step(known.argument)
        if step is None or len(known.nodes) == MOST_STEPS:
            return None
        node = known.argument.producer()
        assert node is not None
        known = replace(known.of(*step[1:]), argument=step[0], nodes=(*known.nodes, node))
    return known.read


def _affine_step(value: ir.Value) -> tuple[ir.Value, float, float] | None:
    """The value z, a and b where one node makes `value` as a * z + b of scalars."""
    node = value.producer()
    if node is None:
        return None
    if is_op(value, "Neg"):
        return input_of(node, 0), -1.0, 0.0
    split = split_scalar(node) if is_op(value, "Add", "Sub", "Mul", "Div") else None
    if split is None:
        return None
    argument, scalar, first = split
    if node.op_type == "Add":
        return argument, 1.0, scalar
    if node.op_type == "Mul":
        return argument, scalar, 0.0
    if node.op_type == "Sub":
        return (argument, -1.0, scalar) if first else (argument, 1.0, -scalar)
    return None if first or not scalar else (argument, 1 / scalar, 0.0)
