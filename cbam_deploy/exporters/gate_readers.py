"""Read the parts of an attention gate backwards from its Mul: attention, MLP, pooling, convolution.

Each reader takes the value that a part makes and returns what the part is made of. What does not
belong to a gate is refused with a sentence that names the value at fault. To understand another
spelling of a part, widen its reader here; `gate_search` and all else stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Weights = NDArray[np.float32]

CHANNEL_AXES, POSITION_AXES = (1,), (2, 3)
_POOLS = {"ReduceMean": "mean", "ReduceMax": "maximum"}
_ACTIVATIONS = ("Sigmoid", "HardSigmoid", "Softmax", "Tanh", "Relu")
_VIEWS = ("Unsqueeze", "Reshape", "Expand")
# Longer detours from a map to its attention than those of any gate are other things.
_MOST_NODES = 24


class Refused(Exception):
    """What was read is no gate; the message is a sentence that says why."""


@dataclass(frozen=True)
class Scaling:
    """A Mul of a map by an attention computed from it.

    Attributes:
        node: the Mul.
        x: the map [N, C, H, W].
        attention: what it is multiplied by, [N, C, 1, 1] or [N, 1, H, W].
        kind: what the attention tells apart.
    """

    node: ir.Node
    x: ir.Value
    attention: ir.Value
    kind: Literal["channel", "spatial"]


@dataclass
class Trail:
    """The nodes met while reading one gate."""

    nodes: list[ir.Node] = field(default_factory=list)

    def maker(self, value: ir.Value, *ops: str) -> ir.Node:
        """The node that makes `value`, which must be one of `ops`."""
        node = value.producer()
        if node is None or node.domain or node.op_type not in ops:
            made = "is an input or a constant" if node is None else f"is made by {node.op_type}"
            raise Refused(f"{value.name} {made}, not by {' or '.join(ops)}")
        self.nodes.append(node)
        return node


def find_scaling(node: ir.Node) -> Scaling | None:
    """`node` as a scaling, None if it is anything else."""
    if node.op_type != "Mul" or node.domain or len(node.inputs) != 2:
        return None
    for x, attention in (node.inputs, node.inputs[::-1]):
        kind = _kind(x, attention)
        if x is not None and attention is not None and kind and _is_attention(attention, x):
            return Scaling(node, x, attention, kind)
    return None


def channel_attention(scaling: Scaling, trail: Trail) -> tuple[tuple[Weights, ...], set[str]]:
    """Read sigmoid(MLP(pool(x)) [+ MLP(pool(x))]).

    Returns:
        The weights W0 [h, C], B0 [h], W1 [C, h], B1 [C] of the one MLP, and which pools it sees.
    """
    trail.nodes.append(scaling.node)
    logits = _logits(scaling, trail)
    maker = logits.producer()
    branches: Sequence[ir.Value | None] = [logits]
    if maker is not None and maker.op_type == "Add":
        branches = trail.maker(logits, "Add").inputs
    read = [_mlp_of_pool(_some(branch, "an operand"), scaling.x, trail) for branch in branches]
    pools = [pool for _, pool in read]
    if len(set(pools)) < len(pools):
        raise Refused(f"both branches of {logits.name} pool the {pools[0]}")
    mlp = read[0][0]
    if not all(np.array_equal(ours, theirs) for ours, theirs in zip(mlp, read[-1][0], strict=True)):
        raise Refused(f"the two branches of {logits.name} have different MLPs")
    return mlp, set(pools)


def spatial_attention(scaling: Scaling, trail: Trail) -> tuple[Weights, Weights]:
    """Read sigmoid([BatchNormalization](Conv(Concat(max, mean)))).

    Returns:
        WS [1, 2, k, k], channel 0 for the maximum, and BS [1], BatchNormalization folded in.
    """
    trail.nodes.append(scaling.node)
    value = _logits(scaling, trail)
    maker = value.producer()
    normalization = None
    if maker is not None and maker.op_type == "BatchNormalization":
        normalization = trail.maker(value, "BatchNormalization")
        value = _input(normalization, 0)
    convolution = trail.maker(value, "Conv")
    ws, bs = _spatial_weights(convolution)
    concat = trail.maker(_input(convolution, 0), "Concat")
    pools = [_pool(_some(part, "a part"), scaling.x, CHANNEL_AXES, trail) for part in concat.inputs]
    if concat.attributes.get_int("axis") != 1 or sorted(pools) != ["maximum", "mean"]:
        raise Refused(f"{concat.outputs[0].name} is not the maximum and the mean over channels")
    if pools[0] == "mean":
        ws = np.ascontiguousarray(ws[:, ::-1])
    if normalization is not None:
        ws, bs = _fold(normalization, ws, bs)
    return ws, bs


def _kind(x: ir.Value | None, attention: ir.Value | None) -> Literal["channel", "spatial"] | None:
    """Which way `attention` is broadcast over `x`, judged by their shapes."""
    if x is None or attention is None or x.shape is None or attention.shape is None:
        return None
    if len(x.shape) != 4 or len(attention.shape) != 4:
        return None
    if attention.shape[1] == x.shape[1] and attention.shape[2] == attention.shape[3] == 1:
        return "channel"
    if attention.shape[1] == 1 and attention.shape[2:] == x.shape[2:]:
        return "spatial"
    return None


def _is_attention(attention: ir.Value, x: ir.Value) -> bool:
    """Whether an activation behind `attention` is computed from `x`, or from what `x` scales."""
    activation = _behind_views(attention).producer()
    if activation is None or activation.op_type not in _ACTIVATIONS:
        return False
    scaled = x.producer()
    sources = {x} if scaled is None or scaled.op_type != "Mul" else {x, *scaled.inputs}
    seen: set[ir.Value] = set()
    ahead = [value for value in activation.inputs if value is not None]
    while ahead and len(seen) < _MOST_NODES:
        value = ahead.pop(0)
        if value in sources:
            return True
        maker = value.producer()
        if maker is not None and value not in seen:
            seen.add(value)
            ahead.extend(source for source in maker.inputs if source is not None)
    return False


def _behind_views(value: ir.Value) -> ir.Value:
    maker = value.producer()
    while maker is not None and maker.op_type in _VIEWS:
        value = _input(maker, 0)
        maker = value.producer()
    return value


def _logits(scaling: Scaling, trail: Trail) -> ir.Value:
    """What the sigmoid of an attention is taken of."""
    value = scaling.attention
    while (maker := value.producer()) is not None and maker.op_type in _VIEWS:
        value = _input(trail.maker(value, *_VIEWS), 0)
    return _input(trail.maker(value, "Sigmoid"), 0)


def _mlp_of_pool(
    value: ir.Value, x: ir.Value, trail: Trail
) -> tuple[tuple[Weights, Weights, Weights, Weights], str]:
    """Read W1·ReLU(W0·pool(x) + b0) + b1; return the weights and the pool."""
    hidden, w1, b1 = _linear(value, trail)
    squeezed = _input(trail.maker(hidden, "Relu"), 0)
    pooled, w0, b0 = _linear(squeezed, trail)
    return (w0, b0, w1, b1), _pool(pooled, x, POSITION_AXES, trail)


def _linear(value: ir.Value, trail: Trail) -> tuple[ir.Value, Weights, Weights]:
    """Read input·Wᵀ + b; return the input, W [out, in] and b [out]."""
    gemm = trail.maker(value, "Gemm")
    attributes = gemm.attributes
    if (
        attributes.get_float("alpha", 1.0) != 1.0
        or attributes.get_float("beta", 1.0) != 1.0
        or attributes.get_int("transA", False)
    ):
        raise Refused(f"{value.name} is a Gemm that scales or transposes its input")
    w = _constant(_input(gemm, 1))
    w = w if attributes.get_int("transB", False) else np.ascontiguousarray(w.T)
    if len(gemm.inputs) < 3:
        return _input(gemm, 0), w, np.zeros(len(w), np.float32)
    b = _constant(_input(gemm, 2))
    if b.shape != (len(w),):
        raise Refused(f"{_input(gemm, 2).name} is no vector of {len(w)} biases")
    return _input(gemm, 0), w, b


def _pool(value: ir.Value, x: ir.Value, axes: tuple[int, ...], trail: Trail) -> str:
    """Read a mean or maximum of `x` over `axes`; return which."""
    node = trail.maker(value, *_POOLS)
    if _input(node, 0) is not x:
        raise Refused(f"{value.name} pools {_input(node, 0).name}, but {x.name} is scaled")
    found = _axes(node)
    if found != axes:
        raise Refused(f"{value.name} pools over axes {list(found)}, not {list(axes)}")
    return _POOLS[node.op_type]


def _axes(node: ir.Node) -> tuple[int, ...]:
    """Axes of a reduction of a map, counted from the front; the second input or an attribute."""
    axes = [0, 1, 2, 3]
    if "axes" in node.attributes:
        axes = list(node.attributes["axes"].as_ints())
    elif len(node.inputs) > 1:
        axes = [int(axis) for axis in _constant(_input(node, 1)).reshape(-1)]
    return tuple(sorted(axis % 4 for axis in axes))


def _spatial_weights(node: ir.Node) -> tuple[Weights, Weights]:
    """WS [1, 2, k, k] and BS [1] of a convolution that keeps the map's size."""
    ws = _constant(_input(node, 1))
    name = node.outputs[0].name
    if ws.shape not in ((1, 2, 3, 3), (1, 2, 7, 7)):
        raise Refused(
            f"{name} is a convolution of shape {list(ws.shape)}, not [1, 2, k, k], k 3 or 7"
        )
    attributes = node.attributes
    half = ws.shape[-1] // 2
    same = attributes.get_string("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER")
    if any(step != 1 for step in attributes.get_ints("strides", [1])):
        raise Refused(f"{name} is a convolution with a stride")
    if any(step != 1 for step in attributes.get_ints("dilations", [1])):
        raise Refused(f"{name} is a dilated convolution")
    if not same and list(attributes.get_ints("pads", [0] * 4)) != [half] * 4:
        raise Refused(f"{name} is a convolution that is not padded by {half} all around")
    bias = len(node.inputs) > 2
    return ws, _constant(_input(node, 2)) if bias else np.zeros(1, np.float32)


def _fold(node: ir.Node, ws: Weights, bs: Weights) -> tuple[Weights, Weights]:
    """Weights of a convolution and the BatchNormalization of its one output channel, in one."""
    scale, shift, mean, variance = (
        _constant(_input(node, index)).astype(np.float64) for index in (1, 2, 3, 4)
    )
    factor = scale / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    folded = (bs - mean) * factor + shift
    return (ws * factor).astype(np.float32), folded.astype(np.float32)


def _constant(value: ir.Value) -> NDArray[np.float32]:
    """The array of an initializer or Constant node."""
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None:
        raise Refused(f"{value.name} is not constant")
    return tensor.numpy()


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index] if index < len(node.inputs) else None
    return _some(value, f"input {index} of {node.name}")


def _some(value: ir.Value | None, what: str) -> ir.Value:
    if value is None:
        raise Refused(f"{what} is missing")
    return value
