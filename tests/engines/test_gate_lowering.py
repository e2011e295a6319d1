"""Gates lowered to plugin nodes compute what the file they came from computes.

Runtimes on a CPU know no plugins. So each plugin node is given its meaning here a second time: one
node on integers as an ONNX function of DQ, gate and Q, which ONNX Runtime runs; three staged nodes
in numpy, which ONNX's reference evaluator runs.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import numpy_helper, parser
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from cbam_deploy.engines.gate_lowering import lower_gates
from cbam_deploy.exporters.int8.quantization import quantize
from cbam_deploy.gates.description import GateSpec
from cbam_deploy.gates.operators import GATE_OPERATORS, operator_for
from cbam_deploy.gates.reference import Weights, exact, mixed
from cbam_deploy.graphs.gate_functions import set_functions
from cbam_deploy.plugins.plugin_nodes import PluginNode, embedding_limits, nodes_of, staged_nodes

CHANNELS, HIDDEN = 32, 4
SMALL, LARGE = 12, 48  # edges of maps: one that a block of an Ampere GPU holds, one that it cannot
HOPPER, AMPERE = embedding_limits((9, 0)), embedding_limits((8, 0))
OPERATORS = {
    operator.name: operator
    for operator in (
        *GATE_OPERATORS.values(),
        operator_for(GateSpec(arrangement="spatial-channel", spatial="max")),
        operator_for(GateSpec(arrangement="spatial", spatial="conv1x1")),
        operator_for(GateSpec(join="gates"), residual=True),
        operator_for(GateSpec(join="pools", spatial_gate="hard_sigmoid"), activation="silu"),
    )
}
NODES = {node.name: node for operator in OPERATORS.values() for node in nodes_of(operator)}

# One gate on int8 maps, as `quantize` leaves it; `x` has another reader, which stays.
QUANTIZED = """
<ir_version: 10, opset_import: ["" : 21, "cbam_deploy" : 1]>
quantized ({float}[batch, C, S, S] x, {float}[batch, C, S, S] other)
    => ({float}[batch, C, S, S] y, {float}[batch, C, S, S] as_read)
{{
  x_integers = QuantizeLinear (x, x_scale, zero)
  x_real = DequantizeLinear (x_integers, x_scale, zero)
  r_integers = QuantizeLinear (other, r_scale, zero)
  r_real = DequantizeLinear (r_integers, r_scale, zero)
  as_read = Relu (x_real)
  gated = cbam_deploy.{op} <plugin_namespace = "cbam_deploy", plugin_version = "1">
      (x_real, {r} {weights})
  integers = QuantizeLinear (gated, y_scale, zero)
  y = DequantizeLinear (integers, y_scale, zero)
}}
"""

FLOAT = """
<ir_version: 10, opset_import: ["" : 21, "cbam_deploy" : 1]>
plain ({float}[batch, C, S, S] x, {float}[batch, C, S, S] other) => ({float}[batch, C, S, S] y)
{{
  features = Relu (x)
  y = cbam_deploy.{op} <plugin_namespace = "cbam_deploy", plugin_version = "1">
      (features, {r} {weights})
}}
"""

BLOCK = """
<ir_version: 10, opset_import: ["" : 21, "cbam_deploy" : 1]>
block ({float}[batch, C, S, S] x) => ({float}[batch, C, S, S] y)
{{
  before = Conv <kernel_shape = [1, 1]> (x, kernel)
  other = Relu (before)
  features = Conv <kernel_shape = [1, 1]> (other, kernel)
  gated = cbam_deploy.{op} <plugin_namespace = "cbam_deploy", plugin_version = "1">
      (features, {r} {weights})
  between = Conv <kernel_shape = [1, 1]> (gated, kernel)
  again = cbam_deploy.{op} <plugin_namespace = "cbam_deploy", plugin_version = "1">
      (between, {r} {weights})
  y = Conv <kernel_shape = [1, 1]> (again, kernel)
}}
"""

# What the plugin node on integers stands for.
ON_INTEGERS = """
<domain: "cbam_deploy", opset_import: ["" : 21, "cbam_deploy" : 1]>
QLinear{op} <{scales}> (X, {R} {weights}) => (Y)
{{
  {constants}
  x = DequantizeLinear (X, x_scale)
  {dequantize_r}
  gated = cbam_deploy.{op} (x, {r} {weights})
  zero = Constant <value = int8 {{0}}> ()
  Y = QuantizeLinear (gated, y_scale, zero)
}}
"""


def network(
    text: str, op: str, dtype: type = np.float32, size: int = SMALL, kernel_size: int = 7
) -> ir.Model:
    operator = OPERATORS[op]
    text = text.format(
        op=op,
        r=("r_real," if text is QUANTIZED else "other,") if operator.residual else "",
        weights=", ".join(operator.weights),
        float="float16" if dtype is np.float16 else "float",
    )
    proto = parser.parse_model(text.replace(" C, S, S", f" {CHANNELS}, {size}, {size}"))
    random = np.random.default_rng(0)
    values: dict[str, np.ndarray | np.generic] = {
        name: (random.standard_normal(shape) / 3).astype(np.float32)
        for name, shape in operator.weight_shapes(CHANNELS, HIDDEN, kernel_size).items()
    }
    values |= {"x_scale": dtype(0.023), "r_scale": dtype(0.031), "y_scale": dtype(0.017)}
    values["zero"] = np.int8(0)
    values["kernel"] = (random.standard_normal((CHANNELS, CHANNELS, 1, 1)) / 6).astype(np.float32)
    used = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name)
        for name, value in values.items()
        if name in used
    )
    for node in proto.graph.node:
        node.name = f"node_{node.output[0]}"
    model = ir.from_proto(proto)
    set_functions(model)
    return model


def maps(dtype: type = np.float32, size: int = SMALL) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    shape = (3, CHANNELS, size, size)
    return {name: random.standard_normal(shape).astype(dtype) for name in ("x", "other")}


def run(model: ir.Model | onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    onnx.checker.check_model(proto)
    options = onnxruntime.SessionOptions()
    # Left to itself, ONNX Runtime would move DQ and Q about.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)


def plugin_operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph if node.domain == "cbam_deploy"]


def with_meaning(model: ir.Model, op: str, gate: onnx.FunctionProto) -> onnx.ModelProto:
    """`model` with a body for its node on integers."""
    residual = OPERATORS[op].residual
    half = next(v for v in model.graph.inputs).dtype == ir.DataType.FLOAT16
    names = [f"{name}_scale" for name in ("x", "r", "y") if residual or name != "r"]
    cast = "Cast <to = 10>" if half else "Identity"
    function = parser.parse_function(
        ON_INTEGERS.format(
            op=op,
            scales=", ".join(names),
            constants="\n".join(
                f"{name}_attribute = Constant <value_float: float = @{name}> ()\n"
                f"{name} = {cast} ({name}_attribute)"
                for name in names
            ),
            R="R," if residual else "",
            r="r," if residual else "",
            dequantize_r="r = DequantizeLinear (R, r_scale)" if residual else "",
            weights=", ".join(OPERATORS[op].weights),
        )
    )
    proto = ir.to_proto(model)
    proto.functions.extend([function, gate])
    return proto


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("op", OPERATORS)
def test_int8_gate_absorbs_dq_and_q_and_computes_the_same_bits(op, dtype):
    model = network(QUANTIZED, op, dtype)
    gate = ir.to_proto(model).functions[0]
    expected = run(model, maps(dtype))
    lowered = lower_gates(model, HOPPER)
    assert {name: one.way for name, one in lowered.items()} == {"node_gated": "plugin"}
    assert plugin_operators(model) == [f"QLinear{op}"]
    for found, wanted in zip(
        run(with_meaning(model, op, gate), maps(dtype)), expected, strict=True
    ):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("op", OPERATORS)
def test_network_as_quantize_leaves_it_computes_the_same_bits(op):
    feeds = {"x": maps()["x"]}
    model, _ = quantize(network(BLOCK, op), [feeds["x"]], method="minmax")
    expected = run(model, feeds)
    gate = ir.to_proto(model).functions[0]
    lowered = lower_gates(model, HOPPER)
    assert {one.way for one in lowered.values()} == {"plugin"}
    assert plugin_operators(model) == [f"QLinear{op}"] * 2
    for found, wanted in zip(run(with_meaning(model, op, gate), feeds), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_int8_gate_reads_what_q_wrote_and_leaves_dq_to_its_other_readers():
    model = network(QUANTIZED, "CbamGateAddRelu")
    lower_gates(model, HOPPER)
    producers = {value.name: node for node in model.graph for value in node.outputs}
    gate = producers["integers"]
    assert [value.name for value in gate.inputs[:2]] == ["x_integers", "r_integers"]
    assert gate.outputs[0].dtype == ir.DataType.INT8
    assert producers["as_read"].inputs[0].producer().op_type == "DequantizeLinear"
    assert "r_real" not in producers
    expected = {"x_scale": 0.023, "r_scale": 0.031, "y_scale": 0.017, "aot": 1}
    for name, value in expected.items():
        assert gate.attributes[name].value == np.float32(value)


@pytest.mark.parametrize(
    "spoil",
    ["scale per channel", "uint8", "zero point", "float reader", "two scales", "network output"],
)
def test_gate_that_is_not_int8_all_around_stays_between_dq_and_q(spoil):
    proto = ir.to_proto(network(QUANTIZED, "CbamGateAddRelu"))
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    if spoil == "scale per channel":
        scale = numpy_helper.from_array(np.full(CHANNELS, 0.031, np.float32), "r_scale")
        weights["r_scale"].CopyFrom(scale)
    elif spoil == "uint8":
        weights["zero"].CopyFrom(numpy_helper.from_array(np.uint8(0), "zero"))
    elif spoil == "zero point":
        weights["zero"].CopyFrom(numpy_helper.from_array(np.int8(3), "zero"))
    else:
        name, dtype = "seen", onnx.TensorProto.FLOAT
        if spoil == "float reader":
            proto.graph.node.append(onnx.helper.make_node("Relu", ["gated"], [name], name=name))
        elif spoil == "two scales":
            reads, dtype = ["gated", "r_scale", "zero"], onnx.TensorProto.INT8
            proto.graph.node.append(onnx.helper.make_node("QuantizeLinear", reads, [name]))
        else:
            name = "gated"
        proto.graph.output.append(onnx.helper.make_tensor_value_info(name, dtype, None))
    del proto.graph.value_info[:]  # these are no longer true
    model = ir.from_proto(proto)
    assert lower_gates(model, HOPPER)["node_gated"].way == "plugin"
    assert plugin_operators(model) == ["CbamGateAddRelu"]
    assert "gated" in {value.name for node in model.graph for value in node.outputs}


@pytest.mark.parametrize("op", OPERATORS)
def test_float_gate_becomes_one_plugin_node_without_a_body(op):
    model = network(FLOAT, op)
    assert lower_gates(model, HOPPER)["node_y"].way == "plugin"
    (gate,) = (node for node in model.graph if node.domain == "cbam_deploy")
    assert gate.op_type == op
    given = {name: attribute.value for name, attribute in gate.attributes.items()}
    named = {"plugin_namespace": "cbam_deploy", "plugin_version": "1", "aot": 1}
    assert given == {**named, "capability": HOPPER.capability}
    assert not model.functions
    onnx.checker.check_model(ir.to_proto(model))


class Staged:
    """What the nodes of one gate compute, in float64; see ``plugins/kernels/staged.cuh``.

    Between the nodes travel sum and maximum per channel, mean and maximum per position, as far as
    the gate has them; gates hold the scales of int8 maps as `unit` says.
    """

    def __init__(self, node: PluginNode, inputs: dict[str, np.ndarray], of: dict[str, Any]) -> None:
        self.node, self.of, self.spec = node, of, node.operator.gate
        self.inputs = {name: value.astype(np.float64) for name, value in inputs.items()}
        names = [name.lower() for name in node.operator.weights]
        self.weights = Weights(**{name: inputs[name] for name in names if name in inputs})

    def unit(self, part: str) -> float:
        """The scales in the gate of a part."""
        first = self.spec.arrangement.split("-")[0] in (part, "sum", "parallel")
        last = self.spec.arrangement.split("-")[-1] in (part, "sum")
        last |= part == "spatial" and self.spec.arrangement == "parallel"
        first &= not (part == "spatial" and self.spec.arrangement == "parallel")
        passes = self.node.operator.activation in ("none", "relu", "leaky_relu")
        by = self.of["y_scale"] if last and passes else 1.0
        return (self.of["x_scale"] if first else 1.0) / by

    def statistics(self) -> np.ndarray:
        x = self.inputs["x"]
        if "pooled" in self.inputs:
            x = x * self.spatial_gate()
        parts = np.array_split(x.reshape(*x.shape[:2], -1), self.of["splits"], axis=2)
        pools = {"avg": (np.sum,), "max": (np.max,), "avg+max": (np.sum, np.max)}
        found = [[pool(part, 2) for pool in pools[self.spec.channel_pool]] for part in parts]
        return np.moveaxis(np.array(found), (0, 1), (1, 3))

    def channel_gates(self) -> np.ndarray:
        partials, pooled = self.inputs["partials"], []
        scale = 1.0 if self.spec.arrangement == "spatial-channel" else self.of["x_scale"]
        if self.spec.channel_pool != "max":
            positions = self.of["height"] * self.of["width"]
            pooled.append(partials[..., 0].sum(1) / positions * scale)
        if self.spec.channel_pool != "avg":
            pooled.append(partials[..., -1].max(1) * scale)
        if self.spec.join == "pools":
            pooled = [np.mean(pooled, axis=0)]
        logits = [mixed(self.spec, self.weights, exact(one)).value for one in pooled]
        if self.spec.join != "gates":
            logits = [np.sum(logits, axis=0)]
        gates = [exact(one).gate(self.spec.channel_gate).value for one in logits]
        return np.sum(gates, axis=0) * self.unit("channel")

    def pooled(self, gates: np.ndarray | None) -> np.ndarray:
        x = self.inputs["x"]
        gated = self.spec.arrangement == "channel-spatial"
        if gated:
            assert gates is not None
            x = x * gates[:, :, None, None]
        else:
            x = x * self.of["x_scale"]
        if self.spec.spatial == "conv1x1":
            return np.sum(x * self.inputs["wd"], axis=1)[..., None]
        pools = {"avg": (np.mean,), "max": (np.max,), "pool": (np.mean, np.max)}
        return np.stack([pool(x, axis=1) for pool in pools[self.spec.spatial]], axis=-1)

    def spatial_gate(self) -> np.ndarray:
        pooled, ws = self.inputs["pooled"], self.inputs["ws"]
        reach, (height, width) = ws.shape[-1] // 2, pooled.shape[1:3]
        padded = np.pad(pooled, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
        logits = np.full(pooled.shape[:3], float(self.inputs["bs"][0]))
        for dy in range(ws.shape[-1]):
            for dx in range(ws.shape[-1]):
                window = padded[:, dy : dy + height, dx : dx + width]
                # pooled holds mean and maximum, WS maximum and mean.
                logits += window @ ws[0, ::-1, dy, dx]
        gates = exact(logits).gate(self.spec.spatial_gate).value
        return gates[:, None] * self.unit("spatial")

    def y(self) -> np.ndarray:
        x, of, last = self.inputs["x"], self.of, self.node.operator.activation
        gates = []
        if "channel_gates" in self.inputs:
            gates.append(self.inputs["channel_gates"][:, :, None, None])
        if "pooled" in self.inputs:
            gates.append(self.spatial_gate())
        y = x * (sum(gates) if self.spec.arrangement == "sum" else math.prod(gates))
        by = of["y_scale"] if last in ("none", "relu", "leaky_relu") else 1.0
        if "r" in self.inputs:
            y = y + self.inputs["r"] * (of["r_scale"] / by)
        if last != "none":
            y = exact(y).activated(last).value
        return y / (of["y_scale"] / by)


def staged_operator(name: str) -> type[OpRun]:
    node = NODES[name]

    def evaluate(*inputs, **of):
        given = dict(zip(node.inputs, inputs, strict=True))
        staged = Staged(node, given, of)
        if node.stage == "channel_statistics":
            return (staged.statistics().astype(np.float32),)
        if node.stage == "apply":
            y = staged.y()
            if given["x"].dtype == np.int8:
                y = np.clip(np.rint(y), -128, 127)
            return (y.astype(given["x"].dtype),)
        gates = given.get("channel_gates")
        if "partials" in given:
            gates = staged.channel_gates()
        made = {"channel_gates": gates}
        if "pooled" in node.outputs:
            made["pooled"] = staged.pooled(gates)
        return tuple(made[name].astype(np.float32) for name in node.outputs)

    class Stage(OpRun):
        op_domain = "cbam_deploy"

        def _run(self, *inputs, **of):
            return evaluate(*inputs, **of)

    return type(name, (Stage,), {})


def evaluated(model: ir.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    operators = [staged_operator(name) for name, node in NODES.items() if node.stage != "fused"]
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    return [*ReferenceEvaluator(proto, new_ops=operators).run(None, feeds)]


@pytest.mark.parametrize("op", OPERATORS)
def test_float_gate_expands_into_staged_nodes_that_compute_the_same(op):
    model, feeds = network(FLOAT, op, size=LARGE), maps(size=LARGE)
    (expected,) = run(model, feeds)
    assert lower_gates(model, AMPERE)["node_y"].way == "staged plugin"
    assert plugin_operators(model) == [one.name for one in staged_nodes(OPERATORS[op])]
    assert not model.functions
    (found,) = evaluated(model, feeds)
    np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("op", OPERATORS)
def test_int8_gate_expands_into_staged_nodes_on_integers(op):
    model, feeds = network(QUANTIZED, op, size=LARGE), maps(size=LARGE)
    expected = run(model, feeds)
    assert lower_gates(model, AMPERE)["node_gated"].way == "staged plugin"
    found = evaluated(model, feeds)
    # One step where FP32 and float64 round to different integers, which is rare.
    difference = np.abs(found[0] - expected[0])
    assert difference.max() <= 0.017 * 1.001
    assert (difference > 0.001).mean() < 1e-3
    np.testing.assert_array_equal(found[1], expected[1])


def test_statistics_between_staged_nodes_have_types_and_shapes():
    model = network(FLOAT, "CbamGate", size=LARGE)
    lower_gates(model, AMPERE)
    values = {value.name: value for node in model.graph for value in node.outputs}
    splits = values["y/partials"].producer().attributes["splits"].value
    shapes = {
        "y/partials": ["batch", splits, CHANNELS, 2],
        "y/channel_gates": ["batch", CHANNELS],
        "y/pooled": ["batch", LARGE, LARGE, 2],
        "y": ["batch", CHANNELS, LARGE, LARGE],
    }
    for name, shape in shapes.items():
        assert values[name].dtype == ir.DataType.FLOAT
        assert [getattr(size, "value", size) for size in values[name].shape] == shape


def test_gate_without_a_kernel_stays_native_and_says_why():
    model = network(FLOAT, "CbamGate", kernel_size=17)
    (expected,) = run(model, maps())
    lowered = lower_gates(model, HOPPER)["node_y"]
    assert lowered.way == "native"
    assert "kernel size 17" in lowered.reason
    (gate,) = (node for node in model.graph if node.domain == "cbam_deploy")
    assert gate.op_type == "NativeCbamGate", "the plugin's name would be found first"
    assert not gate.attributes
    np.testing.assert_array_equal(run(model, maps())[0], expected)


def test_no_gate_goes_to_the_plugin_unasked():
    model = network(QUANTIZED, "SeGateAddRelu")
    expected = run(model, maps())
    assert lower_gates(model, None)["node_gated"].way == "native"
    assert plugin_operators(model) == ["NativeSeGateAddRelu"]
    for found, wanted in zip(run(model, maps()), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
