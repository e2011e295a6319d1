"""Read an activation between two layers or behind a gate, as one node or written out.

    ReLU         Relu     Max(z, 0)     Clip(z, 0)
    LeakyReLU    LeakyRelu of slope 0.01
    SiLU         Swish     z * sigmoid(z)     z / (1 + exp(-z))
    HardSwish    HardSwish     z * hard_sigmoid(z)     z * Clip(z + 3, 0, 6) / 6
    GELU         Gelu     0.5 * z * (1 + erf(z / sqrt(2)))

Factors stand in any order, and scalars by any of them. onnxsim takes the 0.5 of GELU, and the sixth
of HardSwish, into the weights of the next layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from cbam_deploy.exporters.gates.matching import (
    behind_copies,
    input_of,
    is_constant,
    is_op,
    said,
    split_scalar,
)
from cbam_deploy.exporters.gates.sigmoid import (
    affine_of,
    clamps,
    close,
    find_hard_sigmoid,
    find_sigmoid,
    one_plus_exp,
)
from cbam_deploy.gates.description import Activation

FUSED = "ReLU, LeakyReLU of slope 0.01, SiLU, GELU by erf and HardSwish"
"""The activations there are, for sentences."""

# A slope that is 0.01 in FP32 or FP16.
_SLOPE_ERROR = 1e-5


@dataclass(frozen=True)
class Activated:
    """What a value is: `factor` times `activation` of `argument`, made by `nodes`."""

    activation: Activation
    argument: ir.Value
    nodes: tuple[ir.Node, ...]
    factor: float = 1.0


def find_activation(value: ir.Value, *, scaled: bool = False) -> Activated | None:
    """What `value` is the activation of, where it is one; `scaled` if a factor may be left out."""
    node = value.producer()
    if node is None or node.domain or not node.inputs or node.inputs[0] is None:
        return None
    attributes = node.attributes
    of_one_node: dict[str, tuple[Activation, bool]] = {
        "Relu": ("relu", True),
        "LeakyRelu": (
            "leaky_relu",
            abs(attributes.get_float("alpha", 0.01) - 0.01) < _SLOPE_ERROR,
        ),
        "Gelu": ("gelu", attributes.get_string("approximate", "none") == "none"),
        "HardSwish": ("hard_swish", True),
        "Swish": ("silu", attributes.get_float("alpha", 1.0) == 1.0),
    }
    if node.op_type in of_one_node:
        name, is_it = of_one_node[node.op_type]
        return Activated(name, input_of(node, 0), (node,)) if is_it else None
    if node.op_type in ("Max", "Clip"):
        relu = next((one for one in clamps(value) if one.equals(1, 0, 0, math.inf)), None)
        return None if relu is None else Activated("relu", relu.argument, relu.nodes)
    factors = (1.0, 2.0, 6.0) if scaled else (1.0,)
    return next((one for factor in factors for one in _self_gated(value, factor)), None)


def said_of(value: ir.Value) -> str:
    """What `value` is, for a sentence that says it is none of these."""
    bare = _scaled(value)[1]
    node = bare.producer()
    if node is not None and is_op(bare, "Mul"):
        inside = [_through(factor) for factor in node.inputs if factor is not None]
        if any(is_op(one, "Tanh") for one in inside):
            return "GELU by tanh"
    return said(value)


def _through(value: ir.Value) -> ir.Value:
    """What scalars were multiplied with or added to."""
    for _ in range(4):
        node = value.producer()
        split = split_scalar(node) if node and is_op(value, "Add", "Mul") else None
        if split is None:
            break
        value = split[0]
    return value


def _self_gated(value: ir.Value, factor: float) -> Iterator[Activated]:
    """Read z times a function of z, times `factor`."""
    node = value.producer()
    assert node is not None
    if is_op(value, "Div") and not is_constant(node.inputs[1]):
        read = one_plus_exp(input_of(node, 1), [node])
        if read is not None and _same(read[0], input_of(node, 0)):
            yield Activated("silu", input_of(node, 0), tuple(read[1]))
    for all_scale, z, other, nodes in _products(value):
        scale = all_scale / factor
        read = find_sigmoid(other) if close(scale, 1.0) else None
        name: Activation = "silu"
        if read is None or not _same(read[0], z):
            read, name = find_hard_sigmoid(other, scale), "hard_swish"
        if read is None or not _same(read[0], z):
            read, name = affine_of(other, (0.5 / scale,) * 2, "Erf", math.sqrt(0.5)), "gelu"
        if read is not None and _same(read[0], z):
            yield Activated(name, z, (*nodes, *read[1]), factor)


def _products(value: ir.Value) -> Iterator[tuple[float, ir.Value, ir.Value, list[ir.Node]]]:
    """All ways to see `value` as a scalar times two computed values, and the nodes of each."""
    scale, value, nodes = _scaled(value)
    node = value.producer()
    if node is None or not is_op(value, "Mul") or any(map(is_constant, node.inputs)):
        return
    nodes.append(node)
    for index in (0, 1):
        z, other = input_of(node, index), input_of(node, 1 - index)
        yield scale, z, other, nodes
        by, bare, stripped = _scaled(z)
        if stripped and by:
            yield scale * by, bare, other, [*nodes, *stripped]


def _scaled(value: ir.Value) -> tuple[float, ir.Value, list[ir.Node]]:
    """The scalar, the value and the nodes where `value` is a scalar times a value."""
    scale = 1.0
    nodes: list[ir.Node] = []
    for _ in range(2):
        node = value.producer()
        split = split_scalar(node) if node is not None and is_op(value, "Mul", "Div") else None
        if node is None or split is None or not split[1]:
            break
        if node.op_type == "Div" and split[2]:
            break
        scale *= split[1] if node.op_type == "Mul" else 1 / split[1]
        value = split[0]
        nodes.append(node)
    return scale, value, nodes


def _same(one: ir.Value, other: ir.Value) -> bool:
    return behind_copies(one) is behind_copies(other)
