"""Read the pooling of a map [N, C, H, W] over its positions or over its channels.

    over positions   ReduceMean, ReduceMax (2, 3)    GlobalAveragePool, GlobalMaxPool
                     AveragePool, MaxPool whose kernel is the whole map
    over channels    ReduceMean, ReduceMax (1)
    either           a maximum by TopK of one, or by ArgMax and GatherElements
                     one axis after the other, or over one axis of the map reshaped
    both at once     0.5 * mean + 0.5 * max    (mean + max) / 2    mean + max

Maps [N, H, W, C], as Keras has them, are pooled over (1, 2) and over (3). Behind a Reshape or
Transpose the axes have other numbers, and after one reduction too. There the operators tell what is
read, and `proof` whether it is over the right elements.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from cbam_deploy.exporters.gates.matching import (
    Matched,
    constant,
    input_of,
    is_constant,
    is_op,
    said,
    split_scalar,
)

Pool = Literal["mean", "maximum"]

POOLS: dict[str, Pool] = {
    "ReduceMean": "mean",
    "GlobalAveragePool": "mean",
    "AveragePool": "mean",
    "ReduceMax": "maximum",
    "GlobalMaxPool": "maximum",
    "MaxPool": "maximum",
    "TopK": "maximum",
    "GatherElements": "maximum",
}
_WINDOWS = ("GlobalAveragePool", "GlobalMaxPool", "AveragePool", "MaxPool")


@dataclass(frozen=True)
class Map:
    """A map of the graph.

    Attributes:
        value: [N, C, H, W], or [N, H, W, C].
        channels_last: whether it is the latter.
    """

    value: ir.Value
    channels_last: bool = False

    @property
    def channel_axes(self) -> tuple[int, ...]:
        """The axis of its channels."""
        return (3,) if self.channels_last else (1,)

    @property
    def position_axes(self) -> tuple[int, ...]:
        """The axes of its positions."""
        return (1, 2) if self.channels_last else (2, 3)


def read_pools(
    value: ir.Value, x: Map, axes: tuple[int, ...], matched: Matched
) -> tuple[frozenset[Pool], float]:
    """Read a scalar times a mean or a maximum, or times the mean of both.

    Returns:
        Which of them, and the scalar.
    """
    shares = pool_shares(value, x, axes, matched)
    if len(set(shares.values())) > 1:
        terms = " + ".join(f"{share:.3g}·{pool}" for pool, share in shares.items())
        raise matched.refused(f"it sees {terms}; fused is the mean of both with equal shares")
    return frozenset(shares), sum(shares.values())


def pool_shares(
    value: ir.Value, x: Map, axes: tuple[int, ...], matched: Matched, scale: float = 1.0
) -> dict[Pool, float]:
    """Read a * mean + b * maximum over `axes` of the map `x`; return the scalars."""
    inside = matched.behind_views(value, x.value)
    node = inside.producer()
    if node is not None and is_op(inside, "Mul", "Div"):
        split = split_scalar(node)
        if split is not None and split[1] and not (node.op_type == "Div" and split[2]):
            matched.note(node)
            factor = split[1] if node.op_type == "Mul" else 1 / split[1]
            return pool_shares(split[0], x, axes, matched, scale * factor)
    if node is not None and is_op(inside, "Add") and not any(map(is_constant, node.inputs)):
        matched.note(node)
        one, other = (
            pool_shares(input_of(node, index), x, axes, matched, scale) for index in (0, 1)
        )
        if one.keys() & other.keys():
            raise matched.refused(f"it adds the {next(iter(one.keys() & other.keys()))} twice")
        return one | other
    return {_read_pool(inside, x, axes, matched): scale}


def _read_pool(value: ir.Value, x: Map, axes: tuple[int, ...], matched: Matched) -> Pool:
    """Read a mean or maximum of the map `x` over `axes`; return which."""
    source, node = _one_step(value, matched)
    pool = POOLS[node.op_type]
    if source is x.value:
        _check_axes(node, axes, x, matched)
        return pool
    # Several steps, or a view of the map.
    while (source := matched.behind_views(source, x.value)) is not x.value:
        step = source.producer()
        if step is None or POOLS.get(step.op_type) != pool:
            raise matched.refused(
                f"it is computed from another map ({said(source)}) than the one it multiplies"
            )
        source, node = _one_step(source, matched)
    return pool


def _one_step(value: ir.Value, matched: Matched) -> tuple[ir.Value, ir.Node]:
    """What `value` is pooled from, and the node that does it."""
    node = value.producer()
    if node is None or not is_pool(value):
        raise matched.refused(f"it sees {said(value)}; fused are the mean and the maximum")
    matched.note(node)
    source = input_of(node, 0)
    if value is not node.outputs[0]:
        raise matched.refused("it sees where a maximum is, not the maximum")
    if node.op_type == "GatherElements":
        index = matched.behind_views(input_of(node, 1))
        where = index.producer()
        if where is None or not is_op(index, "ArgMax"):
            raise matched.refused(f"it gathers elements by {said(index)}, not by an argmax")
        matched.note(where)
        if matched.behind_views(input_of(where, 0), source) is not source:
            raise matched.refused("it gathers elements by the maxima of another value")
    if node.op_type == "TopK" and (
        int(constant(input_of(node, 1)).reshape(())) != 1
        or not node.attributes.get_int("largest", 1)
    ):
        raise matched.refused("it sees other elements by topk than the one largest")
    return source, node


def _check_axes(node: ir.Node, axes: tuple[int, ...], x: Map, matched: Matched) -> None:
    """Refuse a node that pools a map, as it is, over other axes."""
    if node.op_type in ("AveragePool", "MaxPool"):
        _check_kernel(node, matched)
    found = pooled_axes(node)
    if found != axes:
        layout = "[N, H, W, C]" if x.channels_last else "[N, C, H, W]"
        raise matched.refused(
            f"a {POOLS[node.op_type]} is over axes {list(found)} of {layout}, not over {list(axes)}"
        )


def _check_kernel(node: ir.Node, matched: Matched) -> None:
    """Refuse windows other than the whole map."""
    kernel = node.attributes.get_ints("kernel_shape", [])
    dims = matched.shapes.dims(input_of(node, 0))
    size = dims[2:] if dims is not None else ("?", "?")
    padded = any(node.attributes.get_ints("pads", [0]))
    if tuple(kernel) != size or padded or not math.prod(kernel):
        windows, whole = ("x".join(map(str, sizes)) for sizes in (kernel, size))
        raise matched.refused(f"it pools windows of {windows} from a map of {whole}")


def pooled_axes(node: ir.Node) -> tuple[int, ...]:
    """Axes of a map that a node reduces, counted from the front."""
    if node.op_type in _WINDOWS:
        return (2, 3)
    attributes = node.attributes
    axes = [0, 1, 2, 3]
    if node.op_type in ("TopK", "GatherElements"):
        axes = [attributes.get_int("axis", -1 if node.op_type == "TopK" else 0)]
    elif "axes" in attributes:
        axes = list(attributes["axes"].as_ints())
    elif len(node.inputs) > 1:
        axes = [int(axis) for axis in constant(input_of(node, 1)).reshape(-1)]
    return tuple(sorted(axis % 4 for axis in axes))


def is_pool(value: ir.Value) -> bool:
    """Whether a node that can pool makes `value`."""
    return is_op(value, *POOLS)
