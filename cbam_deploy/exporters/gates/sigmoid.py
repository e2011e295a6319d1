"""Read a sigmoid, as one node or written out.

    Sigmoid(x)     1 / (1 + exp(-x))     0.5 * (tanh(x / 2) + 1)

Sums, differences, products and quotients with scalars are followed as one affine function, so the
order and the operators in which they are written do not matter.
"""

from __future__ import annotations

import onnx_ir as ir

from cbam_deploy.exporters.gates.matching import MOST_STEPS, Trail, input_of, is_op, split_scalar


def read_sigmoid(value: ir.Value, trail: Trail) -> ir.Value:
    """What the sigmoid is taken of, where `value`, behind views, is a sigmoid."""
    value = trail.behind_views(value)
    for written_out in (_by_exp, _by_tanh):
        read = written_out(value)
        if read is not None:
            logits, nodes = read
            trail.note(*nodes)
            return logits
    return input_of(trail.maker(value, "Sigmoid"), 0)


def _by_exp(value: ir.Value) -> tuple[ir.Value, list[ir.Node]] | None:
    """Read 1 / (1 + exp(-x))."""
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
    return _of_function(below, (1.0, 1.0), "Exp", -1.0, [inverse])


def _by_tanh(value: ir.Value) -> tuple[ir.Value, list[ir.Node]] | None:
    """Read 0.5 * (tanh(x / 2) + 1)."""
    return _of_function(value, (0.5, 0.5), "Tanh", 0.5, [])


def _of_function(
    value: ir.Value, outer: tuple[float, float], op: str, inner: float, nodes: list[ir.Node]
) -> tuple[ir.Value, list[ir.Node]] | None:
    """Read a * op(inner * x) + b with (a, b) `outer`; return x and `nodes` with those met."""
    around = _affine(value, *outer)
    if around is None or not is_op(around[0], op):
        return None
    function = around[0].producer()
    assert function is not None
    within = _affine(input_of(function, 0), inner, 0.0)
    if within is None:
        return None
    return within[0], [*nodes, *around[1], function, *within[1]]


def _affine(value: ir.Value, scale: float, shift: float) -> tuple[ir.Value, list[ir.Node]] | None:
    """Read scale * x + shift, written by any nodes; return x and the nodes."""
    a, b = 1.0, 0.0  # The value is a * x + b.
    nodes: list[ir.Node] = []
    while (a, b) != (scale, shift):
        node = value.producer()
        if node is None or len(nodes) == MOST_STEPS:
            return None
        if is_op(value, "Neg"):
            value, a = input_of(node, 0), -a
        elif is_op(value, "Add", "Sub", "Mul", "Div"):
            split = split_scalar(node)
            if split is None:
                return None
            value, scalar, first = split
            if node.op_type == "Add":
                b += a * scalar
            elif node.op_type == "Mul":
                a *= scalar
            elif node.op_type == "Sub":
                b += a * scalar if first else -a * scalar
                a = -a if first else a
            elif first or not scalar:
                return None
            else:
                a /= scalar
        else:
            return None
        nodes.append(node)
    return value, nodes
