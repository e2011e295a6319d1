"""Write a gate's body, which is in the words of opset 18, in those of an older opset.

opset   what is new in it                            before
18      ReduceMax and ReduceMean take axes as input  axes are an attribute
15      CastLike                                     Cast to a fixed type
13      Unsqueeze takes axes as input                axes are an attribute
"""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from cbam_deploy.graphs.older_opset import AXES_AS_INPUT_SINCE

CAST_LIKE_SINCE = 15


def needs_dtype(opset: int) -> bool:
    """Whether a body of this opset is for one type of maps only."""
    return opset < CAST_LIKE_SINCE


def in_words_of(opset: int, body: onnx.FunctionProto, dtype: ir.DataType) -> onnx.FunctionProto:
    """`body`, changed in place; `dtype` is what maps are cast to where `needs_dtype`."""
    constants = {node.output[0]: node for node in body.node if node.op_type == "Constant"}
    for node in body.node:
        if opset < AXES_AS_INPUT_SINCE.get(node.op_type, 0):
            value = helper.get_attribute_value(constants[node.input.pop()].attribute[0])
            axes = numpy_helper.to_array(value).tolist()
            node.attribute.append(helper.make_attribute("axes", axes))
        elif node.op_type == "CastLike" and needs_dtype(opset):
            node.op_type = "Cast"
            node.input.pop()
            node.attribute.append(helper.make_attribute("to", int(dtype)))
    used = {name for node in body.node for name in node.input}
    for name, node in constants.items():
        if name not in used:
            body.node.remove(node)
    return body
