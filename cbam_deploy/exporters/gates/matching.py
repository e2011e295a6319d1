"""What the readers of a gate's parts share: the way back through the graph, and its constants.

A gate is read from its output to the map it gates. The nodes that are matched are kept, and what
does not belong to a gate ends the reading with a sentence, in formulas and PyTorch's words: the
names of a graph's values say nothing to whoever wrote the network.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from cbam_deploy.errors import BadInput, in_one_line
from cbam_deploy.graphs.shapes import Shapes

Weights = NDArray[np.float32]

# What changes the shape of a value at most; that it does so rightly is for `proof` to see.
_VIEWS = (
    *("Unsqueeze", "Squeeze", "Reshape", "Flatten", "Expand", "Transpose"),
    *("Identity", "Dropout", "Cast", "Gather"),
)
# Longer ways from a map to its attention, or from a weight to its use, are other things. Without
# these ends, many ways through one long chain would take time with the square of its length.
MOST_STEPS = 40
_MOST_NODES = 200
# Of activations and gate functions, where FP16 rounds them.
_SCALARS = (2**0.5, 0.5**0.5, 1 / 6)
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
# Exporters that do not fold constants leave these between a weight and its use.
_OF_CONSTANTS = (
    *("Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Cast"),
    "Mul",
)


class Refused(Exception):
    """What was read is no gate; the message is a sentence that says why."""


@dataclass
class Matched:
    """The nodes matched while reading one part of a gate, in a graph with `shapes`.

    Attributes:
        shapes: of the graph.
        part: what is read, as sentences call it.
        nodes: those matched.
    """

    shapes: Shapes
    part: str
    nodes: list[ir.Node] = field(default_factory=list)

    def note(self, *nodes: ir.Node) -> None:
        """Add nodes."""
        self.nodes += nodes
        if len(self.nodes) > _MOST_NODES:
            raise Refused(
                f"{self.part}: more than {_MOST_NODES} operators lie behind it, more than any "
                "gate has"
            )

    def behind_views(self, value: ir.Value, stop: ir.Value | None = None) -> ir.Value:
        """What `value` is a view of, not going further back than `stop`."""
        while value is not stop and (node := view_of(value)) is not None:
            self.note(node)
            value = input_of(node, 0)
        return value

    def refused(self, reason: str) -> Refused:
        """That the part cannot be taken for `reason`."""
        return Refused(f"{self.part}: {reason}")


_SAID = {
    "Tanh": "tanh",
    "Softmax": "softmax",
    "Relu": "ReLU",
    "Elu": "ELU",
    "PRelu": "PReLU",
    "Selu": "SELU",
    "Sigmoid": "σ",
    "Add": "a sum",
    "Mul": "a product",
    "Conv": "a convolution",
    "Gemm": "a linear layer",
    "MatMul": "a linear layer",
    "Concat": "a concatenation",
    "BatchNormalization": "a BatchNorm",
    "Clip": "a clamp",
    "Slice": "a part",
    "Neg": "a negation",
    "ReduceMean": "a mean",
    "GlobalAveragePool": "a mean",
    "ReduceMax": "a maximum",
    "GlobalMaxPool": "a maximum",
    "ReduceMin": "a minimum",
    "Softplus": "softplus",
    "Div": "a quotient",
    "Sub": "a difference",
    "HardSwish": "HardSwish",
    "Abs": "|·|",
    "Transpose": "a transpose",
    "Reshape": "a view",
    "Squeeze": "a view",
    "Unsqueeze": "a view",
    "Expand": "an expansion",
    "Erf": "erf",
    "Exp": "exp",
    "Pow": "a power",
    "Sqrt": "a root",
    "Resize": "an interpolation",
    "AveragePool": "a mean over windows",
    "MaxPool": "a maximum over windows",
}


def said(value: ir.Value) -> str:
    """What makes `value`, as formulas and PyTorch call it."""
    node = value.producer()
    if node is None:
        return "an input of the network" if value.is_graph_input() else "a constant"
    if node.domain:
        return f"{node.domain}.{node.op_type}"
    attributes = node.attributes
    if node.op_type == "Cast":
        return f"a cast to {ir.DataType(attributes.get_int('to')).name}"
    if node.op_type == "LeakyRelu":
        return f"LeakyReLU of slope {attributes.get_float('alpha', 0.01):.3g}"
    if node.op_type == "Gelu":
        return f"GELU ({attributes.get_string('approximate', 'none')})"
    if node.op_type == "HardSigmoid":
        slope, shift = attributes.get_float("alpha", 0.2), attributes.get_float("beta", 0.5)
        return f"clip({slope:.3g}·z + {shift:.3g}, 0, 1)"
    return _SAID.get(node.op_type, node.op_type)


def view_of(value: ir.Value) -> ir.Node | None:
    """The node that makes `value` by at most changing the shape of its input, if one does."""
    node = value.producer()
    if node is None or node.domain or node.op_type not in _VIEWS or value is not node.outputs[0]:
        return None
    if node.op_type == "Cast" and node.attributes.get_int("to") not in _FLOATS:
        return None
    if node.op_type == "Gather" and not _takes_first(node):
        return None
    return node


def _takes_first(node: ir.Node) -> bool:
    """Whether a Gather is ``x[:, 0]``, where an axis of one element ends."""
    index = find_constant(node.inputs[1])
    return index is not None and index.size == 1 and not index.any()


def behind_copies(value: ir.Value) -> ir.Value:
    """The value that `value` is under another name."""
    for _ in range(MOST_STEPS):
        node = view_of(value) if is_op(value, "Identity", "Dropout") else None
        if node is None:
            break
        value = input_of(node, 0)
    return value


def is_op(value: ir.Value, *ops: str) -> bool:
    """Whether a node of one of ONNX's own operators `ops` makes `value`."""
    node = value.producer()
    return node is not None and not node.domain and node.op_type in ops


def is_constant(value: ir.Value | None) -> bool:
    """Whether `value` never depends on the inputs, as far as `find_constant` looks."""
    ahead, steps = [value], 0
    while ahead:
        top = ahead.pop()
        if top is None or top.is_graph_input():
            return False
        if ir.convenience.get_const_tensor(top) is not None:
            continue
        node, steps = top.producer(), steps + 1
        if node is None or not is_op(top, *_OF_CONSTANTS) or steps > MOST_STEPS:
            return False
        ahead += node.inputs
    return True


def find_constant(value: ir.Value | None) -> NDArray[Any] | None:
    """The array that `value` always is; None where that depends on the inputs.

    A weight that is also an input of the graph can be replaced by whoever runs it.

    Raises:
        BadInput: the array does not fit its shape.
    """
    if value is None or not is_constant(value):
        return None
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is not None:
        try:
            return tensor.numpy()
        except ValueError as error:
            raise BadInput(
                f"weight {value.name} is damaged ({error})", "export the model again"
            ) from error
    node = value.producer()
    assert node is not None
    return _computed(node, [find_constant(source) for source in node.inputs])


def constant(value: ir.Value) -> NDArray[Any]:
    """The array that `value` always is."""
    array = find_constant(value)
    if array is None:
        why = "an input of the network" if value.is_graph_input() else f"computed ({said(value)})"
        raise Refused(f"a weight is {why}; fused are gates whose weights are constant")
    return array


def weights(value: ir.Value) -> Weights:
    """The array that `value` always is, in FP32."""
    return constant(value).astype(np.float32)


def split_scalar(node: ir.Node) -> tuple[ir.Value, float, bool] | None:
    """The operand of a node of two that is no scalar constant, the scalar, and if it comes first.

    None where not exactly one of the two is a scalar constant.
    """
    if len(node.inputs) != 2:
        return None
    arrays = [find_constant(value) for value in node.inputs]
    scalars = [array is not None and array.size == 1 for array in arrays]
    if scalars[0] == scalars[1]:
        return None
    first = scalars[0]
    array = arrays[0 if first else 1]
    assert array is not None
    return input_of(node, 1 if first else 0), float(single_precision(array).reshape(())), first


def single_precision(array: NDArray[Any]) -> NDArray[Any]:
    """An FP16 array in FP32, others as they are; a scalar of a formula as it was before rounding.

    Files in FP16 divide by 1.4140625 in GELU: what is meant is the square root of two.
    """
    if array.dtype != np.float16:
        return array
    meant = [one for one in _SCALARS if array.size == 1 and np.float16(one) == array.reshape(())]
    return np.full(array.shape, meant[0], np.float32) if meant else array.astype(np.float32)


def input_of(node: ir.Node, index: int) -> ir.Value:
    """Input number `index`, which must be there."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        raise Refused(f"an operator {node.op_type} lacks its input {index}")
    return value


def _computed(node: ir.Node, arrays: list[NDArray[Any] | None]) -> NDArray[Any]:
    """What `node` makes of constants."""
    assert isinstance(node.graph, ir.Graph)
    proto = ir.to_proto(node)
    names = [f"c{index}" for index in range(len(arrays))]
    del proto.input[:]
    proto.input.extend(names)
    unknown = [onnx.helper.make_empty_tensor_value_info(name) for name in (*names, proto.output[0])]
    graph = onnx.helper.make_graph([proto], "constant", unknown[:-1], unknown[-1:])
    opset = onnx.helper.make_opsetid("", node.graph.opset_imports[""])
    model = onnx.helper.make_model(graph, opset_imports=[opset])
    feeds = dict(zip(names, arrays, strict=True))
    try:
        outputs: Any = ReferenceEvaluator(model).run(None, feeds)
    except Exception as error:  # numpy's, of a node that no runtime could run either.
        reason = in_one_line(error, 120)
        raise BadInput(
            f"weight {node.outputs[0].name} cannot be computed ({reason})", "export the model again"
        ) from error
    return np.asarray(outputs[0])
