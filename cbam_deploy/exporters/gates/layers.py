"""Read the layers of a gate: linear ones, convolutions, and what is linear behind them.

Gemm     MatMul     1x1 Conv     Conv of one channel along the channels     k x k Conv
then BatchNormalization, Add, Sub, Mul, Div by constants, in any number, folded into the weights
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from cbam_deploy.exporters.gates.matching import (
    MOST_STEPS,
    Matched,
    Weights,
    find_constant,
    input_of,
    is_constant,
    is_op,
    weights,
)
from cbam_deploy.gates.description import KERNEL_SIZES

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Layer:
    """A linear layer or convolution with all that is linear behind it.

    Attributes:
        source: what it takes.
        w: weights, [out, in] of a linear layer, as in PyTorch of a convolution.
        b: bias [out].
        node: the layer itself.
    """

    source: ir.Value
    w: Weights
    b: Weights
    node: ir.Node

    @property
    def is_linear(self) -> bool:
        """Whether it is W·v + b at each position."""
        return self.w.ndim == 2


def is_layer(value: ir.Value) -> bool:
    """Whether a layer makes `value`."""
    return is_op(value, "Gemm", "MatMul", "Conv")


def read_layer(value: ir.Value, matched: Matched) -> Layer | None:
    """The layer that makes `value`, with what is folded into it; None where none does."""
    affine = _affine_behind(value, matched)
    if affine is None or not is_layer(affine[0]):
        return None
    value, scale, shift = affine
    node = value.producer()
    assert node is not None
    matched.note(node)
    w = np.ascontiguousarray(
        {"Gemm": _gemm, "MatMul": _matmul, "Conv": _conv}[node.op_type](node, matched)
    )
    b = np.zeros(len(w), np.float32)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        b = _vector(weights(bias), len(w), matched)
    if np.any(scale != 1):
        factor = _vector(scale, len(w), matched)
        w = (w * factor.reshape(-1, *[1] * (w.ndim - 1))).astype(np.float32)
        b = b * factor
    if np.any(shift != 0):
        b = b + _vector(shift, len(w), matched)
    return Layer(input_of(node, 0), w, b.astype(np.float32), node)


def _affine_behind(value: ir.Value, matched: Matched) -> tuple[ir.Value, Vector, Vector] | None:
    """The value z, a and b where `value` is a * z + b by constants, of each channel or of all."""
    a, b = np.ones(1), np.zeros(1)
    for _ in range(MOST_STEPS):
        value = matched.behind_views(value)
        node = value.producer()
        if node is None:
            return None
        if is_op(value, "BatchNormalization"):
            scale, shift, mean, variance = (
                weights(input_of(node, index)).astype(np.float64) for index in (1, 2, 3, 4)
            )
            factor = scale / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
            step = input_of(node, 0), factor, shift - mean * factor
        elif is_op(value, "Add", "Sub", "Mul", "Div"):
            found = _step(node)
            if found is None:
                return None
            step = found
        else:
            return value, a, b
        matched.note(node)
        value, factor, shift = step
        try:
            a, b = a * factor, b + a * shift
        except ValueError as error:
            raise matched.refused("it is scaled by constants of different lengths") from error
    return None


def _step(node: ir.Node) -> tuple[ir.Value, Vector, Vector] | None:
    """The value z, a and b where a node of two makes a * z + b."""
    known = [is_constant(value) for value in node.inputs]
    if len(known) != 2 or known[0] == known[1]:
        return None
    first = known[0]
    array = find_constant(node.inputs[0 if first else 1])
    assert array is not None
    constant = array.astype(np.float64).reshape(-1)
    z = input_of(node, 1 if first else 0)
    one, zero = np.ones(1), np.zeros(1)
    if node.op_type == "Add":
        return z, one, constant
    if node.op_type == "Mul":
        return z, constant, zero
    if node.op_type == "Sub":
        return (z, -one, constant) if first else (z, one, -constant)
    return None if first or not constant.all() else (z, 1 / constant, zero)


def _vector(array: NDArray[np.floating], size: int, matched: Matched) -> NDArray[np.floating]:
    array = array.reshape(-1)
    if array.size not in (1, size):
        raise matched.refused(
            f"a bias or scale has {array.size} elements behind a layer of {size} outputs"
        )
    return np.broadcast_to(array, (size,))


def _gemm(node: ir.Node, matched: Matched) -> Weights:
    attributes = node.attributes
    alpha, beta = (attributes.get_float(name, 1.0) for name in ("alpha", "beta"))
    if (alpha, beta) != (1.0, 1.0) or attributes.get_int("transA", False):
        raise matched.refused("a Gemm scales or transposes its input")
    w = weights(input_of(node, 1))
    return w if attributes.get_int("transB", False) else w.T


def _matmul(node: ir.Node, matched: Matched) -> Weights:
    w = weights(input_of(node, 1))
    if w.ndim != 2:
        raise matched.refused(f"a MatMul has weights of {w.ndim} axes, not 2")
    return w.T


def _conv(node: ir.Node, matched: Matched) -> Weights:
    """[out, in] of a 1x1 convolution, [1, 1, k] of one along the channels, else as it is."""
    w = weights(input_of(node, 1))
    groups = node.attributes.get_int("group", 1)
    if groups != 1:
        raise matched.refused(f"a convolution has {groups} groups")
    if w.size == w.shape[0] * w.shape[1] and len(w) * w.shape[1] > 1:
        if any(node.attributes.get_ints("pads", [0])):
            raise matched.refused("a 1x1 convolution pads")
        return w.reshape(w.shape[:2])
    return w


def dense_kernel(layer: Layer, matched: Matched) -> Weights:
    """Weights of a k x k convolution that keeps the map's size, with zeros for its dilation.

    Raises:
        Refused: it does not keep the size, or its kernel is no odd square of those there are.
    """
    w, attributes = layer.w, layer.node.attributes
    rank = w.ndim - 2
    steps = attributes.get_ints("dilations", [1] * rank)
    sizes = [step * (k - 1) + 1 for step, k in zip(steps, w.shape[2:], strict=True)]
    shape = "x".join(map(str, w.shape[2:]))
    what = f"a {shape} convolution" + ("" if max(steps) == 1 else f" of dilation {max(steps)}")
    if len(set(sizes) - {1}) > 1 or (len(set(sizes)) > 1 and w.shape[:2] != (1, 1)):
        raise matched.refused(f"{what} is not square")
    if max(sizes) not in KERNEL_SIZES:
        raise matched.refused(
            f"{what} covers {max(sizes)} elements; fused are odd sizes up to {KERNEL_SIZES[-1]}"
        )
    if any(step != 1 for step in attributes.get_ints("strides", [1])):
        raise matched.refused(f"{what} has a stride")
    pads = list(attributes.get_ints("pads", [0] * 2 * rank))
    same = attributes.get_string("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER")
    halves = [size // 2 for size in sizes]
    if not same and pads != halves * 2:
        raise matched.refused(f"{what} is not padded by {max(halves)} all around")
    dense = np.zeros((*w.shape[:2], *sizes), np.float32)
    dense[(slice(None), slice(None), *(slice(None, None, step) for step in steps))] = w
    return dense
