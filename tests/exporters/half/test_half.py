"""Claims about the FP16 conversion: which type everything gets, and that results survive it."""

import dataclasses
import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import rich
from half_networks import (
    FP16_TOLERANCE,
    check,
    count_calls,
    dtypes,
    gated,
    network,
    nodes,
    normal,
    relative_error,
    run,
    run_like_gpu,
)

from cbam_deploy.errors import BadInput
from cbam_deploy.exporters.half.conversion import to_half
from cbam_deploy.exporters.half.rules import FP16_MAX, REDUCTIONS, weight_fault

# y = x * 2000 in a convolution, back by one, then a mean. 1e5 passes FP16's range on the way.
OVERFLOWING = """(float[batch, 2, 4, 4] input) => (float[batch, 2] logits)
{
  up = Conv (input, w1)
  relu = Relu (up)
  down = Conv (relu, w2)
  mean = ReduceMean <keepdims = 0> (down, axes)
  logits = Gemm (mean, fc)
}"""
W1 = np.array([[2000, 500], [-500, 1000]], np.float32).reshape(2, 2, 1, 1)
W2 = np.array([[4e-4, -1e-4], [2e-4, 3e-4]], np.float32).reshape(2, 2, 1, 1)
FC = np.array([[1, -0.5], [0.25, 2]], np.float32)


def overflowing():
    return network(OVERFLOWING, w1=W1, w2=W2, fc=FC, axes=np.array([2, 3]))


def overflowing_in_float64(x):
    up = np.einsum("oi,nihw->nohw", W1[:, :, 0, 0].astype(np.float64), x.astype(np.float64))
    down = np.einsum("oi,nihw->nohw", W2[:, :, 0, 0].astype(np.float64), np.maximum(up, 0))
    return up, down, down.mean(axis=(2, 3)) @ FC.astype(np.float64)


def cast_between_same_types(model):
    """Casts whose input is another Cast, or that change nothing."""
    casts = nodes(model, "Cast")
    return [
        cast
        for cast in casts
        if cast.inputs[0].producer() in casts or cast.inputs[0].dtype == cast.outputs[0].dtype
    ]


def test_weights_and_activations_become_fp16_network_ends_stay_fp32():
    model = gated()
    to_half(model)
    types = dtypes(model)
    assert {types[name] for name in ("w1", "b1", "w2", "b2", "fc", "fb")} == {"FLOAT16"}
    assert {types[name] for name in ("stem", "relu", "branch", "gated")} == {"FLOAT16"}
    assert (types["input"], types["logits"]) == ("FLOAT", "FLOAT")


def test_gate_weights_stay_fp32_bit_for_bit_while_its_maps_are_fp16():
    model, before = gated(), gated()
    report = to_half(model)
    (gate,) = nodes(model, "CbamGateAddRelu")
    assert [v.dtype for v in gate.inputs] == [ir.DataType.FLOAT16] * 2 + [ir.DataType.FLOAT] * 6
    assert gate.outputs[0].dtype == ir.DataType.FLOAT16
    for value in gate.inputs[2:]:
        original = before.graph.initializers[str(value.name)].const_value.numpy()
        np.testing.assert_array_equal(value.const_value.numpy(), original)
    assert report.gates == 1


def test_fp16_network_agrees_with_fp32_within_fp16_rounding():
    model, x = gated(), normal(2, 3, 16, 16)
    (expected,) = run(model, input=x)
    to_half(model)
    for run_it in (run, run_like_gpu):
        (actual,) = run_it(model, input=x)
        assert actual.dtype == np.float32
        assert 0 < relative_error(actual, expected) < FP16_TOLERANCE


def test_values_keep_their_names():
    before, model = gated(), gated()
    to_half(model)
    names = {value.name for node in before.graph for value in node.outputs}
    assert names <= {value.name for node in model.graph for value in node.outputs}
    assert [value.name for value in model.graph.outputs] == ["logits"]


def test_a_mean_is_computed_in_fp32_where_its_sum_passes_fp16s_range():
    text = """(float[batch, 1, 64, 64] input) => (float[batch, 1] y) {
      relu = Relu (input)
      y = ReduceMean <keepdims = 0> (relu, axes)
    }"""
    model = network(text, axes=np.array([2, 3]))
    x = np.abs(normal(1, 1, 64, 64)) + 100
    report = to_half(model)
    assert len(report.reductions) == 1
    (mean,) = nodes(model, "ReduceMean")
    assert mean.inputs[0].dtype == mean.outputs[0].dtype == ir.DataType.FLOAT
    (actual,) = run(model, input=x)
    assert relative_error(actual, x.mean(axis=(2, 3), dtype=np.float64)) < 2.0**-11


def test_between_two_fp32_nodes_stands_no_cast():
    text = """(float[batch, 8] input) => (float[batch, 1] y) {
      relu = Relu (input)
      probabilities = Softmax (relu)
      same = Cast <to = 1> (probabilities)
      shaped = Reshape (same, shape)
      y = ReduceSum <keepdims = 0> (shaped, axes)
    }"""
    model = network(text, shape=np.array([0, 2, 4]), axes=np.array([1]))
    model.graph.outputs[0].shape = ir.Shape(["batch", 4])
    report = to_half(model)
    # After the input, before Softmax.
    assert report.casts == len([n for n in nodes(model, "Cast") if n.name != ""]) == 2
    assert dtypes(model)["shaped"] == "FLOAT"


@pytest.mark.parametrize("build", [gated, overflowing])
def test_no_cast_undoes_another(build):
    model = build()
    to_half(model)
    assert nodes(model, "Cast")
    assert not cast_between_same_types(model)


def test_one_cast_serves_all_readers_of_a_value():
    text = """(float[batch, 4] input) => (float[batch, 4] y) {
      a = Relu (input)
      b = Sigmoid (input)
      c = Add (a, b)
      y = Mul (c, input)
    }"""
    model = network(text)
    report = to_half(model)
    assert report.casts == 2


def test_overflow_breaks_plain_conversion_and_the_range_check_repairs_it():
    x = normal(2, 2, 4, 4, scale=30)
    up, down, expected = overflowing_in_float64(x)
    assert up.max() > FP16_MAX
    plain, checked = overflowing(), overflowing()
    to_half(plain)
    (broken,) = run_like_gpu(plain, input=x)
    assert not np.isfinite(broken).all()
    ranges = {"up": (up.min(), up.max()), "relu": (0, up.max()), "down": (down.min(), down.max())}
    report = to_half(checked, ranges=ranges)
    for run_it in (run, run_like_gpu):
        (repaired,) = run_it(checked, input=x)
        assert relative_error(repaired, expected) < FP16_TOLERANCE
    assert [(kept.op, kept.tensor) for kept in report.kept] == [
        ("Conv", "up"),
        ("Relu", "relu"),
        ("Conv", "relu"),
    ]
    assert report.kept[0].range == ranges["up"]
    assert all("passes half of FP16's range" in kept.reason for kept in report.kept)
    assert dtypes(checked)["w1"] == "FLOAT"
    assert dtypes(checked)["fc"] == "FLOAT16"


def test_the_limit_is_half_of_fp16s_range():
    for factor, kept in ((0.999, 0), (1.001, 3)):
        model = overflowing()
        top = FP16_MAX / 2 * factor
        assert len(to_half(model, ranges={"up": (-top, 0), "relu": (0, top)}).kept) == kept
    assert len(to_half(overflowing(), ranges={"relu": (0, float("nan"))}).kept) == 2


def test_a_gate_beyond_the_range_is_kept_with_all_its_maps():
    model, x = gated(), normal(1, 3, 16, 16)
    (expected,) = run(model, input=x)
    report = to_half(model, ranges={"branch": (-5e4, 5e4)})
    assert [kept.op for kept in report.kept] == ["Conv", "cbam_deploy.CbamGateAddRelu"]
    (gate,) = nodes(model, "CbamGateAddRelu")
    assert {value.dtype for value in (*gate.inputs, *gate.outputs)} == {ir.DataType.FLOAT}
    assert relative_error(run(model, input=x)[0], expected) < FP16_TOLERANCE


@pytest.mark.parametrize(
    ("weight", "word"),
    [
        (np.float32([[7e4, 0], [0, 1]]), "range"),
        (np.float32([[3e-8, 1e-8], [0, 2e-8]]), "underflow"),
        (np.float32([[1e-6, 2e-6], [3e-6, 5e-6]]), "underflow"),
    ],
)
def test_a_weight_that_fp16_cannot_hold_keeps_its_node_without_any_ranges(weight, word):
    text = "(float[batch, 2] input) => (float[batch, 2] y) {a = MatMul (input, w) y = Relu (a)}"
    model = network(text, w=weight)
    report = to_half(model)
    (kept,) = report.kept
    assert kept.tensor == "w"
    assert word in kept.reason
    assert kept.range == (weight.min(), weight.max())
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), weight)
    check(model)


def test_a_few_tiny_elements_do_not_keep_a_weight_in_fp32():
    weight = normal(64, 64, scale=0.05)
    weight[0, :3] = 1e-9
    assert weight_fault(weight) == ""
    # A dead channel, as BatchNorm folding leaves it.
    weight[7] = 1e-12
    assert weight_fault(weight) == ""


def test_a_weight_of_two_types_of_readers_is_stored_twice():
    text = """(float[batch, 4] input) => (float[batch, 4] y) {
      a = Add (input, w)
      b = Softmax (a)
      c = Add (b, w)
      y = Relu (c)
    }"""
    model = network(text, w=normal(4))
    second = next(node for node in model.graph if node.outputs[0].name == "c")
    second.name = "second"
    x = normal(2, 4)
    (expected,) = run(model, input=x)
    report = to_half(model, keep_fp32=["second"])
    assert [(kept.node, kept.reason) for kept in report.kept] == [("second", "was asked for")]
    types = dtypes(model)
    assert (types["w"], types["w_fp32"]) == ("FLOAT16", "FLOAT")
    np.testing.assert_array_equal(model.graph.initializers["w_fp32"].const_value.numpy(), normal(4))
    assert relative_error(run(model, input=x)[0], expected) < FP16_TOLERANCE


def test_fp16_io_leaves_no_fp32_at_the_ends():
    model, x = gated(), normal(1, 3, 16, 16)
    (expected,) = run(model, input=x)
    to_half(model, io_dtype="fp16")
    assert dtypes(model)["input"] == dtypes(model)["logits"] == "FLOAT16"
    (actual,) = run(model, input=x.astype(np.float16))
    assert actual.dtype == np.float16
    assert relative_error(actual, expected) < FP16_TOLERANCE


def test_fp16_io_is_refused_where_an_output_does_not_fit():
    with pytest.raises(BadInput, match=r"logits goes from -1e\+05 to 2"):
        to_half(gated(), io_dtype="fp16", ranges={"logits": (-1e5, 2)})


def test_an_unknown_name_to_keep_is_refused():
    with pytest.raises(BadInput, match="no node 'nowhere'"):
        to_half(gated(), keep_fp32=["nowhere"])


def test_a_parameter_that_onnx_wants_in_fp32_stays_so():
    text = """(float[batch, 2, 4, 4] input) => (float[batch, 2, 8, 8] y) {
      y = Resize <mode = "nearest"> (input, , scales)
    }"""
    model, x = network(text, scales=np.float32([1, 1, 2, 2])), normal(1, 2, 4, 4)
    (expected,) = run(model, input=x)
    to_half(model)
    (resize,) = nodes(model, "Resize")
    assert resize.inputs[0].dtype == ir.DataType.FLOAT16
    assert resize.inputs[2].dtype == ir.DataType.FLOAT
    assert relative_error(run(model, input=x)[0], expected) < FP16_TOLERANCE


@pytest.mark.parametrize("op", ["EyeLike", "Bernoulli", "RandomNormalLike", "RandomUniformLike"])
@pytest.mark.parametrize("attributes", ["", "<dtype = 1>", "<dtype = 10>"])
def test_an_output_takes_the_type_that_onnx_infers(op, attributes):
    to = "" if attributes != "<dtype = 10>" else "<to = 1>"
    text = f"""(float[batch, 2, 1, 1] input) => (float[batch, 2] y) {{
      a = Conv (input, w)
      b = Flatten (a)
      c = {op} {attributes} (b)
      {f"d = Cast {to} (c)" if to else "d = Identity (c)"}
      y = Add (b, d)
    }}"""
    model, x = network(text, w=normal(2, 2, 1, 1)), np.zeros((2, 2, 1, 1), np.float32)
    assert to_half(model).half_nodes["Add"] == 1
    (actual,) = run(model, input=x)
    if op == "EyeLike":
        np.testing.assert_array_equal(actual, np.eye(2))


def test_a_node_that_onnx_infers_no_fp16_for_stays_fp32():
    text = """(float[batch, 2, 1, 1] input) => (int32[batch, 1, 1, 1] y) {
      a = Conv (input, w)
      y = BitCast <to = 6> (a)
    }"""
    model = network(text, opset=26, w=np.ones((1, 2, 1, 1), np.float32))
    assert to_half(model).half_nodes == {"Conv": 1}
    (actual,) = run(model, input=np.float32([1.5, 2.25]).reshape(1, 2, 1, 1))
    assert actual.view(np.float32).item() == 3.75


def test_a_subgraph_stays_fp32_and_reads_outer_values_in_fp32():
    text = """(float[batch, 4] input, bool c) => (float[batch, 4] y) {
      a = Relu (input)
      b = If (c) <
        then_branch = g1 () => (float[batch, 4] t) { t = Softmax (a) },
        else_branch = g2 () => (float[batch, 4] e) { e = Neg (a) }
      >
      y = Relu (b)
    }"""
    model, x = network(text), normal(2, 4)
    for condition in (True, False):
        expected = run(network(text), input=x, c=np.array(condition))[0]
        half = network(text)
        to_half(half)
        actual = run(half, input=x, c=np.array(condition))[0]
        assert np.abs(actual - expected).max() < FP16_TOLERANCE
    assert to_half(model).half_nodes == {"Relu": 2}


def test_a_value_of_unknown_type_is_refused():
    model = network("(float[batch, 4] input) => (float[batch, 4] y) {a = Neg (input) y = Relu (a)}")
    node = model.graph[0]
    node.domain, node.op_type, node.outputs[0].type = "other", "Op", None
    with pytest.raises(BadInput, match="type of a is unknown"):
        to_half(model)


def test_every_reduction_of_the_list_is_an_onnx_operator():
    for op in REDUCTIONS:
        assert onnx.defs.has(op), op


def test_the_same_network_gives_the_same_bytes():
    def convert():
        model = gated()
        to_half(model, ranges={"branch": (-5e4, 5e4)})
        return ir.to_proto(model).SerializeToString(deterministic=True)

    assert convert() == convert()


def test_the_report_is_json_and_a_table(capsys):
    report = to_half(overflowing(), ranges={"up": (-1e5, 2e5)})
    data = json.loads(json.dumps(report.to_json()))
    assert data["kept"][0]["range"] == [-1e5, 2e5]
    assert set(data) == {field.name for field in dataclasses.fields(report)}
    rich.print(report)
    assert "2e+05" in capsys.readouterr().out


@pytest.mark.parametrize("op", ["Identity", "Relu"])
def test_work_grows_like_the_network(op):
    def calls(count):
        chain = "\n".join(f"v{i + 1} = {op} (v{i})" for i in range(count))
        text = f"(float[batch, 4] v0) => (float[batch, 4] v{count}) {{ {chain} }}"
        return count_calls(to_half, network(text))

    calls(1)  # What is imported on the way counts once.
    assert calls(100) < 2.2 * calls(50)
