"""INT8: where Q and DQ stand, what they compute, and what is refused."""

from __future__ import annotations

import half_networks
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from int8_network import CHANNELS, QUANTIZED, forward, images, network, weights

from cbam_deploy.errors import BadInput
from cbam_deploy.exporters.half.conversion import to_half
from cbam_deploy.exporters.half.rounding import round_in_fp32
from cbam_deploy.exporters.int8.feature_maps import float_feature_maps
from cbam_deploy.exporters.int8.int8_nodes import int8_nodes
from cbam_deploy.exporters.int8.quantization import quantize

# Scales are rounded to float32 once: half a unit in the last place of 24 bits, and once more in
# the float32 convolution that gives an activation's largest magnitude (sums of up to 144 terms).
WEIGHT_SCALE_RTOL = 2.0**-23
ACTIVATION_SCALE_RTOL = 144 * 2.0**-24


@pytest.fixture(scope="module")
def quantized():
    model, _ = quantize(network(), [images(8)], method="minmax")
    return model


def producer(value):
    node = value.producer()
    return node.op_type if node else None


def node_named(model, name):
    return next(node for node in model.graph if node.name == name)


def readers(model, name):
    value = next(v for node in model.graph for v in node.inputs if v and v.name == name)
    return [use.node for use in value.uses()]


def constant(model, name):
    return model.graph.initializers[name].const_value.numpy()


def run(model, x, names):
    proto = ir.to_proto(model)
    own = {output.name for output in proto.graph.output}
    proto.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in names
        if name not in own
    )
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    return dict(zip(names, session.run(list(names), {"input": x}), strict=True))


def scales_in(model):
    return {
        node.inputs[0].name: float(node.inputs[1].const_value.numpy())
        for node in model.graph
        if node.op_type == "QuantizeLinear"
    }


def test_exactly_the_tensors_of_the_rules_are_quantized(quantized):
    assert set(scales_in(quantized)) == set(QUANTIZED)


def test_every_tensor_is_within_one_step_of_the_fake_quantized_float64_network(quantized):
    scales, x = scales_in(quantized), images(16, seed=1)
    actual = run(quantized, x, [name for name in QUANTIZED if name != "input"])
    expected = forward(x, scales, given={"input": x, **actual})
    for name, values in actual.items():
        # A value at half a step may round either way in float32: then max pooling is a step off.
        assert np.abs(values - expected[name]).max() <= scales[name] * (1 + 1e-5), name


def test_the_logits_are_those_of_the_fake_quantized_float64_network(quantized):
    scales, x = scales_in(quantized), images(16, seed=1)
    actual, expected = run(quantized, x, ["logits"]), forward(x, scales)
    # One step of the classifier's input, through the largest row of its weight.
    tolerance = scales["mean"] * np.abs(weights()["fc"]).sum(axis=1).max()
    assert np.abs(actual["logits"] - expected["logits"]).max() <= tolerance


def test_minmax_scales_are_the_largest_magnitude_over_127(quantized):
    values = forward(images(8))
    for name, scale in scales_in(quantized).items():
        # A maximum pooling hands on the scale of what it reads.
        source = "r1" if name == "pooled" else name
        expected = np.abs(values[source]).max() / 127
        assert scale == pytest.approx(expected, rel=ACTIVATION_SCALE_RTOL), name


@pytest.mark.parametrize("name", ["w1", "w2", "w3", "w4", "w5", "fc"])
def test_weights_have_one_scale_per_output_channel_and_round_halves_to_even(quantized, name):
    weight = weights()[name].astype(np.float64)
    scale = constant(quantized, f"{name}_scale")
    expected = np.abs(weight).reshape(len(weight), -1).max(axis=1) / 127
    np.testing.assert_allclose(scale, expected, rtol=WEIGHT_SCALE_RTOL)
    by_channel = scale.reshape(-1, *[1] * (weight.ndim - 1)).astype(np.float64)
    steps = constant(quantized, f"{name}_quantized")
    assert steps.dtype == np.int8
    # float32 and float64 may see another side of a half, nothing more.
    assert np.abs(steps - weight / by_channel).max() <= 0.5 + 127 * 2.0**-22


def test_zero_points_are_zero_and_int8(quantized):
    points = [
        node.inputs[2].const_value.numpy()
        for node in quantized.graph
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
    ]
    assert points
    assert all(point.dtype == np.int8 and not point.any() for point in points)


@pytest.mark.parametrize(
    ("operator", "attributes", "shape", "axis"),
    [
        ("Gemm", {"transB": 1}, (10, CHANNELS), 0),
        ("Gemm", {}, (CHANNELS, 10), 1),
        ("MatMul", {}, (CHANNELS, 10), 1),
    ],
)
def test_a_classifier_has_one_scale_per_class(operator, attributes, shape, axis):
    model = network()
    last = node_named(model, "node_logits")
    random = np.random.default_rng(3)
    weight = ir.tensor(random.standard_normal(shape).astype(np.float32))
    model.graph.initializers["fc"].const_value = weight
    model.graph.initializers["fc"].shape = ir.Shape(shape)
    inputs = list(last.inputs[: 2 if operator == "MatMul" else 3])
    output = last.outputs[0]
    new = ir.node(operator, inputs, attributes=attributes, name="classifier")
    model.graph.append(new)
    new.outputs[0].shape, new.outputs[0].dtype = output.shape, output.dtype
    model.graph.outputs[0] = new.outputs[0]
    output.name, new.outputs[0].name = "unused", "logits"
    model.graph.remove(last, safe=True)
    quantized, _ = quantize(model, [images(2)], method="minmax")
    (dequantize,) = (n for n in quantized.graph if "fc_quantized" in [v.name for v in n.inputs])
    assert dequantize.attributes.get_int("axis", 1) == axis
    expected = np.abs(weight.numpy()).max(axis=1 - axis) / 127
    np.testing.assert_allclose(constant(quantized, "fc_scale"), expected, rtol=WEIGHT_SCALE_RTOL)


def test_both_users_of_a_residual_read_the_same_dequantized_tensor(quantized):
    for convolution, user in (("node_c2", "node_gated"), ("node_c4", "node_added")):
        first, second = node_named(quantized, convolution), node_named(quantized, user)
        assert first.inputs[0] is second.inputs[1]
        assert producer(first.inputs[0]) == "DequantizeLinear"


def test_an_addition_reads_the_convolution_fused_into_it_as_it_is(quantized):
    assert producer(node_named(quantized, "node_added").inputs[0]) == "Conv"


def test_an_activation_directly_follows_its_convolution_or_addition(quantized):
    relus = [node for node in quantized.graph if node.op_type == "Relu"]
    assert sorted(producer(node.inputs[0]) for node in relus) == ["Add", "Conv", "Conv", "Conv"]
    for relu in relus:
        assert [use.node.op_type for use in relu.outputs[0].uses()] == ["QuantizeLinear"]


def test_a_gate_stands_between_dq_and_q_and_keeps_its_weights_and_attributes(quantized):
    gate = node_named(quantized, "node_gated")
    assert [producer(value) for value in gate.inputs[:2]] == ["DequantizeLinear"] * 2
    assert [use.node.op_type for use in gate.outputs[0].uses()] == ["QuantizeLinear"]
    for value in gate.inputs[2:]:
        np.testing.assert_array_equal(value.const_value.numpy(), weights()[value.name])
    assert gate.attributes.get_string("plugin_namespace") == "cbam_deploy"
    assert gate.attributes.get_string("plugin_version") == "1"
    (function,) = quantized.functions.values()
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in function}


def test_biases_stay_float(quantized):
    for node in quantized.graph:
        if node.op_type in ("Conv", "Gemm"):
            bias = node.inputs[2]
            np.testing.assert_array_equal(bias.const_value.numpy(), weights()[bias.name])


def test_maximum_pooling_has_one_scale_before_and_behind(quantized):
    pool = node_named(quantized, "node_pooled")
    (behind,) = readers(quantized, "pooled")
    assert pool.inputs[0].producer().inputs[1] is behind.inputs[1]


def test_no_feature_map_travels_as_float(quantized):
    assert float_feature_maps(quantized) == ()


def test_every_feature_map_of_a_float_network_travels_as_float():
    # All but those that are fused: c1, c2, c4 and added into a ReLU, c5 into the addition.
    expected = ("r1", "pooled", "r2", "c3", "gated", "r4", "summed")
    model, _ = quantize(network(), [images(2)], method="minmax", keep_float=ALL_NODES)
    assert float_feature_maps(model) == expected


ALL_NODES = [
    f"node_{name}"
    for name in ("c1", "pooled", "c2", "c3", "gated", "c4", "c5", "added", "mean", "logits")
]


@pytest.mark.parametrize(
    ("bypassed", "expected"), [("r2", ("r2",)), ("c3", ("c3",)), ("summed", ("summed",))]
)
def test_a_missing_q_shows_as_a_float_feature_map(quantized, bypassed, expected):
    broken = quantized.clone()
    (q,) = (
        n for n in broken.graph if n.op_type == "QuantizeLinear" and n.inputs[0].name == bypassed
    )
    (dq,) = (use.node for use in q.outputs[0].uses())
    dq.outputs[0].replace_all_uses_with(q.inputs[0])
    broken.graph.remove([dq, q], safe=True)
    assert float_feature_maps(broken) == expected


def test_an_operation_between_convolution_and_q_shows_as_a_float_feature_map(quantized):
    broken = quantized.clone()
    (q,) = readers(broken, "r2")
    square = ir.node("Mul", [q.inputs[0], q.inputs[0]], name="square")
    square.outputs[0].name, square.outputs[0].shape = "squared", q.inputs[0].shape
    broken.graph.insert_before(q, square)
    q.replace_input_with(0, square.outputs[0])
    assert float_feature_maps(broken) == ("r2",)


@pytest.mark.parametrize("product", ["Conv", "ConvTranspose"])
def test_what_is_fused_behind_a_product_is_int8_for_nodes_and_for_maps(product):
    text = f"""
    (float[1, 4, 4, 4] x) => (float[1, 4, 4, 4] y) {{
      xq = QuantizeLinear (x, scale)
      xd = DequantizeLinear (xq, scale)
      wd = DequantizeLinear (w, scale)
      product = {product} (xd, wd)
      active = Relu (product)
      yq = QuantizeLinear (active, scale)
      y = DequantizeLinear (yq, scale)
    }}
    """
    weights = {"w": np.ones((4, 4, 1, 1), np.int8), "scale": np.float32(0.1)}
    model = half_networks.network(text, **weights)
    assert {node.op_type for node in int8_nodes(model.graph)} == {product, "Relu"}
    assert float_feature_maps(model) == ()
    kept = text.replace("(xd, wd)", "(xd, float)")
    model = half_networks.network(kept, **weights, float=np.ones((4, 4, 1, 1), np.float32))
    assert int8_nodes(model.graph) == frozenset()


def test_a_layer_kept_in_float_reads_unrounded_values_and_its_own_weight():
    model, report = quantize(network(), [images(4)], method="minmax", keep_float=["node_c4"])
    kept = node_named(model, "node_c4")
    np.testing.assert_array_equal(kept.inputs[1].const_value.numpy(), weights()["w4"])
    # A gate has no output but INT8, so this one reads that.
    assert producer(kept.inputs[0]) == "DequantizeLinear"
    assert report.kept_float == ("node_c4",)
    model, _ = quantize(network(), [images(4)], method="minmax", keep_float=["node_c5"])
    assert node_named(model, "node_c5").inputs[0].name == "r4"
    assert "r4" not in scales_in(model)


def test_a_layer_kept_in_float_does_not_read_what_is_rounded_for_others():
    kept = ["node_pooled", "node_c2"]
    model, _ = quantize(network(), [images(4)], method="minmax", keep_float=kept)
    assert node_named(model, "node_c2").inputs[0].name == "pooled"
    assert producer(node_named(model, "node_gated").inputs[1]) == "DequantizeLinear"
    # One is read by a layer in float, the other by such a layer and by Q.
    assert float_feature_maps(model) == ("r1", "pooled")


def test_a_gate_reads_a_residual_of_its_own_through_dq():
    model = network()
    gate, shared = node_named(model, "node_gated"), node_named(model, "node_c4")
    shortcut = ir.node("Conv", [gate.inputs[1], shared.inputs[1]], {"pads": [1, 1, 1, 1]})
    shortcut.outputs[0].name = "shortcut"
    model.graph.insert_before(gate, shortcut)
    gate.replace_input_with(1, shortcut.outputs[0])
    quantized, _ = quantize(model, [images(4)], method="minmax")
    gate = node_named(quantized, "node_gated")
    assert [producer(value) for value in gate.inputs[:2]] == ["DequantizeLinear"] * 2
    assert "shortcut" in scales_in(quantized)
    assert float_feature_maps(quantized) == ()


def test_the_attention_of_an_unfused_gate_stays_float():
    text = """
    <ir_version: 10, opset_import: ["" : 18]>
    gated (float[n, 3, 8, 8] input) => (float[n, 8, 8, 8] output)
    {
      x = Conv <kernel_shape = [1, 1]> (input, w)
      pooled = GlobalAveragePool (x)
      squeezed = Conv <kernel_shape = [1, 1]> (pooled, w0)
      hidden = Relu (squeezed)
      restored = Conv <kernel_shape = [1, 1]> (hidden, w1)
      attention = Sigmoid (restored)
      scaled = Mul (x, attention)
      output = Conv <kernel_shape = [1, 1]> (scaled, v)
    }
    """
    proto = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    for name, shape in {"w": (8, 3), "w0": (2, 8), "w1": (8, 2), "v": (8, 8)}.items():
        value = random.standard_normal((*shape, 1, 1)).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    x = random.standard_normal((2, 3, 8, 8)).astype(np.float32)
    model, report = quantize(ir.from_proto(proto), [x], method="minmax")
    assert [place.operator for place in report.quantized] == ["Conv", "GlobalAveragePool", "Conv"]
    assert {"w0", "w1"} <= set(model.graph.initializers)


def test_the_same_pictures_give_the_same_bytes():
    first, second = (
        ir.to_proto(quantize(network(), [images(8)], method="entropy")[0]).SerializeToString()
        for _ in range(2)
    )
    assert first == second


def test_the_float_network_stays_as_it_is():
    model = network()
    text = ir.to_proto(model).SerializeToString()
    quantize(model, [images(2)], method="minmax")
    assert ir.to_proto(model).SerializeToString() == text


def test_work_grows_like_the_network():
    def calls(count):
        layers = "\n".join(f"c{i} = Conv (v{i}, w) v{i + 1} = Relu (c{i})" for i in range(count))
        text = f"(float[n, 2, 4, 4] v0) => (float[n, 2, 4, 4] v{count}) {{ {layers} }}"
        model = half_networks.network(text, w=np.ones((2, 2, 1, 1), np.float32))
        x = np.zeros((1, 2, 4, 4), np.float32)
        return half_networks.count_calls(lambda: to_half(quantize(model, [x], method="minmax")[0]))

    calls(1)  # What is imported on the way counts once.
    assert calls(40) < 2.2 * calls(20)


def test_no_name_in_the_network_can_clash_with_one_that_a_conversion_adds():
    def converted(model):
        model, _ = quantize(model, [images(2)], method="minmax")
        to_half(model)
        round_in_fp32(model)
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
        return model

    def names(model):
        return {
            name
            for node in model.graph
            for name in (node.name, *(value.name for value in (*node.inputs, *node.outputs)))
        }

    plain = converted(network())
    expected = run(plain, images(2), ["logits"])["logits"]
    added = sorted(names(plain) - names(network()))
    assert len(added) > 90
    unquantized = "b1 b2 b3 b4 b5 fc_bias gw0 gb0 gw1 gb1 gws gbs axes c1 c2 c4 c5 added"
    while added:
        model = network()
        for name in unquantized.split():
            value = model.graph.initializers.get(name) or node_named(model, f"node_{name}")
            value = value if isinstance(value, ir.Value) else value.outputs[0]
            value.name = added.pop() if added else name
            if value.producer():
                value.producer().name = value.name
        actual = run(converted(model), images(2), ["logits"])["logits"]
        np.testing.assert_array_equal(actual, expected)


def test_the_file_keeps_its_metadata_and_the_names_of_its_tensors():
    model = network()
    model.metadata_props["cbam_deploy.provenance"] = "{}"
    result, _ = quantize(model, [images(2)], method="minmax")
    assert dict(result.metadata_props) == {"cbam_deploy.provenance": "{}"}
    names = {value.name for node in result.graph for value in node.outputs}
    assert {value.name for node in model.graph for value in node.outputs} <= names
    onnx.checker.check_model(ir.to_proto(result), full_check=True)


def test_scales_fit_into_fp16_where_weights_are_tiny():
    model = network()
    tiny = weights()["w2"].copy()
    tiny[3] *= 1e-9
    model.graph.initializers["w2"].const_value = ir.tensor(tiny)
    result, _ = quantize(model, [images(2)], method="minmax")
    scale = constant(result, "w2_scale")
    assert np.abs(scale.astype(np.float16) / scale - 1).max() <= 0.5 / 127


def test_a_network_that_is_quantized_already_is_refused(quantized):
    with pytest.raises(BadInput, match="quantized already"):
        quantize(quantized, [images(2)])


def test_a_network_without_convolution_is_refused():
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 18]>'
        "g (float[n, 4] input) => (float[n, 4] output) { output = Relu (input) }"
    )
    with pytest.raises(BadInput, match="no convolution"):
        quantize(ir.from_proto(proto), [np.zeros((1, 4), np.float32)])


def test_sixteen_bit_weights_are_refused():
    model = network()
    model.graph.initializers["w1"].const_value = ir.tensor(weights()["w1"].astype(np.float16))
    model.graph.initializers["w1"].dtype = ir.DataType.FLOAT16
    with pytest.raises(BadInput, match="16-bit weights"):
        quantize(model, [images(2)])


def test_an_old_opset_is_refused():
    model = network()
    model.opset_imports[""] = 12
    with pytest.raises(BadInput, match="opset 12"):
        quantize(model, [images(2)])


def test_an_unknown_layer_to_keep_is_named():
    with pytest.raises(BadInput, match="no node 'node_c9'"):
        quantize(network(), [images(2)], keep_float=["node_c9"])
