"""Which type every node of a graph computes in, once the graph is FP16 or BF16.

That format (`formats`) is the rule. FP32 stay:

- reductions, whose sum outgrows its 11 or 8 bits: averages, sums, norms, softmax, normalizations;
  maxima only compare and may be in it;
- nodes that read or write a tensor beyond half of its range, when ranges are known;
- nodes with a weight it cannot hold: above its range, or so small that rounding takes more than
  twice what it may from a normal number (the whole weight is compared, in the 2-norm: of a trained
  weight a few elements are always tiny, and flush to zero without harm);
- nodes that read or write quantized values whose scale it cannot hold;
- operators for which ONNX defines no such type, or that TensorRT does not build in it, and all of a
  subgraph (If, Loop, Scan).

Where a type may be chosen follows from ONNX's own schemas: an input may be FP16 if its type
constraint allows it, and an output is what ONNX's type inference makes of the inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.defs import OpSchema

from cbam_deploy.errors import BadInput
from cbam_deploy.exporters.half.formats import DTYPES, FP16, HalfFormat
from cbam_deploy.gates.operators import operator_of

FP16_MAX = FP16.largest
# Half a step of a value at the end of INT8's scale, relative to it: 0.5 / 127.
SCALE_ERROR_LIMIT = 0.5 / 127

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # with a weight, in most networks
REDUCTIONS = (
    *("AveragePool", "GlobalAveragePool", "GlobalLpPool", "LpPool", "CumSum"),
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd"),
    *("ReduceSum", "ReduceSumSquare", "Softmax", "LogSoftmax", "LRN", "LpNormalization"),
    *("GroupNormalization", "InstanceNormalization", "LayerNormalization"),
    *("MeanVarianceNormalization", "RMSNormalization"),
)
# These only hand values on, so they take the type in which their first input comes.
TYPE_FOLLOWING = (
    *("Cast", "Flatten", "Identity", "QuantizeLinear", "Reshape", "Shape", "Size", "Squeeze"),
    *("Transpose", "Unsqueeze"),
)


_QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger")
FROM_FP32 = "convert the FP32 file it was made from"


@dataclass(frozen=True)
class KeptNode:
    """A node that stays in FP32, and why.

    Attributes:
        node: name of the node.
        op: its operator.
        tensor: the tensor at fault; empty where none is.
        range: smallest and largest value of that tensor, where known.
        reason: a sentence without a full stop.
    """

    node: str
    op: str
    tensor: str
    range: tuple[float, float] | None
    reason: str


def operator(node: ir.Node) -> str:
    """Operator with its domain, where it has one."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def node_name(node: ir.Node) -> str:
    """What to call a node: its name, or else its first output's."""
    return node.name or node.outputs[0].name or operator(node)


def is_standard(node: ir.Node | None, *op_types: str) -> bool:
    """Whether a node is one of these operators of ONNX's own domain."""
    return node is not None and node.domain in ("", "ai.onnx") and node.op_type in op_types


def is_float(value: ir.Value | None) -> bool:
    """Whether a value is a tensor of FP32 or a format of 16 bits."""
    kinds = (ir.DataType.FLOAT, *DTYPES)
    return value is not None and isinstance(value.type, ir.TensorType) and value.dtype in kinds


def is_weight(value: ir.Value | None) -> bool:
    """Whether a value is stored in the file and cannot be fed instead."""
    return value is not None and value.is_initializer() and not value.is_graph_input()


def check_single_precision(model: ir.Model, name: str) -> None:
    """Raise `BadInput` for the network called `name` if it is quantized or has 16-bit weights."""
    if any(is_standard(node, *_QUANTIZED) for node in model.graph):
        raise BadInput(f"{name}: is quantized already", FROM_FP32)
    kinds = {value.dtype for value in model.graph.initializers.values()}
    if kinds & set(DTYPES):
        raise BadInput(f"{name}: has 16-bit weights already", FROM_FP32)


class Halves(NamedTuple):
    """For each input of a node, whether 16 bits may stand there; for each output, if it follows.

    An output that follows has 16 bits when those inputs have, and is FP32 when they are.
    """

    inputs: list[bool]
    outputs: list[bool]


def halves(node: ir.Node, opset: int, half: HalfFormat = FP16) -> Halves:
    """Where a node may take and give `half`.

    Args:
        node: with the types of what it reads and writes.
        opset: version of ONNX's own operators.
        half: FP16 or BF16.
    """
    if gate := operator_of(node):
        return Halves([index < len(gate.maps) for index in range(len(node.inputs))], [True])
    if is_standard(node, "Cast"):
        floats = is_float(node.inputs[0])
        return Halves([floats], [floats and is_float(node.outputs[0])])
    neither = Halves([False] * len(node.inputs), [False] * len(node.outputs))
    schema = _schema(node, opset)
    if schema is None:
        return neither
    may = _may_be_half(schema, half)
    inputs = [
        is_float(value) and _constraint(schema.inputs, index) in may
        for index, value in enumerate(node.inputs)
    ]
    kinds = _output_types(node, schema, inputs, half) if any(inputs) else None
    if kinds is None:
        return neither
    return Halves(
        inputs,
        [
            is_float(value) and kind == half.dtype
            for value, kind in zip(node.outputs, kinds, strict=True)
        ],
    )


def _output_types(
    node: ir.Node, schema: OpSchema, inputs: Sequence[bool], half: HalfFormat
) -> list[int] | None:
    """What ONNX infers when `inputs` are `half`; None where that is not allowed.

    The type constraints alone do not say it: an output may have one of its own, and yet take the
    type of an input when no attribute gives another.
    """
    proto = onnx.NodeProto(op_type=node.op_type)
    proto.input.extend("" if value is None else f"i{i}" for i, value in enumerate(node.inputs))
    proto.output.extend(f"o{i}" if value.name else "" for i, value in enumerate(node.outputs))
    proto.attribute.extend(ir.to_proto(attribute) for attribute in node.attributes.values())
    types = {}
    for index, (value, may) in enumerate(zip(node.inputs, inputs, strict=True)):
        kind = half.dtype if may else value.dtype if value is not None else None
        types[f"i{index}"] = onnx.TypeProto()
        if kind is not None:
            types[f"i{index}"].tensor_type.elem_type = int(kind)
    try:
        found = onnx.shape_inference.infer_node_outputs(schema, proto, types)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError):
        return None
    undefined = onnx.TypeProto()
    return [found.get(name, undefined).tensor_type.elem_type for name in proto.output]


def _schema(node: ir.Node, opset: int) -> OpSchema | None:
    """The schema by which a node's types may be chosen; None where they may not."""
    values = [value for value in (*node.inputs, *node.outputs) if value is not None]
    tensors = all(isinstance(value.type, ir.TensorType | None) for value in values)
    kinds = {attribute.type for attribute in node.attributes.values()}
    subgraphs = kinds & {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}
    if node.domain not in ("", "ai.onnx") or subgraphs or not tensors:
        return None
    try:
        return onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return None


def _may_be_half(schema: OpSchema, half: HalfFormat) -> set[str]:
    tensor = f"tensor({half.dtype.name.lower()})"
    return {
        constraint.type_param_str
        for constraint in schema.type_constraints
        if tensor in constraint.allowed_type_strs
    }


def _constraint(parameters: Sequence[OpSchema.FormalParameter], index: int) -> str:
    """The type constraint of a parameter; the last one may stand for many."""
    return parameters[min(index, len(parameters) - 1)].type_str if parameters else ""


def fault(
    node: ir.Node,
    may_be: Halves,
    ranges: Mapping[str, tuple[float, float]],
    beyond_half: Mapping[ir.Value, str],
    half: HalfFormat = FP16,
) -> KeptNode | None:
    """Why a node cannot be `half`, if it cannot.

    Args:
        node: one that may be `half`.
        may_be: where.
        ranges: smallest and largest value by name of a tensor.
        beyond_half: values that cannot be `half` for another reason, with a sentence each.
        half: FP16 or BF16.
    """
    for verb, values, mays in (
        ("writes", node.outputs, may_be.outputs),
        ("reads", node.inputs, may_be.inputs),
    ):
        for value, may in zip(values, mays, strict=True):
            if not may or value is None:
                continue
            reached, reason = _value_fault(value, ranges, beyond_half, half)
            if reason:
                name = value.name or ""
                reason = f"{verb} {name}, {reason}"
                return KeptNode(node_name(node), operator(node), name, reached, reason)
    return None


def _value_fault(
    value: ir.Value,
    ranges: Mapping[str, tuple[float, float]],
    beyond_half: Mapping[ir.Value, str],
    half: HalfFormat,
) -> tuple[tuple[float, float] | None, str]:
    """Range of a value, where known, and why it cannot be `half`, if it cannot."""
    if value in beyond_half:
        return None, beyond_half[value]
    if is_weight(value) and value.const_value is not None:
        weight = value.const_value.numpy()
        reached = (float(weight.min()), float(weight.max())) if weight.size else (0.0, 0.0)
        return reached, weight_fault(weight, half)
    known = ranges.get(value.name or "")
    if known is None or fits_half(known, half):
        return known, ""
    return known, f"which passes half of {half.name}'s range"


def fits_half(reached: tuple[float, float], half: HalfFormat = FP16) -> bool:
    """Whether a range stays within half of that of `half`; a NaN does not."""
    return all(abs(end) <= half.largest / 2 for end in reached)


def weight_fault(weight: NDArray[np.floating], half: HalfFormat = FP16) -> str:
    """What `half` would do to a weight, if it is too much; the module's docstring says how much."""
    finite = weight[np.isfinite(weight)].astype(np.float64)
    if not finite.size:
        return ""
    if np.abs(finite).max() > half.largest:
        return f"which passes {half.name}'s range"
    error = _rounding_error(finite, half)
    too_much = error > 2 * half.roundoff
    return f"which loses {error:.2%} to underflow in {half.name}" if too_much else ""


def _rounding_error(values: NDArray[np.float64], half: HalfFormat) -> float:
    """Error of the copy in `half` relative to the values, in the 2-norm."""
    norm = float(np.linalg.norm(values))
    rounded = values.astype(half.dtype.numpy()).astype(np.float64)
    error = float(np.linalg.norm(rounded - values))
    return error / norm if norm else 0.0


def scale_fault(scale: NDArray[np.floating], largest_integer: int) -> str:
    """Why FP16 cannot hold a quantization scale, if it cannot.

    Every single scale counts, for each may stand for a whole channel.

    Args:
        scale: of a tensor, or of each channel.
        largest_integer: largest magnitude of the quantized values.
    """
    scales = np.abs(scale[scale != 0]).astype(np.float64)
    if not scales.size:
        return ""
    if not fits_half((0.0, float(scales.max()) * largest_integer)):
        return f"whose scale {scales.max():.3g} reaches beyond half of FP16's range"
    errors = np.abs(scales.astype(np.float16).astype(np.float64) / scales - 1)
    if errors.max() > SCALE_ERROR_LIMIT:
        return f"whose scale {scales.min():.3g} underflows in FP16"
    return ""
