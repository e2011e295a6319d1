"""Gates lowered to the plugin compute what the file they came from computes.

Runtimes on a CPU know no plugins. So each plugin node is given its meaning here a second time, as
an ONNX function: the gate's own body, between DQ and Q with the scales of its launch program where
the maps are integers. What the programs' launches compute is for the tests of the library to show.
"""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import numpy_helper, parser

from cbam_deploy.errors import BadInput
from cbam_deploy.exporters.int8.quantization import quantize
from cbam_deploy.gates.description import GateSpec
from cbam_deploy.gates.operators import GATE_OPERATORS, operator_for
from cbam_deploy.graphs.gate_functions import set_functions
from cbam_deploy.plugins.compile import CompiledKernels
from cbam_deploy.plugins.geometry import KNOWN_DEVICES
from cbam_deploy.plugins.launch_program import read_program, text
from cbam_deploy.plugins.lowering import lower_gates, programs

CHANNELS, HIDDEN, SIZE = 32, 4, 12
ORIN, HOPPER = KNOWN_DEVICES[87], KNOWN_DEVICES[90]
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

CHAIN = """
<ir_version: 10, opset_import: ["" : 21, "cbam_deploy" : 1]>
chain ({float}[batch, C, S, S] x, {float}[batch, C, S, S] other) => ({float}[batch, C, S, S] y)
{{
  x_integers = QuantizeLinear (x, x_scale, zero)
  x_real = DequantizeLinear (x_integers, x_scale, zero)
  first = cbam_deploy.{op} (x_real, {r} {weights})
  first_integers = QuantizeLinear (first, y_scale, zero)
  first_real = DequantizeLinear (first_integers, y_scale, zero)
  second = cbam_deploy.{op} (first_real, {r} {weights})
  second_integers = QuantizeLinear (second, r_scale, zero)
  y = DequantizeLinear (second_integers, r_scale, zero)
}}
"""

# What a plugin node stands for.
MEANING = """
<domain: "meaning", opset_import: ["" : 21, "cbam_deploy" : 1]>
Node{number} (X, {R} {weights}) => (Y)
{{
  {before}
  gated = cbam_deploy.{op} ({x}, {r} {weights})
  {behind}
}}
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Kernels are not compiled: what there is of them in a file is for other tests to show."""
    monkeypatch.setattr("cbam_deploy.plugins.images.compile_kernels", compiled)


def compiled(kernels, architecture):
    (kernel,) = kernels
    image = f"{kernel.name} {architecture}".encode()
    return CompiledKernels(architecture, image, (kernel.name,), "", b".version 9.0\n\0")


def network(
    text: str, op: str, dtype: type = np.float32, size: int | str = SIZE, kernel_size: int = 7
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


def maps(dtype: type = np.float32) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    shape = (3, CHANNELS, SIZE, SIZE)
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


def gate_operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph if node.domain in ("cbam_deploy", "trt.plugins")]


def scales(program) -> list[float]:
    """Of x, r and y: the last three integers of every last launch, which read as floats."""
    found = {
        tuple(one for one in tactic.launches[-1].arguments if isinstance(one, int))[-3:]
        for target in program.targets
        for form in target.formats
        for tactic in form.tactics
    }
    (bits,) = found
    return [struct.unpack("<f", struct.pack("<i", one))[0] for one in bits]


def with_meaning(model: ir.Model, op: str, gate: onnx.FunctionProto) -> onnx.ModelProto:
    """`model` with a body for each of its plugin nodes."""
    operator, proto = OPERATORS[op], ir.to_proto(model)
    half = next(v for v in model.graph.inputs).dtype == ir.DataType.FLOAT16
    of_nodes = programs(model)
    for number, node in enumerate(n for n in proto.graph.node if n.domain == "trt.plugins"):
        program = of_nodes[node.name]
        integers = program.targets[0].formats[0].dtype == "int8"
        names = ("x", "r", "y") if operator.residual else ("x", "y")
        assert program.inputs == tuple(name.lower() for name in operator.inputs)
        before, behind = [], ["Y = Identity (gated)"]
        if integers:
            of = dict(zip(("x", "r", "y"), scales(program), strict=True))
            for name in names:
                cast = "Cast <to = 10>" if half else "Identity"
                before += [
                    f"{name}_float = Constant <value = float {{{of[name]!r}}}> ()",
                    f"{name}_scale = {cast} ({name}_float)",
                ]
            before += [
                f"{name} = DequantizeLinear ({name.upper()}, {name}_scale)" for name in names[:-1]
            ]
            zero = "zero = Constant <value = int8 {0}> ()"
            behind = [zero, "Y = QuantizeLinear (gated, y_scale, zero)"]
        function = MEANING.format(
            number=number,
            op=op,
            R="R," if operator.residual else "",
            x="x" if integers else "X",
            r=("r," if integers else "R,") if operator.residual else "",
            weights=", ".join(operator.weights),
            before="\n".join(before),
            behind="\n".join(behind),
        )
        proto.functions.append(parser.parse_function(function))
        node.op_type, node.domain = f"Node{number}", "meaning"
        del node.attribute[:]
    proto.functions.append(gate)
    proto.opset_import.append(onnx.helper.make_opsetid("meaning", 1))
    return proto


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("op", OPERATORS)
def test_int8_gate_absorbs_dq_and_q_and_computes_the_same_bits(op, dtype):
    model = network(QUANTIZED, op, dtype)
    gate = ir.to_proto(model).functions[0]
    expected = run(model, maps(dtype))
    lowered = lower_gates(model, [HOPPER])
    assert {name: one.way for name, one in lowered.items()} == {"node_gated": "plugin"}
    assert gate_operators(model) == ["FusedGate"]
    for found, wanted in zip(
        run(with_meaning(model, op, gate), maps(dtype)), expected, strict=True
    ):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("op", [*OPERATORS][::3])
def test_network_as_quantize_leaves_it_computes_the_same_bits(op):
    feeds = {"x": maps()["x"]}
    model, _ = quantize(network(BLOCK, op), [feeds["x"]], method="minmax")
    expected = run(model, feeds)
    gate = ir.to_proto(model).functions[0]
    lowered = lower_gates(model, [HOPPER])
    assert {one.way for one in lowered.values()} == {"plugin"}
    assert gate_operators(model) == ["FusedGate"] * 2
    for found, wanted in zip(run(with_meaning(model, op, gate), feeds), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("op", OPERATORS)
def test_float_gate_becomes_one_node_without_a_body_that_reads_what_the_gate_read(op):
    model = network(FLOAT, op)
    gate = ir.to_proto(model).functions[0]
    expected = run(model, maps())
    assert lower_gates(model, [ORIN])["node_y"].way == "plugin"
    assert gate_operators(model) == ["FusedGate"]
    assert not model.functions
    np.testing.assert_array_equal(run(with_meaning(model, op, gate), maps())[0], expected[0])


def test_a_lowered_file_says_all_that_tensorrt_looks_for():
    proto = ir.to_proto(network(FLOAT, "CbamGateAddRelu", np.float16))
    model = ir.from_proto(proto)
    (lowered,) = lower_gates(model, [ORIN, HOPPER]).values()
    made = ir.to_proto(model)
    onnx.checker.check_model(made)
    assert made.ir_version == proto.ir_version
    opsets = {entry.domain: entry.version for entry in made.opset_import}
    assert opsets == {"": 21, "cbam_deploy": 1, "trt.plugins": 1}
    (node,) = (node for node in made.graph.node if node.domain == "trt.plugins")
    attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    assert attributes["plugin_namespace"] == b"cbam_deploy"
    assert attributes["plugin_version"] == b"1"
    assert attributes["program"].decode() == text(lowered.program)
    images = numpy_helper.to_array(attributes["images"])
    assert (images.dtype, images.shape) == (np.int8, (lowered.carried_bytes,))
    assert [target.capability for target in lowered.program.targets] == [87, 90]
    assert lowered.program.gate == "CbamGateAddRelu on 32x12x12 at node_y"


def check_images(program, carried: bytes) -> None:
    """Every launch has machine code for its target, and PTX that its target's GPU can translate."""
    images = {(image.entry, image.architecture): image for image in program.images}
    for target in program.targets:
        for launch in (
            launch
            for form in target.formats
            for tactic in form.tactics
            for launch in tactic.launches
        ):
            assert (launch.entry, f"sm_{target.capability}") in images
            ptx = [int(to[8:]) for entry, to in images if entry == launch.entry and to[0] == "c"]
            assert len(ptx) == 1
            assert ptx[0] <= target.capability
    for image in program.images:
        if image.offset is not None:
            content = carried[image.offset : image.offset + image.bytes]
            assert image.key == hashlib.sha256(content).hexdigest()[:16]


def test_gates_of_one_network_share_their_images_and_the_first_carries_them():
    model = network(BLOCK, "CbamGateAddRelu")
    first, second = lower_gates(model, [ORIN, HOPPER]).values()
    nodes = [node for node in ir.to_proto(model).graph.node if node.domain == "trt.plugins"]
    carried = [
        numpy_helper.to_array(entry.t).tobytes()
        for node in nodes
        for entry in node.attribute
        if entry.name == "images"
    ]
    assert first.carried_bytes == len(carried[0]) == sum(one.bytes for one in first.program.images)
    assert second.carried_bytes == 0
    assert carried[1] == b"\0"
    assert {image.offset for image in second.program.images} == {None}
    assert {image.key for image in first.program.images} == {
        image.key for image in second.program.images
    }
    check_images(first.program, carried[0])
    check_images(second.program, carried[1])


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_every_format_and_parameter_is_one_that_the_library_knows(dtype):
    source = QUANTIZED if dtype == "int8" else FLOAT
    model = network(source, "CbamGateAddRelu", np.float16 if dtype == "float16" else np.float32)
    (lowered,) = lower_gates(model, [ORIN, HOPPER]).values()
    program = lowered.program
    layouts = {"float32": ["LINEAR", "HWC"], "float16": ["HWC8", "LINEAR"]}
    for target in program.targets:
        assert {form.dtype for form in target.formats} == {dtype}
        offered = [form.layout for form in target.formats]
        assert offered == layouts.get(dtype, ["CHW32", "HWC16", "LINEAR"])
        for tactic in (tactic for form in target.formats for tactic in form.tactics):
            names = {*program.inputs, "y", "batch", *(name for name, _ in tactic.buffers)}
            words = [word for launch in tactic.launches for word in launch.arguments]
            assert {word for word in words if isinstance(word, str)} <= names
            assert "y" in words
    assert read_program(text(program)) == program


def test_int8_gates_in_a_row_hand_on_integers():
    model = network(CHAIN, "SeGate")
    gate = ir.to_proto(model).functions[0]
    expected = run(model, maps())
    lower_gates(model, [ORIN])
    assert [node.op_type for node in model.graph] == [
        "QuantizeLinear",
        "FusedGate",
        "FusedGate",
        "DequantizeLinear",
    ]
    np.testing.assert_array_equal(run(with_meaning(model, "SeGate", gate), maps())[0], expected[0])


def test_int8_gate_reads_what_q_wrote_and_leaves_dq_to_its_other_readers():
    model = network(QUANTIZED, "CbamGateAddRelu")
    (lowered,) = lower_gates(model, [HOPPER]).values()
    producers = {value.name: node for node in model.graph for value in node.outputs}
    gate = producers["integers"]
    assert [value.name for value in gate.inputs[:2]] == ["x_integers", "r_integers"]
    assert gate.outputs[0].dtype == ir.DataType.INT8
    assert producers["as_read"].inputs[0].producer().op_type == "DequantizeLinear"
    assert "r_real" not in producers
    assert scales(lowered.program) == [np.float32(value) for value in (0.023, 0.031, 0.017)]


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
    lowered = lower_gates(model, [HOPPER])["node_gated"]
    assert lowered.way == "plugin"
    assert {form.dtype for form in lowered.program.targets[0].formats} == {"float32"}
    assert "gated" in {value.name for node in model.graph for value in node.outputs}


def test_gate_without_a_kernel_stays_native_and_says_why():
    model = network(FLOAT, "CbamGate", kernel_size=17)
    before = ir.to_proto(model)
    lowered = lower_gates(model, [HOPPER])["node_y"]
    assert lowered.way == "native"
    assert "kernel size 17" in lowered.reason
    after = ir.to_proto(model)
    assert list(after.graph.node) == list(before.graph.node)
    assert list(after.functions) == list(before.functions)


def test_gate_of_free_sizes_stays_native_and_says_which():
    model = network(FLOAT, "SeGate", size="side")
    lowered = lower_gates(model, [HOPPER])["node_y"]
    assert lowered.way == "native"
    assert lowered.reason == "SeGate: its kernels are for fixed sizes, side is free"
    assert gate_operators(model) == ["SeGate"]
    assert [name for _, name, _ in model.functions] == ["SeGate"]


def test_gates_of_one_name_are_all_lowered():
    model = network(BLOCK, "SeGateAddRelu")
    for node in model.graph:
        node.name = "the same"
    lowered = lower_gates(model, [HOPPER])
    assert list(lowered) == list(programs(model)) == ["the same", "the same.2"]
    assert gate_operators(model) == ["FusedGate", "FusedGate"]


def test_a_native_gate_keeps_its_body_beside_lowered_ones():
    proto = ir.to_proto(network(BLOCK, "SeGateAddRelu"))
    another = onnx.FunctionProto.FromString(proto.functions[0].SerializeToString())
    another.name = "SeGateAddSilu"  # whose body then is not ours
    proto.functions.append(another)
    gates = [node for node in proto.graph.node if node.domain == "cbam_deploy"]
    gates[1].op_type = another.name
    model = ir.from_proto(proto)
    ways = {name: one.way for name, one in lower_gates(model, [HOPPER]).items()}
    assert ways == {"node_gated": "plugin", "node_again": "native"}
    assert gate_operators(model) == ["FusedGate", "SeGateAddSilu"]
    assert [name for _, name, _ in model.functions] == ["SeGateAddSilu"]


def test_a_damaged_program_is_named_with_its_gate():
    model = network(FLOAT, "SeGate")
    lower_gates(model, [ORIN])
    gate = next(node for node in model.graph if node.domain == "trt.plugins")
    gate.attributes["program"] = ir.AttrString("program", "cbam_deploy 1\nlaunch x\n")
    with pytest.raises(BadInput, match="gate node_y: line 2 of its launch program"):
        programs(model)
