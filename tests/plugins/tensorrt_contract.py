"""Drive the gates' plugins through TensorRT's own Python bindings, as the builder would.

A program, run in a process of its own because the bindings load stand-ins for TensorRT's libraries
(`stand_ins`). It reads cases as JSON from its input and prints what the plugins answered. Genuine
are ``tensorrt.plugin`` with its decorators and the classes between it and the builder, and the
registry's interface; the builder's own part, symbolic dimensions included, is played here.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import tensorrt_bindings as trt

sys.modules["tensorrt"] = trt

import tensorrt.plugin as trtp  # noqa: E402
import tensorrt.plugin._tensor as tensors  # noqa: E402

from cbam_deploy.gates.operators import DOMAIN  # noqa: E402
from cbam_deploy.plugins import tensorrt_plugin  # noqa: E402
from cbam_deploy.plugins.plugin_nodes import NODES, embedding_limits  # noqa: E402

BATCHES = (1, 5, 64)  # to evaluate what depends on the batch


class Dimension(trt.IDimensionExpr):
    """A dimension as a function of the batch."""

    @classmethod
    def of(cls, value: Any) -> Dimension:
        dimension = cls.__new__(cls)  # the bindings make such objects in C++ only
        dimension.at = value if callable(value) else lambda _: value
        dimension.constant = not callable(value)
        return dimension

    def is_constant(self) -> bool:
        return self.constant

    def get_constant_value(self) -> int:
        assert self.constant
        return self.at(None)


class Expressions:
    """The builder of expressions that TensorRT passes along."""

    def constant(self, value: int) -> Dimension:
        return Dimension.of(value)

    def operation(self, op: Any, first: Dimension, second: Dimension) -> Dimension:
        apply = {"PROD": lambda a, b: a * b, "SUM": lambda a, b: a + b}[op.name]
        if first.constant and second.constant:
            return Dimension.of(apply(first.at(None), second.at(None)))
        return Dimension.of(lambda batch: apply(first.at(batch), second.at(batch)))


class Recorded(tensors.SymExprImpl):
    """An expression handed to C++, which cannot be read back from there."""

    def __init__(self, expression: Any) -> None:
        super().__init__(expression)
        self.dimension, self.is_int32 = expression._expr, isinstance(expression, trtp.SymInt32)


class Received:
    """What TensorRT receives: launch parameters as attributes, integers by index."""

    grid_x: Recorded
    block_x: Recorded
    shared_mem: Recorded
    nbSymExprs: int  # noqa: N815

    def __init__(self) -> None:
        self.integers: dict[int, Recorded] = {}

    def __setitem__(self, index: int, expression: Recorded) -> None:
        self.integers[index] = expression


def described(dims: list[int], dtype: str, format_: str, profile: list[int]) -> Any:
    """A tensor of the network; -1 stands for the batch, whose least, most frequent and largest
    value are `profile`."""
    desc, ends = trt.DynamicPluginTensorDesc(), trt.PluginTensorDesc()
    ends.dims, ends.type = trt.Dims(dims), getattr(trt.DataType, dtype)
    ends.format = getattr(trt.TensorFormat, format_)
    desc.desc = ends
    desc.min, desc.opt, desc.max = (
        trt.Dims([batch if size == -1 else size for size in dims]) for batch in profile
    )
    return desc


def drive(case: dict[str, Any]) -> dict[str, Any]:
    limits = embedding_limits(tuple(case["capability"]))
    operator, profile = case["operator"], case["profile"]
    node = NODES[operator]
    tensorrt_plugin.register(limits, [node.operator])
    # Another GPU's turn changes nothing.
    tensorrt_plugin.register(embedding_limits((12, 0)), [node.operator])
    fields = [
        trt.PluginField(
            name,
            np.array([value], np.float32 if isinstance(value, float) else np.int32),
            trt.PluginFieldType.FLOAT32 if isinstance(value, float) else trt.PluginFieldType.INT32,
        )
        for name, value in (case["attributes"] | {"capability": limits.capability}).items()
    ]
    creator = trt.get_plugin_registry().get_creator(operator, "1", DOMAIN)
    plugin = creator.create_plugin(
        *(operator, DOMAIN, trt.PluginFieldCollection(fields)),
        *(trt.TensorRTPhase.BUILD, trt.QuickPluginCreationRequest.STRICT_AOT),
    )
    assert plugin.get_num_outputs() == len(node.outputs)
    dims = case["inputs"]
    types = [case["dtype"] if name in node.maps else "FLOAT" for name in node.inputs]
    types += [
        dtype.name
        for dtype in plugin.get_output_data_types(
            [getattr(trt.DataType, dtype) for dtype in types], [len(sizes) for sizes in dims]
        )
    ]
    symbolic = [
        [Dimension.of((lambda batch: batch) if size == -1 else size) for size in sizes]
        for sizes in dims
    ]
    plugin.get_output_shapes(symbolic, [], Expressions())
    shapes = [
        [[size._expr.at(batch) for size in desc.shape_expr] for batch in BATCHES]
        for desc in plugin.output_descs
    ]
    outputs = [
        [-1 if few != many else few for few, many in zip(sizes[0], sizes[-1], strict=True)]
        for sizes in shapes
    ]
    both = [*dims, *outputs]

    def network(formats: list[str], types: list[str] = types) -> list[Any]:
        return [described(*one, profile) for one in zip(both, types, formats, strict=True)]

    flat = plugin.get_supported_format_combinations(network(["LINEAR"] * len(both)), len(dims))
    offered = [flat[start : start + len(both)] for start in range(0, len(flat), len(both))]
    launches = []
    for combination in offered:
        offered_types = [desc.type.name for desc in combination]
        if offered_types != types:
            continue  # in a strongly typed network
        in_out = network([desc.format.name for desc in combination])
        copy = plugin.clone()
        copy.configure_plugin(in_out[: len(dims)], in_out[len(dims) :])
        tactics = sorted(copy.get_valid_tactics())
        for tactic in tactics[: case["tactics"]]:
            copy.set_tactic(tactic)
            launches.append(
                {
                    "format": combination[0].format.name,
                    "tactic": tactic,
                    "tactics": tactics,
                    **launched(copy, symbolic, in_out, len(dims)),
                }
            )
    return {
        "operator": operator,
        "shapes": shapes,
        "types": types[len(dims) :],
        "offered": sorted(
            {(desc[0].type.name, desc[0].format.name, desc[-1].format.name) for desc in offered}
        ),
        "launches": launches,
    }


def launched(plugin: Any, symbolic: list[Any], in_out: list[Any], count: int) -> dict[str, Any]:
    parameters, integers = Received(), Received()
    plugin.get_launch_params(symbolic, in_out, count, parameters, integers, Expressions())
    descs = [desc.desc for desc in in_out]
    name, ptx = plugin.get_kernel(descs[:count], descs[count:])
    given = [integers.integers[index] for index in range(integers.nbSymExprs)]
    return {
        "grid": [parameters.grid_x.dimension.at(batch) for batch in BATCHES],
        "other": [
            getattr(parameters, name).dimension.at(None)
            for name in ("grid_y", "grid_z", "block_y", "block_z")
        ],
        "threads": parameters.block_x.dimension.at(None),
        "shared_bytes": parameters.shared_mem.dimension.at(None),
        "integers": [one.dimension.at(None) for one in given],
        "all_int32": all(one.is_int32 for one in given),
        "name": name.decode(),
        "ptx": ptx.decode(),
    }


def main() -> None:
    tensors.SymExprImpl = Recorded
    cases = json.load(sys.stdin)
    answers = [drive(case) for case in cases]
    registered = [
        creator.name
        for creator in trt.get_plugin_registry().all_creators
        if creator.plugin_namespace == DOMAIN
    ]
    print(json.dumps({"version": trt.__version__, "registered": registered, "answers": answers}))


if __name__ == "__main__":
    main()
