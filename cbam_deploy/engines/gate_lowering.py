"""How the gates of a network become nodes that full TensorRT's ONNX parser knows.

A gate node of an ONNX file has a function of standard operators as its body. Lowered to the plugin
it becomes, as `plugins.plugin_nodes` describes them,

    one node, where the fused kernel runs;
    a few nodes with statistics between them, where it does not: GPUs without clusters, large maps.

In a quantized network DQ stands before a gate and Q behind it. The plugin takes the integers::

    a ─ Q ─ DQ ─┐                                      a ─ Q ─┐
    b ─ Q ─ DQ ─ CbamGateAddRelu ─ Q ─ DQ ─ c    ──▶   b ─ Q ─ QLinearCbamGateAddRelu ─ DQ ─ c

with the scales as attributes, if all three are int8 with one scale per tensor and nobody reads the
gate's result but Q. A Q or DQ that has other readers stays for them.

Gates lowered to the plugin lose their function body, so that a missing plugin is an error. A gate
that stays native keeps its body, under a name of its own that no plugin has; so does one whose
body is not ours, which the plugin does not compute. The result is for
TensorRT's parser alone: it runs nowhere else, and is no file to pass on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from cbam_deploy.errors import BadInput
from cbam_deploy.gates.operators import (
    DOMAIN,
    PLUGIN_ATTRIBUTES,
    VERSION,
    GateOperator,
    operator_of,
)
from cbam_deploy.graphs.gate_functions import foreign_operators, gate_nodes, operator_of_function
from cbam_deploy.plugins.gate import Gate
from cbam_deploy.plugins.geometry import DeviceLimits, plan
from cbam_deploy.plugins.layouts import Dtype
from cbam_deploy.plugins.plugin_nodes import (
    CAPABILITY,
    FORMATS,
    SCALES,
    SIZES,
    PluginNode,
    fused_node,
    staged_nodes,
)
from cbam_deploy.plugins.stages import workspace_shapes

NATIVE, PLUGIN, STAGED = "native", "plugin", "staged plugin"

_DTYPES: dict[ir.DataType | None, Dtype] = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
}
# The parser then insists on an embedded kernel.
_EMBEDDED: dict[str, Any] = {**PLUGIN_ATTRIBUTES, "aot": 1}


@dataclass(frozen=True)
class Lowered:
    """One gate as TensorRT's parser gets it.

    Attributes:
        way: ``plugin`` for one node, ``staged plugin`` for several, ``native`` for its body.
        reason: why not to the plugin; empty where it was.
    """

    way: str
    reason: str = ""


def lower_gates(
    model: ir.Model, limits: DeviceLimits | None, *, batch: int = 8
) -> dict[str, Lowered]:
    """Lower every gate of `model`, in place.

    Args:
        model: a network with gate nodes and their function bodies.
        limits: of the GPU that embedded kernels are for (`plugin_nodes.embedding_limits`); None
            where no gate shall go to the plugin.
        batch: that the kernels are to be fast for.

    Returns:
        by name of the gate's node, or else of its output.
    """
    nodes = gate_nodes(model)
    if any(value.shape is None for node in nodes for value in node.inputs[:1] if value):
        common.ShapeInferencePass()(model)
    lowered, foreign = {}, foreign_operators(model)
    for node in nodes:
        name = node.name or node.outputs[0].name or ""
        try:
            if node.op_type in foreign:
                raise BadInput(foreign[node.op_type], "")
            operator = operator_of(node)
            assert operator is not None
            lowered[name] = Lowered(_to_plugin(node, operator, _required(limits), batch))
        except BadInput as error:
            lowered[name] = Lowered(NATIVE, error.message)
            _keep_native(node, model)
    common.RemoveUnusedNodesPass()(model)
    for identifier, function in list(model.functions.items()):
        if operator_of_function(function):
            del model.functions[identifier]
    model.opset_imports[DOMAIN] = VERSION
    return lowered


def _required(limits: DeviceLimits | None) -> DeviceLimits:
    if limits is None:
        raise BadInput("no plugin was asked for", "")
    return limits


def _to_plugin(node: ir.Node, operator: GateOperator, limits: DeviceLimits, batch: int) -> str:
    """Replace `node` by plugin nodes; BadInput, and nothing is changed, where there are none."""
    integers = _Integers.around(node, operator)
    kind = fused_node(operator, integers=integers is not None)
    inputs = dict(zip(kind.inputs, (_known(value, node) for value in node.inputs), strict=True))
    gate = _gate(kind, inputs, integers)
    if integers:
        inputs.update(zip(kind.maps, integers.inputs, strict=False))
    if len(plan(gate, limits, batch=batch).launches) == 1:
        scales = {scale: getattr(gate, scale) for scale in kind.scales}
        made = [_plugin_node(kind, inputs, scales, node.name)]
    else:
        made = _stages(node, inputs, gate, _splits(gate, limits, batch))
    for one in made:
        one.attributes[CAPABILITY] = ir.AttrInt64(CAPABILITY, limits.capability)
    _put_in_place(node, made, integers)
    return PLUGIN if len(made) == 1 else STAGED


@dataclass(frozen=True)
class _Integers:
    """The int8 tensors that a gate's inputs are read from and its output is written to.

    Attributes:
        inputs: X, and the residual where there is one.
        scales: of these, then of the output.
        quantizers: the Q nodes behind the gate.
    """

    inputs: tuple[ir.Value, ...]
    scales: tuple[float, ...]
    quantizers: tuple[ir.Node, ...]

    @classmethod
    def around(cls, node: ir.Node, operator: GateOperator) -> _Integers | None:
        """Those of `node`; None where it is not int8 all around."""
        maps = node.inputs[: len(operator.maps)]
        readers = [value.producer() if value is not None else None for value in maps]
        before = [_int8_scale(reader, "DequantizeLinear") for reader in readers]
        output = node.outputs[0]
        quantizers = tuple(output.consumers())
        behind = {_int8_scale(quantizer, "QuantizeLinear") for quantizer in quantizers}
        scales = (*before, *behind)
        if output.is_graph_output() or len(behind) != 1 or None in scales:
            return None
        integers = tuple(reader.inputs[0] for reader in readers if reader is not None)
        return cls(
            inputs=tuple(value for value in integers if value is not None),
            scales=tuple(scale for scale in scales if scale is not None),
            quantizers=quantizers,
        )


def _int8_scale(node: ir.Node | None, op: str) -> float | None:
    """The scale of a Q or DQ between float and int8 with one scale and no zero point, else None."""
    if node is None or node.op_type != op or node.domain not in ("", "ai.onnx"):
        return None
    integer = node.inputs[0] if op == "DequantizeLinear" else node.outputs[0]
    zero_point = node.inputs[2] if len(node.inputs) > 2 else None
    types = {value.dtype for value in (integer, zero_point) if value is not None}
    types.add(ir.DataType(node.attributes.get_int("output_dtype", 0)))
    scale, zero = _constant(node.inputs[1]), _constant(zero_point)
    if ir.DataType.INT8 not in types or scale is None or scale.size != 1:
        return None
    if zero_point is not None and (zero is None or zero.any()):
        return None
    value = float(scale.reshape(()))
    return value if 0.0 < value < float("inf") else None


def _constant(value: ir.Value | None) -> NDArray[Any] | None:
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return tensor.numpy() if tensor is not None else None


def _known(value: ir.Value | None, node: ir.Node) -> ir.Value:
    """`value`, if all of its shape but the batch is known before the network runs."""
    if value is None or value.shape is None or not all(_sizes(value)[1:]):
        raise BadInput(f"{node.op_type}: the shape of an input is not known", "")
    return value


def _sizes(value: ir.Value) -> tuple[int, ...]:
    """Shape of a value, with 0 for what is not known."""
    return tuple(size if isinstance(size, int) else 0 for size in value.shape or ())


def _gate(kind: PluginNode, inputs: dict[str, ir.Value], integers: _Integers | None) -> Gate:
    """What `kind` computes of `inputs`, the float ones, in the layout that suits it best."""
    for name, value in inputs.items():
        if name not in kind.maps and value.dtype != ir.DataType.FLOAT:
            raise BadInput(f"{kind.name}: {name} is not float32", "")
    dtype = "int8" if integers else _DTYPES.get(inputs["x"].dtype)
    shapes = {name: _sizes(value) for name, value in inputs.items()}
    if dtype is None or len(shapes["x"]) != 4:
        raise BadInput(f"{kind.name}: its input is no feature map of floats", "")
    scales = dict(zip(kind.scales, integers.scales, strict=True)) if integers else {}
    return kind.gate(shapes, scales, dtype, FORMATS[dtype][0])


def _splits(gate: Gate, limits: DeviceLimits, batch: int) -> int:
    """Parts of a channel's statistics, in the best layout that pads no channels."""
    formats = FORMATS[gate.dtype]
    layout = next(one.layout for one in formats if gate.channels % one.multiple == 0)
    staged = replace(gate, layout=layout, stored=gate.channels)
    chosen = plan(staged, limits, batch=batch, strategy="staged")
    return chosen.splits


def _stages(node: ir.Node, inputs: dict[str, ir.Value], gate: Gate, splits: int) -> list[ir.Node]:
    """The plugin nodes for a gate where the fused kernel does not run."""
    attributes = {name: getattr(gate, name) for name in (*SIZES, *SCALES) if name != "splits"}
    linear = replace(gate, layout="nchw", stored=gate.channels)
    shapes = workspace_shapes(linear, splits)
    batch = inputs["x"].shape[0] if inputs["x"].shape else None
    output, named, made = node.outputs[0].name, dict(inputs), []
    attributes["splits"] = splits
    for kind in staged_nodes(gate.operator):
        one = _plugin_node(kind, named, attributes, f"{node.name or output}/{kind.name}")
        for name, value in zip(kind.outputs, one.outputs, strict=True):
            if name in shapes:
                value.name, value.dtype = f"{output}/{name}", ir.DataType.FLOAT
                value.shape = ir.Shape([batch, *shapes[name]])
                named[name] = value
        made.append(one)
    return made


def _plugin_node(
    kind: PluginNode, named: dict[str, ir.Value], attributes: dict[str, Any], name: str | None
) -> ir.Node:
    return ir.node(
        kind.name,
        [named[key] for key in kind.inputs],
        {**_EMBEDDED, **attributes},
        domain=DOMAIN,
        num_outputs=len(kind.outputs),
        name=name,
    )


def _put_in_place(node: ir.Node, made: list[ir.Node], integers: _Integers | None) -> None:
    """Put `made` where `node`, and the Q behind it, stood; the result keeps its name."""
    graph, result = node.graph, made[-1].outputs[0]
    if graph is None:
        raise RuntimeError(f"{node.name} belongs to no graph")
    quantizers = integers.quantizers if integers else ()
    old = tuple(quantizer.outputs[0] for quantizer in quantizers) or (node.outputs[0],)
    result.type = ir.TensorType(ir.DataType.INT8) if integers else old[0].type
    result.shape = node.outputs[0].shape
    graph.insert_before(node, made)
    for value in old:
        value.replace_all_uses_with(result, replace_graph_outputs=True)
    graph.remove([*quantizers, node], safe=True)
    result.name = old[0].name


def _keep_native(node: ir.Node, model: ir.Model) -> None:
    """Rename `node` and its function so that no plugin is meant by it."""
    body = model.functions[node.op_identifier()]
    name = f"Native{node.op_type}"
    identifier = (DOMAIN, name, node.overload)
    if identifier not in model.functions:
        copy = body.clone()
        copy.name = name
        model.functions[identifier] = copy
    node.op_type = name
    for attribute in _EMBEDDED:
        node.attributes.pop(attribute, None)
