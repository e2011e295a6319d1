"""Count an ONNX graph: shapes by onnx's own inference, gates by the body of their function.

A file counts a little less than the module it was exported from: BatchNorm is folded into
convolutions, which leaves one bias in place of two parameters per channel, and a gate's body
multiplies the sum of its two hidden vectors by W1 once, not each of them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import onnx
import onnx_ir as ir
from onnx import inliner
from onnxscript.optimizer import fold_constants

from cbam_deploy.costs.result import Part
from cbam_deploy.errors import BadInput
from cbam_deploy.gates.operators import DOMAIN
from cbam_deploy.graphs.shapes import Known, infer_shapes, make_weights_inputs
from cbam_deploy.graphs.signature import specs_of

Shape = tuple[int, ...]

# Operators that multiply by weights or matrices in other ways than those counted here.
_OTHER_PRODUCTS = frozenset(
    (
        "Attention",
        "ConvInteger",
        "DeformConv",
        "Einsum",
        "FusedConv",
        "FusedGemm",
        "FusedMatMul",
        "GRU",
        "LSTM",
        "MatMulInteger",
        "MatMulNBits",
        "MultiHeadAttention",
        "QGemm",
        "QLinearConv",
        "QLinearMatMul",
        "RNN",
    )
)
# What stands between a weight and the node that computes with it.
_ON_THE_WAY = frozenset({"Cast", "DequantizeLinear", "Identity", "QuantizeLinear", "Transpose"})


def count_graph(
    model: ir.Model,
    label: str,
    image_size: int | None,
    said: Mapping[str, int] | None = None,
    recorded: Mapping[str, int] | None = None,
) -> tuple[tuple[Shape, ...], tuple[Part, ...], dict[str, int]]:
    """Shapes of the inputs, parts in the graph's order, and operators that are not counted.

    Args:
        model: left as it is.
        label: what to call it in messages.
        image_size: in pixels, for the sides that the graph leaves free.
        said: size of free axes by their names, before everything else.
        recorded: the same, for what neither `said` nor, of heights and widths, `image_size` gives.

    Raises:
        BadInput: a size that counting needs cannot be known.
    """
    parameters = _parameters(model)
    one = _for_one_picture(model, label, image_size, said or {}, recorded or {})
    proto = ir.to_proto(one)
    known = _shapes_of(one, proto)
    bodies = {(body.domain, body.name) for body in proto.functions}
    parts: list[Part] = []
    uncounted: Counter[str] = Counter()
    for node, origin in zip(proto.graph.node, model.graph, strict=True):
        kind = node.op_type
        if (node.domain, kind) in bodies:
            inner = _body(proto, node, known, label)
            products = sum(_multiply_adds(part, types, label) for part, types in inner)
            uncounted.update(part.op_type for part, _ in inner if part.op_type in _OTHER_PRODUCTS)
        else:
            products = _multiply_adds(node, known, label)
            uncounted.update([kind] if kind in _OTHER_PRODUCTS else [])
        owned = parameters.get(origin, {})
        if products or owned:
            gate = node.domain == DOMAIN
            name = _name(origin, owned) if not gate else origin.name or node.output[0]
            parts.append(Part(name, kind, sum(owned.values()), products, gate))
    inputs = tuple(_shape(known, value.name, label) for value in proto.graph.input)
    return inputs[: len(_network_inputs(model))], tuple(parts), dict(uncounted)


def _shapes_of(one: ir.Model, proto: onnx.ModelProto) -> Known:
    """Types and shapes by name, also behind sizes that the graph computes from its input's."""
    known = infer_shapes(proto)
    complete = {
        name
        for name, (_, sizes) in known.items()
        if sizes is not None and all(isinstance(size, int) for size in sizes)
    }
    if {name for node in proto.graph.node for name in node.output} <= complete:
        return known
    folded = one.clone()
    fold_constants(folded, onnx_shape_inference=True)
    behind = infer_shapes(ir.to_proto(folded))
    return known | {name: found for name, found in behind.items() if name not in complete}


def _network_inputs(model: ir.Model) -> list[ir.Value]:
    return [v for v in model.graph.inputs if v.name not in model.graph.initializers]


def _parameters(model: ir.Model) -> dict[ir.Node, dict[str, int]]:
    """Elements of each weight by its name, by the first node that computes with it.

    A weight is an initializer of floating-point numbers, or the integers of a DequantizeLinear;
    scales, zero points and scalars are none.
    """
    owned: dict[ir.Node, dict[str, int]] = {}
    for name, value in model.graph.initializers.items():
        tensor, uses = value.const_value, list(value.uses())
        if tensor is None or not uses or not tensor.shape.numpy():
            continue
        node, index = uses[0]
        quantized = node.op_type == "DequantizeLinear" and index == 0
        scale = node.op_type in ("QuantizeLinear", "DequantizeLinear") and index > 0
        if scale or not (tensor.dtype.is_floating_point() or quantized):
            continue
        while node.op_type in _ON_THE_WAY and (further := list(node.outputs[0].uses())):
            node = further[0][0]
        owned.setdefault(node, {})[name] = tensor.size
    return owned


def _name(node: ir.Node, weights: Mapping[str, int]) -> str:
    """The module that the node's largest weight belongs to, where its name says so."""
    largest = max(weights, key=lambda name: weights[name], default="")
    module, dot, _ = largest.rpartition(".")
    return module if dot else node.name or node.outputs[0].name or ""


def _for_one_picture(
    model: ir.Model,
    label: str,
    image_size: int | None,
    said: Mapping[str, int],
    recorded: Mapping[str, int],
) -> ir.Model:
    """A copy with inputs of known sizes, without large weights and without recorded shapes."""
    copy = model.clone()
    for value in _network_inputs(copy):
        if value.shape is None:
            raise BadInput(f"{label}: input {value.name} has no shape", "export it with shapes")
        # Also where the batch is fixed: what one picture costs is asked.
        (spec,) = specs_of([value])
        shown = ", ".join(map(str, spec.shape))
        pictures = len(spec.shape) == 4
        sizes = [
            size
            if isinstance(size, int)
            else said[size]
            if size in said
            else image_size
            if pictures and axis >= 2 and image_size is not None
            else recorded.get(size, image_size)
            for axis, size in enumerate(spec.shape)
        ]
        sizes[:1] = [1]
        if None in sizes:
            raise BadInput(
                f"{label}: input {value.name} leaves sizes free: [{shown}]",
                "give the side of the picture: --image-size; or each axis: --size H=640",
            )
        value.shape = ir.Shape(sizes)
    for node in copy.graph:
        for value in node.outputs:
            value.shape = None
    make_weights_inputs(copy.graph)
    return copy


def _body(
    proto: onnx.ModelProto, node: onnx.NodeProto, known: Known, label: str
) -> list[tuple[onnx.NodeProto, Known]]:
    """The nodes that a call of a function comes to, with the types of their values."""
    inputs = []
    for name in filter(None, node.input):
        shape = _shape(known, name, label)
        inputs.append(onnx.helper.make_tensor_value_info(name, known[name][0], shape))
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output]
    graph = onnx.helper.make_graph([node], "call", inputs, outputs)
    call = onnx.helper.make_model(
        graph,
        functions=list(proto.functions),
        opset_imports=list(proto.opset_import),
        ir_version=proto.ir_version,
    )
    inlined = inliner.inline_local_functions(call)
    types = infer_shapes(inlined)
    return [(inner, types) for inner in inlined.graph.node]


def _multiply_adds(node: onnx.NodeProto, known: Known, label: str) -> int:
    if node.domain not in ("", "ai.onnx"):
        return 0
    if node.op_type == "Conv":
        weights = _shape(known, node.input[1], label)  # [M, C / group, k...]
        return math.prod(_shape(known, node.output[0], label)) * math.prod(weights[1:])
    if node.op_type == "ConvTranspose":
        weights = _shape(known, node.input[1], label)  # [C, M / group, k...]
        return math.prod(_shape(known, node.input[0], label)) * math.prod(weights[1:])
    if node.op_type in ("Gemm", "MatMul"):
        terms = _shape(known, node.input[0], label)
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return math.prod(_shape(known, node.output[0], label)) * terms[0 if transposed else -1]
    return 0


def _shape(known: Known, name: str, label: str) -> Shape:
    _, sizes = known.get(name, (0, None))
    if sizes is None:
        raise BadInput(f"{label}: the shape of {name} cannot be inferred", "export it again")
    numbers = tuple(size for size in sizes if isinstance(size, int))
    if len(numbers) < len(sizes):
        raise BadInput(
            f"{label}: {name} has sizes that cannot be inferred", "give --image-size, or export"
        )
    return numbers
