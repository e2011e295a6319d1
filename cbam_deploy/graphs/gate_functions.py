"""The gate nodes of a model and the functions that say what they compute."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Hashable

import numpy as np
import onnx_ir as ir

from cbam_deploy.gates.operators import DOMAIN, VERSION, GateOperator, operator_named, operator_of
from cbam_deploy.graphs.gate_bodies import FIRST_OPSET, GROUPS, gate_function

_FUNCTIONS_SINCE = 8  # Version of ONNX's file format.


def gate_nodes(model: ir.Model) -> list[ir.Node]:
    """Gate nodes of the main graph, in its order."""
    return [node for node in model.graph if operator_of(node)]


def gate_counts(model: ir.Model) -> dict[str, int]:
    """Number of gate nodes by operator."""
    return dict(sorted(Counter(node.op_type for node in gate_nodes(model)).items()))


def foreign_operators(model: ir.Model) -> dict[str, str]:
    """Operators that bear the name of one of ours, and why they are another one in `model`.

    A later version, or whoever edited the file, may mean something else by a name. What its nodes
    compute is what the file says, so neither our body nor our kernel may take their place.
    """
    if reason := foreign_version(model):
        return {node.op_type: reason for node in gate_nodes(model)}
    return {
        function.name: f"{function.name} has another body in the file than in this version"
        for function in model.functions.values()
        if operator_of_function(function) and not _is_ours(function)
    }


def foreign_version(model: ir.Model) -> str | None:
    """Why no operator of our domain is one of ours in `model`; None where they may be."""
    version = model.opset_imports.get(DOMAIN, VERSION)
    if version == VERSION:
        return None
    return f"the file uses version {version} of {DOMAIN}, not {VERSION}"


def operator_of_function(function: ir.Function) -> GateOperator | None:
    """The operator that a function is the body of; None of any other function."""
    return operator_named(function.name) if function.domain == DOMAIN else None


def _is_ours(function: ir.Function) -> bool:
    """Whether a body is one that `gate_function` writes, but for names and the order of nodes."""
    opset = function.opset_imports.get("", 0)
    if opset < FIRST_OPSET:
        return False
    numbers: dict[Hashable, int] = {}
    found = _meaning(function, numbers)
    dtypes = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
    return any(
        _meaning(gate_function(function.name, opset, grouped=grouped, dtype=dtype), numbers)
        == found
        for grouped, dtype in itertools.product((True, False), dtypes)
    )


def _meaning(function: ir.Function, numbers: dict[Hashable, int]) -> tuple[int, ...]:
    """Number of inputs, and of each output the number in `numbers` of the expression it is."""
    known: dict[ir.Value | None, int] = {None: -1}

    def number(value: ir.Value | None, expression: Hashable) -> None:
        known[value] = numbers.setdefault(expression, len(numbers))

    for index, value in enumerate(function.inputs):
        number(value, index)
    for node in function:
        operands = tuple(known.get(value, -2) for value in node.inputs)
        attributes = sorted(node.attributes.items())
        of_one = node.op_type == "Constant"  # Its one attribute has several names.
        read = tuple(
            ("" if of_one else name, entry.ref_attr_name, _plain(entry))
            for name, entry in attributes
        )
        for index, value in enumerate(node.outputs):
            number(value, (index, node.op_identifier(), operands, read))
    return (len(function.inputs), *(known.get(value, -2) for value in function.outputs))


def _plain(attribute: ir.Attr) -> Hashable:
    """What an attribute is, to be compared; a graph is like no other."""
    value, kind = attribute.value, attribute.type
    if kind in (ir.AttributeType.FLOAT, ir.AttributeType.FLOATS):
        value = ir.tensor(np.array(value, np.float32))
    elif kind in (ir.AttributeType.INT, ir.AttributeType.INTS):
        value = ir.tensor(np.array(value, np.int64))
    if isinstance(value, ir.TensorProtocol):
        return (value.dtype, tuple(value.shape.numpy()), value.tobytes())
    return (kind, value if isinstance(value, str) else id(value))


def set_functions(model: ir.Model, dtype: ir.DataType = ir.DataType.FLOAT) -> None:
    """Give the operators of the model's gate nodes their bodies, and import their domain.

    Those of `foreign_operators` keep the body they have.

    Args:
        model: whose gates all have maps of `dtype` where `needs_dtype`.
        dtype: type of the maps. FP16 is fast on GPUs, whose engines are smaller without groups.
    """
    nodes, foreign = gate_nodes(model), foreign_operators(model)
    everywhere = itertools.chain(model.graph.all_nodes(), *model.functions.values())
    called = [node for node in everywhere if operator_of(node)]
    channels = [channels_of(node) or 1 for node in called]  # Unknown counts are pooled at once.
    grouped = dtype == ir.DataType.FLOAT and all(count % GROUPS == 0 for count in channels)
    opset = model.opset_imports[""]
    for op in sorted({node.op_type for node in nodes} - foreign.keys()):
        function = gate_function(op, opset, grouped=grouped, dtype=dtype)
        model.functions[function.identifier()] = function
    if nodes:
        model.opset_imports[DOMAIN] = VERSION
        model.ir_version = max(model.ir_version, _FUNCTIONS_SINCE)


def channels_of(node: ir.Node) -> int | None:
    """C of a gate's node, as its weights or its map have it; None where neither says."""
    operator = operator_of(node)
    inputs = operator.by_name(node.inputs) if operator else {}
    for name, axis in (("W0", 1), ("B1", 0), ("WD", 1), ("X", 1)):
        value = inputs.get(name)
        shape = value.shape if value is not None else None
        size = shape[axis] if shape is not None and len(shape) > axis else None
        if isinstance(size, int):
            return size
    return None
