"""Read the MLP of a channel attention: W1·ReLU(W0·v + b0) + b1 of a pooled vector v.

A layer is a Gemm, a MatMul or a 1x1 Conv, with its bias inside, in an Add behind it, or without.
The shared MLP is read from both branches, whose weights may be equal copies. As W1 is linear, it
may also come after the sum of the branches; b1 then counts once, and each branch gets half of it:

    mean ── W0 ── Relu ── W1 ─┐                mean ── W0 ── Relu ─┐
    max ─── W0 ── Relu ── W1 ─┴ Add ──         max ─── W0 ── Relu ─┴ Add ── W1 ──
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from cbam_deploy.exporters.gates.matching import (
    Refused,
    Trail,
    Weights,
    input_of,
    is_constant,
    is_op,
    weights,
)
from cbam_deploy.exporters.gates.pools import POSITION_AXES, Pool, read_pool

Mlp = tuple[Weights, Weights, Weights, Weights]


def read_mlp(logits: ir.Value, x: ir.Value, trail: Trail) -> tuple[Mlp, set[Pool]]:
    """Read MLP(pool(x)), or the sum of two.

    Args:
        logits: what the sigmoid is taken of.
        x: the map [N, C, H, W].
        trail: gets the nodes.

    Returns:
        The weights W0 [h, C], B0 [h], W1 [C, h], B1 [C] of the one MLP, and which pools it sees.
    """
    branches = _branches(logits, trail)
    if len(branches) == 1:
        hidden, w1, b1 = _linear(branches[0], trail)
        ends = _branches(hidden, trail)
        layers = [_hidden_layer(end, x, trail) for end in ends]
        mlps: list[Mlp] = [(w0, b0, w1, b1 / np.float32(len(ends))) for w0, b0, _ in layers]
        pools = [pool for _, _, pool in layers]
    else:
        mlps, pools = [], []
        for branch in branches:
            hidden, w1, b1 = _linear(branch, trail)
            w0, b0, pool = _hidden_layer(hidden, x, trail)
            mlps.append((w0, b0, w1, b1))
            pools.append(pool)
    if len(set(pools)) < len(pools):
        raise Refused(f"both branches of {logits.name} pool the {pools[0]}")
    if not all(np.array_equal(*pair) for pair in zip(mlps[0], mlps[-1], strict=True)):
        raise Refused(f"the two branches of {logits.name} have different MLPs")
    w0, _, w1, _ = mlps[0]
    if w1.shape != w0.shape[::-1]:
        shapes = f"{list(w0.shape)} and {list(w1.shape)}"
        raise Refused(f"the MLP of {logits.name} has layers of {shapes}, not [h, C] and [C, h]")
    return mlps[0], set(pools)


def _branches(value: ir.Value, trail: Trail) -> list[ir.Value]:
    """The terms of a sum of two computed values; any other value alone."""
    terms = _terms(value, trail)
    if len(terms) > 2:
        raise Refused(
            f"{value.name} is a sum of {len(terms)} branches; a gate has two at most, "
            "of the mean and of the maximum"
        )
    return terms


def _terms(value: ir.Value, trail: Trail) -> list[ir.Value]:
    inside = trail.behind_views(value)
    add = inside.producer()
    if add is None or not is_op(inside, "Add"):
        return [inside]
    if any(map(is_constant, add.inputs)):
        return [inside]  # A bias.
    trail.note(add)
    return [term for index in (0, 1) for term in _terms(input_of(add, index), trail)]


def _hidden_layer(value: ir.Value, x: ir.Value, trail: Trail) -> tuple[Weights, Weights, Pool]:
    """Read ReLU(W0·pool(x) + b0); return W0, b0 and the pool."""
    relu = trail.maker(trail.behind_views(value), "Relu")
    pooled, w0, b0 = _linear(input_of(relu, 0), trail)
    return w0, b0, read_pool(pooled, x, POSITION_AXES, trail)


def _linear(value: ir.Value, trail: Trail) -> tuple[ir.Value, Weights, Weights]:
    """Read W·input + b; return the input, W [out, in] and b [out]."""
    value = trail.behind_views(value)
    added = None
    if is_op(value, "Add"):
        add = trail.maker(value, "Add")
        terms = [input_of(add, index) for index in (0, 1)]
        first, second = map(is_constant, terms)
        if not first and not second:
            names = " and ".join(str(term.name) for term in terms)
            raise Refused(f"{value.name} is the sum of {names}, and neither is a constant bias")
        added = input_of(add, 0 if first else 1)
        value = trail.behind_views(input_of(add, 1 if first else 0))
    node = trail.maker(value, "Gemm", "MatMul", "Conv")
    read = {"Gemm": _gemm, "MatMul": _matmul, "Conv": _pointwise_conv}[node.op_type]
    w = np.ascontiguousarray(read(node, value))
    b = np.zeros(len(w), np.float32)
    for bias in (node.inputs[2] if len(node.inputs) > 2 else None, added):
        if bias is not None:
            b = b + _bias(bias, len(w))
    return input_of(node, 0), w, b


def _gemm(node: ir.Node, value: ir.Value) -> Weights:
    attributes = node.attributes
    if (
        attributes.get_float("alpha", 1.0) != 1.0
        or attributes.get_float("beta", 1.0) != 1.0
        or attributes.get_int("transA", False)
    ):
        raise Refused(f"{value.name} is a Gemm that scales or transposes its input")
    w = weights(input_of(node, 1))
    return w if attributes.get_int("transB", False) else w.T


def _matmul(node: ir.Node, value: ir.Value) -> Weights:
    w = weights(input_of(node, 1))
    if w.ndim != 2:
        raise Refused(f"{value.name} multiplies by {w.ndim} axes of weights, not 2")
    return w.T


def _pointwise_conv(node: ir.Node, value: ir.Value) -> Weights:
    w = weights(input_of(node, 1))
    attributes = node.attributes
    groups = attributes.get_int("group", 1)
    if w.size != w.shape[0] * w.shape[1]:
        raise Refused(f"{value.name} is a convolution of shape {list(w.shape)}, not a 1x1 one")
    if groups != 1:
        raise Refused(f"{value.name} is a convolution in {groups} groups")
    if any(attributes.get_ints("pads", [0])):
        raise Refused(f"{value.name} is a convolution that pads")
    return w.reshape(w.shape[:2])


def _bias(value: ir.Value, size: int) -> Weights:
    b = weights(value).reshape(-1)
    if b.size not in (1, size):
        raise Refused(f"{value.name} is no vector of {size} biases")
    return np.broadcast_to(b, (size,))
