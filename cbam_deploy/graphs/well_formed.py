"""Whether an ONNX model means anything, before code that trusts it gets to see it.

onnx's own checker knows operators, attributes and the order of nodes. It does not ask whether a
tensor has as many values as its shape says, whether outputs exist, or whether types and ranks go
together; readers of ours, ONNX Runtime and TensorRT's parser (which may end the process) then
stumble. All of it is asked here, in time linear in the graph, whatever the size of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence

import onnx
import onnx_ir as ir
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto
from onnx.external_data_helper import uses_external_data

from cbam_deploy.graphs.messages import texts

# Larger initializers hold weights: what follows from their types and shapes needs no values.
_MOST_BYTES = 1024
# What sizes and indices are in every runtime.
_LARGEST_SIZE = 2**31 - 1
_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "double_data")
# How many entries of a typed field make one value.
_ENTRIES: dict[int, int] = {TensorProto.COMPLEX64: 2, TensorProto.COMPLEX128: 2}
# Where values of a type lie unless they are raw; types that are not here lie in int32_data.
_FIELD_OF: dict[int, str] = {
    TensorProto.FLOAT: "float_data",
    TensorProto.COMPLEX64: "float_data",
    TensorProto.STRING: "string_data",
    TensorProto.INT64: "int64_data",
    TensorProto.DOUBLE: "double_data",
    TensorProto.COMPLEX128: "double_data",
    TensorProto.UINT32: "uint64_data",
    TensorProto.UINT64: "uint64_data",
}


def check_model(model: ModelProto) -> None:
    """Make sure that `model` is a graph of tensors that computes something.

    Types recorded for outputs and in between that are out of date, which hinders nobody who runs
    it, are replaced by the inferred ones.

    Args:
        model: as parsed; its external data has been checked (`external_data`).

    Raises:
        ValueError: it says what is wrong; so does what onnx's checker and inference raise.
    """
    if not all(isinstance(text, str) for text in texts(model)):
        raise ValueError("a name or text is not UTF-8")
    _check_graph(model.graph, frozenset())
    for function in model.functions:
        _check_function(function)
    for tensor in model.graph.initializer:
        _check_tensor(tensor)
    for value in (*model.graph.input, *model.graph.output):
        _check_value(value)
    weightless = _without_weights(model)
    onnx.checker.check_model(weightless)
    for value in weightless.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(
        weightless, check_type=True, strict_mode=True, data_prop=True
    )
    _update_types(model.graph, inferred.graph)


def byte_count(tensor: TensorProto) -> int:
    """Bytes of a tensor's values as `raw_data` or external data.

    Raises:
        ValueError: values of its type have no fixed size, or there is no such type.
    """
    count: int = math.prod(tensor.dims)
    return -(-count * ir.DataType(tensor.data_type).bitwidth // 8)


def _check_graph(graph: GraphProto, outside: Collection[str]) -> None:
    """Check names, and everything inside nodes, of a graph that sees the values `outside`."""
    if graph.sparse_initializer:
        raise ValueError("it has sparse weights, which are not supported")
    inputs = [value.name for value in graph.input]
    weights = [tensor.name for tensor in graph.initializer]
    _check_unique(inputs, "input")
    _check_unique(weights, "weight")
    known = {*outside, *inputs, *weights}
    made = _check_nodes(graph.node, {*inputs, *weights}, known)
    outputs = [value.name for value in graph.output]
    _check_unique(outputs, "output")
    for name in outputs:
        if name not in made and name not in known:
            raise ValueError(f"nothing computes the output {name!r}")


def _check_function(function: FunctionProto) -> None:
    _check_unique(function.input, f"input of {function.name}")
    _check_unique(function.output, f"output of {function.name}")
    made = _check_nodes(function.node, set(function.input), set(function.input))
    for name in function.output:
        if name not in made:
            raise ValueError(f"nothing computes the output {name!r} of {function.name}")


def _check_nodes(nodes: Iterable[NodeProto], own: set[str], known: set[str]) -> set[str]:
    """All values that nodes of one graph or function may read after the last one.

    Args:
        nodes: in order.
        own: values that the graph itself has already.
        known: those, and the values around it; both sets grow.
    """
    for node in nodes:
        for name in node.input:
            if name and name not in known:
                raise ValueError(f"node {_label(node)} reads {name!r}, which nothing computes yet")
        for attribute in node.attribute:
            for tensor in (attribute.t, *attribute.tensors):
                if attribute.type in (AttributeProto.TENSOR, AttributeProto.TENSORS):
                    _check_tensor(tensor)
            for graph in _subgraphs(attribute):
                _check_graph(graph, known)
        for name in filter(None, node.output):
            if name in own:
                raise ValueError(f"node {_label(node)} computes {name!r} a second time")
            own.add(name)
            known.add(name)
    return known


def _subgraphs(attribute: AttributeProto) -> Iterable[GraphProto]:
    return (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs


def _label(node: NodeProto) -> str:
    return f"{node.op_type} {node.name}".strip()


def _check_unique(names: Sequence[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if not name or name in seen:
            fault = f"two have the name {name!r}" if name else "one has no name"
            raise ValueError(f"{fault} ({what})")
        seen.add(name)


def _check_tensor(tensor: TensorProto) -> None:
    """Make sure that a tensor has the values its shape and type promise, in one place."""
    name = tensor.name or "without a name"
    if tensor.HasField("segment"):
        raise ValueError(f"tensor {name} is a segment, which is not supported")
    if any(size < 0 or size > 2**62 for size in tensor.dims):
        raise ValueError(f"tensor {name} has the shape {list(tensor.dims)}")
    kind: int = tensor.data_type
    if not _is_type(kind):
        raise ValueError(f"tensor {name} is of no known type")
    raw = tensor.HasField("raw_data") or uses_external_data(tensor)
    filled = [field for field in (*_FIELDS, "uint64_data") if getattr(tensor, field)]
    place = [] if raw else [_FIELD_OF.get(kind, "int32_data")]
    if any(field not in place for field in filled) or (raw and kind == TensorProto.STRING):
        raise ValueError(f"tensor {name} has values that are not of its type")
    if uses_external_data(tensor):
        return  # Its length was compared with the file's.
    if raw:
        have = len(tensor.raw_data)
        need = byte_count(tensor)
    else:
        have = len(getattr(tensor, place[0]))
        bits = 8 if kind == TensorProto.STRING else ir.DataType(kind).bitwidth
        packed = 8 // bits if bits < 8 else 1
        need = math.ceil(math.prod(tensor.dims) * _ENTRIES.get(kind, 1) / packed)
    if have != need:
        unit = "bytes" if raw else "values"
        raise ValueError(f"tensor {name} has {have} {unit}, its shape needs {need}")


def _is_type(number: int) -> bool:
    return number != TensorProto.UNDEFINED and number in TensorProto.DataType.values()


def _check_value(value: onnx.ValueInfoProto) -> None:
    """Make sure that an input or output is a tensor of possible sizes."""
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        raise ValueError(f"{value.name} is no tensor but {kind or 'of no type'}")
    if not _is_type(value.type.tensor_type.elem_type):
        raise ValueError(f"{value.name} has elements of no known type")
    for size in value.type.tensor_type.shape.dim:
        if not 0 <= size.dim_value <= _LARGEST_SIZE:
            raise ValueError(f"{value.name} has an axis of size {size.dim_value}")


def _without_weights(model: ModelProto) -> ModelProto:
    """A copy with large initializers as inputs, and no shapes of values in between."""
    graph = model.graph
    copy = ModelProto(ir_version=model.ir_version)
    copy.opset_import.extend(model.opset_import)
    copy.functions.extend(model.functions)
    copy.graph.name = graph.name or "graph"
    copy.graph.node.extend(graph.node)
    copy.graph.input.extend(graph.input)
    listed = {value.name for value in graph.input}
    for tensor in graph.initializer:
        size = 0 if tensor.data_type == TensorProto.STRING else byte_count(tensor)
        if size <= _MOST_BYTES and not uses_external_data(tensor):
            copy.graph.initializer.append(tensor)
        elif tensor.name not in listed:
            kind = onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
            copy.graph.input.add(name=tensor.name, type=kind)
    copy.graph.output.extend(graph.output)
    return copy


def _update_types(graph: GraphProto, inferred: GraphProto) -> None:
    """Replace what `graph` records of types where `inferred` contradicts it."""
    known = {
        tensor.name: onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims).tensor_type
        for tensor in graph.initializer
    }
    for value in (*inferred.value_info, *inferred.output):
        known[value.name] = value.type.tensor_type
    for value in (*graph.value_info, *graph.output):
        found, recorded = known.get(value.name), value.type.tensor_type
        if found is not None and _contradict(recorded, found):
            recorded.CopyFrom(found)


def _contradict(recorded: onnx.TypeProto.Tensor, found: onnx.TypeProto.Tensor) -> bool:
    if recorded.elem_type != found.elem_type:
        return True
    if not (recorded.HasField("shape") and found.HasField("shape")):
        return False
    if len(recorded.shape.dim) != len(found.shape.dim):
        return True
    return any(
        one.HasField("dim_value") and other.HasField("dim_value") and one != other
        for one, other in zip(recorded.shape.dim, found.shape.dim, strict=True)
    )
