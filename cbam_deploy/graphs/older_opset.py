"""Write a graph of ONNX's own operators in the words of an older opset.

onnx.version_converter is not used downward: it lacks Relu and Split, among others, and leaves
attributes of the newer opset behind. Here a node stays as it is where the older opset has an
operator of its name that takes the same inputs, and an attribute goes where it says what the older
operator does anyway. Axes that became an input are an attribute again. Everything else is refused;
whether the result computes the same is for the caller to prove.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
from onnx.defs import OpSchema

from cbam_deploy.errors import BadInput
from cbam_deploy.graphs.names import Names

# First opset in which axes are an input, by operator.
AXES_AS_INPUT_SINCE: Mapping[str, int] = {
    "ReduceMax": 18,
    "ReduceMean": 18,
    "ReduceMin": 18,
    "ReduceL1": 18,
    "ReduceL2": 18,
    "ReduceSum": 13,
    "Squeeze": 13,
    "Unsqueeze": 13,
}
# Attributes that repeat what the number of outputs says.
_REPEATED = {("Split", "num_outputs")}


def lower_opset(model: ir.Model, version: int) -> None:
    """Write `model`, which has no functions, in opset `version`, in place.

    Raises:
        BadInput: a node cannot be written in it.
    """
    newer = model.opset_imports[""]
    for node in model.graph.all_nodes():
        if not node.domain:
            _lower(node, newer, version)
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del model.graph.initializers[name]
    model.opset_imports[""] = version


def _lower(node: ir.Node, newer: int, version: int) -> None:
    try:
        older = onnx.defs.get_schema(node.op_type, version, "")
    except onnx.defs.SchemaError:
        raise _refusal(node, version, f"there is no {node.op_type}") from None
    if version < AXES_AS_INPUT_SINCE.get(node.op_type, 0) and len(node.inputs) > 1:
        _take_axes(node, version)
    for place, value in enumerate(node.inputs[: len(older.inputs)]):
        if value is None and older.inputs[place].option == OpSchema.FormalParameterOption.Single:
            _fill_in(node, place, version)
    if len(node.inputs) > older.max_input:
        raise _refusal(node, version, f"{node.op_type} takes {older.max_input} inputs")
    defaults = onnx.defs.get_schema(node.op_type, newer, "").attributes
    for name, attribute in list(node.attributes.items()):
        if name in older.attributes:
            continue
        if (node.op_type, name) not in _REPEATED and not _is_default(attribute, defaults[name]):
            raise _refusal(node, version, f"{node.op_type} has no {name}")
        del node.attributes[name]


def _fill_in(node: ir.Node, place: int, version: int) -> None:
    """Give a node an input that only newer opsets leave out: Resize's region, which is unused."""
    graph = node.graph
    if (node.op_type, place) != ("Resize", 1) or not isinstance(graph, ir.Graph):
        raise _refusal(node, version, f"input {place} is needed")
    name = Names(graph).value(f"{node.name}_roi")
    empty = ir.tensor(np.zeros(0, np.float32), name=name)
    region = ir.Value(
        name=name, shape=ir.Shape([0]), type=ir.TensorType(ir.DataType.FLOAT), const_value=empty
    )
    graph.register_initializer(region)
    node.replace_input_with(place, region)


def _take_axes(node: ir.Node, version: int) -> None:
    """Make the input of axes an attribute."""
    axes = node.inputs[1]
    if axes is not None:
        if axes.const_value is None:
            raise _refusal(node, version, "axes are no input")
        node.attributes["axes"] = ir.AttrInt64s("axes", axes.const_value.numpy().tolist())
    node.resize_inputs(1)


def _is_default(attribute: ir.Attr, schema: OpSchema.Attribute) -> bool:
    default = schema.default_value
    return default.name != "" and onnx.helper.get_attribute_value(default) in (
        attribute.value,
        str(attribute.value).encode(),
    )


def _refusal(node: ir.Node, version: int, reason: str) -> BadInput:
    return BadInput(
        f"{node.op_type} {node.name} cannot be written in opset {version}, where {reason}",
        "choose a newer --opset",
    )
