"""Whether the weights of an ONNX file are numbers that a network can compute with.

Infinities have their place in a graph: in the mask that an Add gives to attention, the bounds of a
Clip, what a Pad puts around a map. So a constant is judged by what computes with it, directly or
after operators that move or store its values: where a product or a normalization does, it must be
finite, and a BatchNormalization's variance not negative; where a sum, difference or quotient does,
or a Gather looks values up, it must not be NaN; elsewhere anything goes. What is refused so cannot
but make results NaN or infinite. Calls of local functions and inner graphs are followed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

from cbam_deploy.errors import BadInput
from cbam_deploy.numerics.finiteness import DEMANDS, Demand, fault

_FINITE = frozenset(
    (
        "BatchNormalization",
        "Conv",
        "ConvTranspose",
        "DeformConv",
        "DequantizeLinear",
        "Einsum",
        "FusedConv",
        "FusedGemm",
        "FusedMatMul",
        "GRU",
        "Gemm",
        "GroupNormalization",
        "InstanceNormalization",
        "LSTM",
        "LayerNormalization",
        "MatMul",
        "MatMulNBits",
        "Mul",
        "PRelu",
        "QGemm",
        "QLinearConv",
        "QLinearMatMul",
        "QuantizeLinear",
        "RMSNormalization",
        "RNN",
    )
)
_NO_NAN = frozenset(("Add", "Div", "Gather", "Mean", "Sub", "Sum"))
# Their results are their first input's values, of Concat's all inputs'.
_MOVING = frozenset(
    (
        "Cast",
        "CastLike",
        "Concat",
        "DequantizeLinear",
        "Expand",
        "Flatten",
        "Identity",
        "QuantizeLinear",
        "Reshape",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    )
)
_VARIANCE = ("BatchNormalization", 4)

Demands = dict[ir.Value, Demand]


def check_weights(model: ir.Model, path: str | Path) -> None:
    """Raise `BadInput`, naming the tensor, where a weight of the file `path` is no number."""
    faults = weight_faults(model)
    for name, text in faults.items():
        more = f", and {len(faults) - 1} more tensors like it" if len(faults) > 1 else ""
        raise BadInput(
            f"{path}: {name} is no weight: {text}{more}",
            "such a network computes nothing of use: export weights from before they broke",
        )


def weight_faults(model: ir.Model) -> dict[str, str]:
    """What is wrong with the values of constants, by their names; empty where nothing is.

    Values are read a part at a time; data outside the file is not kept in memory.
    """
    demands: Demands = {}
    done: set[ir.OperatorIdentifier] = set()
    _ask(model.graph, model, demands, done)
    faults = {}
    for value, tensor in _constants(model):
        demand = demands.get(value)
        if demand is not None and (text := _fault(tensor, demand)):
            faults[value.name or ""] = text
    return faults


def _ask(
    nodes: Iterable[ir.Node],
    model: ir.Model,
    demands: Demands,
    done: set[ir.OperatorIdentifier],
) -> None:
    """Note what the nodes of a graph, from the last to the first, demand of their inputs."""
    for node in reversed(list(nodes)):
        for graph in _inner_graphs(node):
            _ask(graph, model, demands, done)
        function = model.functions.get(node.op_identifier())
        if function is not None:
            if node.op_identifier() not in done:
                done.add(node.op_identifier())
                _ask(function, model, demands, done)
            for value, parameter in zip(node.inputs, function.inputs, strict=False):
                _demand(demands, value, demands.get(parameter))
            continue
        kind = node.op_type
        if kind in _MOVING:
            for value in node.inputs if kind == "Concat" else node.inputs[:1]:
                for output in node.outputs:
                    _demand(demands, value, demands.get(output))
        for index, value in enumerate(node.inputs):
            if kind in _FINITE and not (kind in _MOVING and index == 0):
                variance = (kind, index) == _VARIANCE
                _demand(demands, value, "finite, not negative" if variance else "finite")
            elif kind in _NO_NAN:
                _demand(demands, value, "no NaN")


def _demand(demands: Demands, value: ir.Value | None, demand: Demand | None) -> None:
    """Note the stricter of what was demanded of `value` and `demand`."""
    if value is not None and demand is not None:
        demands[value] = max(demands.get(value, demand), demand, key=DEMANDS.index)


def _constants(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    """Initializers and outputs of Constant nodes, everywhere in the model."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value, value.const_value
    for nodes in (*model.graphs(), *model.functions.values()):
        for node in nodes:
            if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
                tensor = _values(node)
                if tensor is not None:
                    yield node.outputs[0], tensor


def _values(constant: ir.Node) -> ir.TensorProtocol | None:
    """Values of a Constant node, if they are floats; onnx-ir's own reader renames the tensor."""
    for name, attribute in constant.attributes.items():
        if attribute.is_ref():
            continue
        if name == "value":
            return attribute.as_tensor()
        if name in ("value_float", "value_floats"):
            return ir.tensor(np.array(attribute.value, np.float32))
    return None


def _inner_graphs(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _fault(tensor: ir.TensorProtocol, demand: Demand) -> str | None:
    if not (tensor.dtype.is_floating_point() or tensor.dtype.name.startswith("COMPLEX")):
        return None
    try:
        if isinstance(tensor, ir.ExternalTensor) and tensor.raw is None:
            text = fault(tensor.numpy(), demand)
            tensor.release()
            return text
        return fault(tensor.numpy(), demand)
    except ValueError:  # The checker lets more bytes than the shape needs pass.
        return "its bytes do not fit its shape"
