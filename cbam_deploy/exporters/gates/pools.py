"""Read the pooling of a map [N, C, H, W] over its positions or over its channels.

    over positions   ReduceMean, ReduceMax (2, 3)    GlobalAveragePool, GlobalMaxPool
                     AveragePool, MaxPool whose kernel is the whole map
    over channels    ReduceMean, ReduceMax (1)
    either           a maximum by TopK of one, or by ArgMax and GatherElements
                     one axis after the other, or over one axis of the map reshaped

Behind a Reshape the axes have other numbers, and after one reduction too. There the operators tell
what is read, and `gate_check` whether it is over the right elements.
"""

from __future__ import annotations

import math
from typing import Literal

import onnx_ir as ir

from cbam_deploy.exporters.gates.matching import Refused, Trail, constant, input_of, is_op, named

Pool = Literal["mean", "maximum"]

CHANNEL_AXES, POSITION_AXES = (1,), (2, 3)
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


def read_pool(value: ir.Value, x: ir.Value, axes: tuple[int, ...], trail: Trail) -> Pool:
    """Read a mean or maximum of the map `x` over `axes`; return which."""
    last = trail.behind_views(value, x)
    source, node = _one_step(last, trail)
    pool = POOLS[node.op_type]
    if source is x:
        _check_axes(node, last, axes, trail)
        return pool
    # Several steps, or a view of the map.
    while (source := trail.behind_views(source, x)) is not x:
        step = source.producer()
        if step is None or POOLS.get(step.op_type) != pool:
            raise Refused(f"{last.name} pools {input_of(node, 0).name}, but {x.name} is scaled")
        source, node = _one_step(source, trail)
    return pool


def _one_step(value: ir.Value, trail: Trail) -> tuple[ir.Value, ir.Node]:
    """What `value` is pooled from, and the node that does it."""
    node = value.producer()
    if node is None or not is_pool(value):
        made = "an input or a constant, not" if node is None else f"made by {named(node)}, not by"
        raise Refused(f"{value.name} is {made} a mean or a maximum")
    trail.note(node)
    source = input_of(node, 0)
    if value is not node.outputs[0]:
        raise Refused(f"{value.name} is where a maximum is, not the maximum")
    if node.op_type == "GatherElements":
        index = trail.maker(trail.behind_views(input_of(node, 1)), "ArgMax")
        if trail.behind_views(input_of(index, 0), source) is not source:
            raise Refused(f"{value.name} gathers by the maxima of another value")
    if node.op_type == "TopK" and (
        int(constant(input_of(node, 1)).reshape(())) != 1 or not _flag(node, "largest")
    ):
        raise Refused(f"{value.name} is not the one largest value")
    return source, node


def _check_axes(node: ir.Node, value: ir.Value, axes: tuple[int, ...], trail: Trail) -> None:
    """Refuse a node that pools a map, as it is, over other axes."""
    if node.op_type in ("AveragePool", "MaxPool"):
        _check_kernel(node, value, trail)
    found = _axes(node)
    if found != axes:
        raise Refused(f"{value.name} pools over axes {list(found)}, not {list(axes)}")


def _check_kernel(node: ir.Node, value: ir.Value, trail: Trail) -> None:
    """Refuse windows other than the whole map."""
    kernel = node.attributes.get_ints("kernel_shape", [])
    dims = trail.shapes.dims(input_of(node, 0))
    size = dims[2:] if dims is not None else ("?", "?")
    padded = any(node.attributes.get_ints("pads", [0]))
    if tuple(kernel) != size or padded or not math.prod(kernel):
        windows, whole = ("x".join(map(str, sizes)) for sizes in (kernel, size))
        raise Refused(f"{value.name} pools windows of {windows} from a map of {whole}")


def _axes(node: ir.Node) -> tuple[int, ...]:
    """Axes of a map that a node reduces, counted from the front."""
    if node.op_type in ("GlobalAveragePool", "GlobalMaxPool", "AveragePool", "MaxPool"):
        return POSITION_AXES
    attributes = node.attributes
    axes = [0, 1, 2, 3]
    if node.op_type in ("TopK", "GatherElements"):
        axes = [attributes.get_int("axis", -1 if node.op_type == "TopK" else 0)]
    elif "axes" in attributes:
        axes = list(attributes["axes"].as_ints())
    elif len(node.inputs) > 1:
        axes = [int(axis) for axis in constant(input_of(node, 1)).reshape(-1)]
    return tuple(sorted(axis % 4 for axis in axes))


def _flag(node: ir.Node, name: str) -> bool:
    return bool(node.attributes.get_int(name, 1))


def is_pool(value: ir.Value) -> bool:
    """Whether a node that can pool makes `value`."""
    return is_op(value, *POOLS)
