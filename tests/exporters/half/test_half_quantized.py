"""Claims about the FP16 conversion of the float side of a quantized network."""

import numpy as np
import onnx_ir as ir
import pytest
from half_networks import (
    FP16_TOLERANCE,
    concatenated,
    dtypes,
    gated,
    network,
    nodes,
    normal,
    relative_error,
    run,
)

from cbam_deploy.errors import BadInput
from cbam_deploy.exporters.half.conversion import to_half
from cbam_deploy.exporters.half.rules import scale_fault

# conv1 is quantized as a whole; conv2 has quantized inputs, but a float output.
QUANTIZED = """(float[batch, 2, 4, 4] input) => (float[batch, 2, 4, 4] y)
{
  q = QuantizeLinear (input, s_in, zero)
  x = DequantizeLinear (q, s_in, zero)
  w = DequantizeLinear (w_q, s_w)
  conv1 = Conv (x, w, b1)
  relu = Relu (conv1)
  q1 = QuantizeLinear (relu, s_1, zero)
  x1 = DequantizeLinear (q1, s_1, zero)
  w2 = DequantizeLinear <axis = 0> (w2_q, s_w2)
  conv2 = Conv (x1, w2, b2)
  y = Sigmoid (conv2)
}"""


def quantized(opset=18, text=QUANTIZED, **changes):
    integers = np.random.default_rng(3).integers(-127, 128, (2, 2, 2, 1, 1)).astype(np.int8)
    weights = {
        "zero": np.int8(0),
        "w_q": integers[0],
        "w2_q": integers[1],
        "b1": np.float32([0.5, -0.25]),
        "b2": np.float32([0.1, 0.2]),
        "s_in": np.float32(0.02),
        "s_w": np.float32(0.004),
        "s_1": np.float32(0.015),
        "s_w2": np.float32([0.003, 0.005]),
    }
    return network(text, opset=opset, **(weights | changes))


def test_an_operation_between_dq_and_q_stays_as_it_is():
    model = quantized()
    report = to_half(model)
    types = dtypes(model)
    assert {types[name] for name in ("x", "w", "conv1", "relu", "b1", "s_in")} == {"FLOAT"}
    assert report.int8_nodes == 2


def test_the_float_side_of_a_quantized_network_gets_fp16_scales():
    model = quantized()
    to_half(model)
    types = dtypes(model)
    assert {types[name] for name in ("x1", "w2", "conv2", "b2", "s_w2")} == {"FLOAT16"}
    assert types["w2_q"] == "INT8"
    assert model.opset_imports[""] == 19


def test_a_dq_has_no_cast_before_or_after():
    model = quantized()
    assert to_half(model).casts == 1
    (cast,) = nodes(model, "Cast")
    assert cast.outputs[0].name == "y"


@pytest.mark.parametrize("optimize", [True, False])
def test_a_quantized_network_computes_the_same_in_onnx_runtime(optimize):
    model, x = quantized(), normal(4, 2, 4, 4)
    (expected,) = run(model, input=x, optimize=False)
    to_half(model)
    (actual,) = run(model, input=x, optimize=optimize)
    # A rounding of half a step may fall the other way: one step of 0.015 times the weight's 0.64.
    tolerance = FP16_TOLERANCE if not optimize else 0.015 * 127 * 0.005 / 4 + FP16_TOLERANCE
    assert np.abs(actual - expected).max() < tolerance


@pytest.mark.parametrize(
    "between",
    [
        "c = Concat <axis = 1> (a, b)",
        "m = MaxPool <kernel_shape = [1, 1]> (a) c = Concat <axis = 1> (m, b)",
        "d = Concat <axis = 1> (a, b) c = MaxPool <kernel_shape = [1, 1]> (d)",
        "r = Reshape (a, split) v = Transpose <perm = [0, 2, 1, 3, 4]> (r) u = Reshape (v, shape)"
        " c = Concat <axis = 1> (u, b)",
    ],
)
def test_whatever_stands_between_dq_and_q_onnx_runtime_takes_it(between):
    model, x = concatenated(between), normal(2, 2, 4, 4, scale=0.5)
    (expected,) = run(model, input=x, optimize=False)
    to_half(model)
    assert dtypes(model)["w"] == "FLOAT16"
    assert relative_error(run(model, input=x)[0], expected) < FP16_TOLERANCE


def test_an_unread_dq_has_the_type_of_the_scale_it_shares():
    unread = "q2 = QuantizeLinear (conv2, s_2, zero) unread = DequantizeLinear (q2, s_2, zero) y ="
    model = quantized(text=QUANTIZED.replace("y =", unread), s_2=np.float32(0.1))
    to_half(model)
    run(model, input=normal(1, 2, 4, 4))


def test_readers_in_both_types_get_a_dq_each():
    text = QUANTIZED.replace(
        "y = Sigmoid (conv2)", "s = Softmax (x1) t = Sigmoid (conv2) y = Add (s, t)"
    )
    model, x = quantized(text=text), normal(1, 2, 4, 4)
    (expected,) = run(model, input=x, optimize=False)
    to_half(model)
    assert len(nodes(model, "DequantizeLinear")) == 5
    assert np.abs(run(model, input=x, optimize=False)[0] - expected).max() < FP16_TOLERANCE


def test_a_scale_that_underflows_in_fp16_keeps_its_pair_and_its_reader_in_fp32():
    tiny = np.float32([0.003, 1e-6])
    model, x = quantized(s_w2=tiny), normal(1, 2, 4, 4)
    (expected,) = run(model, input=x, optimize=False)
    report = to_half(model)
    (kept,) = report.kept
    assert (kept.op, kept.tensor) == ("Conv", "w2")
    assert "scale 1e-06 underflows" in kept.reason
    assert dtypes(model)["s_w2"] == "FLOAT"
    assert np.abs(run(model, input=x, optimize=False)[0] - expected).max() < FP16_TOLERANCE


def test_a_scale_is_refused_when_its_rounding_costs_half_a_step():
    assert scale_fault(np.float32([2.0**-17]), 128) == ""
    assert "underflows" in scale_fault(np.float32([1.45e-6]), 128)
    assert "beyond half" in scale_fault(np.float32([300]), 128)
    assert scale_fault(np.float32([0]), 128) == ""


def test_what_would_change_with_the_opset_is_refused():
    with pytest.raises(BadInput, match="of opset 17, its scales need 19"):
        to_half(quantized(opset=17))
    text = QUANTIZED.replace(
        "y = Sigmoid (conv2)",
        "p = AveragePool <ceil_mode = 1, kernel_shape = [1, 1]> (conv2) y = Sigmoid (p)",
    )
    with pytest.raises(BadInput, match="changes AveragePool"):
        to_half(quantized(text=text))
    model = gated()
    to_half(model)
    assert model.opset_imports[""] == 18


def test_a_clone_is_converted_without_touching_the_original():
    model, before = quantized(), quantized()
    to_half(model.clone())
    assert dtypes(model) == dtypes(before)
    assert ir.to_proto(model) == ir.to_proto(before)


def test_biases_survive_onnx_runtimes_int8_convolutions():
    """It rounds them to steps of the input's scale times the weight's: 2e-8, nothing in FP16."""
    text = QUANTIZED.replace("relu = Relu (conv1)", "relu = Identity (conv1)")
    model = quantized(text=text, s_in=np.float32(2e-4), s_w=np.float32(1e-4))
    x = normal(2, 2, 4, 4, scale=0.01)
    (expected,) = run(model, input=x, optimize=False)
    to_half(model)
    assert np.abs(run(model, input=x)[0] - expected).max() < 2 * FP16_TOLERANCE
