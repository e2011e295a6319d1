"""FP8: how E4M3 rounds, which operations are in it, and what a converted network computes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from fake_quantized import FakeQuantized
from half_networks import network as written
from half_networks import normal
from int8_network import images, network
from onnx import helper, numpy_helper, parser

from cbam_deploy.artefacts import open_artefact
from cbam_deploy.errors import BadInput
from cbam_deploy.exporters import inline
from cbam_deploy.exporters.convert import convert
from cbam_deploy.exporters.half.conversion import to_half
from cbam_deploy.exporters.half.rounded_runner import open_rounded
from cbam_deploy.exporters.int8.int8_nodes import fp8_nodes
from cbam_deploy.exporters.int8.placement import quantized_nodes
from cbam_deploy.exporters.int8.qdq import weight_scales
from cbam_deploy.exporters.int8.quantization import quantize
from cbam_deploy.exporters.int8.quantized_types import FP8
from cbam_deploy.graphs.onnx_file import read_model, read_provenance
from cbam_deploy.graphs.session import open_session
from cbam_deploy.graphs.signature import graph_precision
from cbam_deploy.numerics.metrics import tensor_error
from cbam_deploy.runtimes import open_runtime


def meaning(code: int) -> float:
    """The number that a code of E4M3FN stands for, after table 1 of arXiv 2209.05433."""
    sign, exponent, mantissa = -1 if code >> 7 else 1, code >> 3 & 15, code & 7
    if (exponent, mantissa) == (15, 7):
        return float("nan")
    if exponent == 0:
        return sign * mantissa * 2.0**-9
    return sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7)


TABLE = np.array([meaning(code) for code in range(256)])
# By magnitude: as sign and magnitude, codes 0 to 126 ascend.
MAGNITUDES = TABLE[:127]


def nearest(values: np.ndarray) -> np.ndarray:
    """The nearest number of the table, halves to the even code, saturated; in float64."""
    magnitudes = np.abs(values.astype(np.float64))
    above = np.searchsorted(MAGNITUDES, magnitudes).clip(1, 126)
    low, high = MAGNITUDES[above - 1], MAGNITUDES[above]
    up = (magnitudes - low > high - magnitudes) | (
        (magnitudes - low == high - magnitudes) & (above % 2 == 0)
    )
    return np.copysign(np.where(up, high, low), values)


def probes() -> np.ndarray:
    """Every number, every half between two, both neighbours of these, and what saturates."""
    halves = (MAGNITUDES[1:] + MAGNITUDES[:-1]) / 2
    exact = np.float32([*MAGNITUDES, *halves, 448.1, 464, 480, 1e4, 3e38, 1e-30])
    around = np.concatenate([exact, np.nextafter(exact, 0), np.nextafter(exact, 1e38)])
    return np.concatenate([around, -around]).astype(np.float32)


def test_all_256_codes_mean_what_the_paper_says():
    stored = np.arange(256, dtype=np.uint8).view(FP8.dtype.numpy()).astype(np.float64)
    np.testing.assert_array_equal(stored, TABLE)
    assert (FP8.largest, FP8.lowest) == (np.nanmax(TABLE), np.nanmin(TABLE))


def test_values_are_rounded_to_the_nearest_code_halves_to_even_and_saturate():
    values = probes()
    np.testing.assert_array_equal(FP8.rounded(values).astype(np.float64), nearest(values))


def test_onnx_runtime_rounds_alike():
    graph = parser.parse_graph(
        "g (float[N] x) => (float[N] y)"
        "{ q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"
    )
    zero = FP8.rounded(np.zeros(()))
    graph.initializer.extend(
        [numpy_helper.from_array(np.float32(1), "s"), numpy_helper.from_array(zero, "z")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    values = probes()
    np.testing.assert_array_equal(session.run(None, {"x": values})[0], nearest(values))


def test_a_channel_s_largest_weight_becomes_448():
    weight = normal(16, 16, 3, 3)
    scales = weight_scales(weight, 0, FP8).astype(np.float64)
    largest = np.abs(weight).max(axis=(1, 2, 3))
    np.testing.assert_allclose(scales * 448, largest, rtol=2.0**-23)


def test_convolutions_with_kernels_gates_and_their_additions_are_in_fp8():
    # The stem has 3 channels, the classifier 10 classes, pooling no kernels.
    chosen = {(node.operator, node.reads) for node in quantized_nodes(network(), kind=FP8)}
    assert chosen == {
        ("Conv", ("pooled",)),
        ("Conv", ("r2",)),
        ("CbamGateAddRelu", ("c3", "pooled")),
        ("Conv", ("gated",)),
        ("Conv", ("r4",)),
        ("Add", ("gated",)),
    }


@pytest.mark.parametrize(
    ("out", "inputs", "side", "group", "chosen"),
    [
        (16, 16, 3, 1, True),
        (48, 16, 5, 1, True),
        (16, 32, 7, 1, False),  # 49 places
        (24, 16, 1, 1, False),  # not equally far from a multiple of 16
        (24, 40, 1, 1, True),
        (8, 16, 1, 1, False),
        (16, 3, 3, 1, False),
        (32, 32, 3, 32, False),  # one channel in a group
    ],
)
def test_only_convolutions_that_have_kernels_are_in_fp8(out, inputs, side, group, chosen):
    text = f"""(float[N, {inputs}, 8, 8] x) => (float[N, {out}, h, w] y)
    {{ y = Conv <group = {group}> (x, w) }}"""
    model = written(text, w=normal(out, inputs // group, side, side))
    assert bool(quantized_nodes(model, kind=FP8)) is chosen


def test_a_classifier_is_in_fp8_from_16_classes_on():
    text = "(float[N, 32] x) => (float[N, c] y) { y = Gemm <transB = 1> (x, w) }"
    for classes in (15, 16):
        model = written(text, w=normal(classes, 32))
        assert len(quantized_nodes(model, kind=FP8)) == (classes == 16)


TWO_LAYERS = """(float[N, 16, 4, 4] input) => (float[N, 16, 4, 4] output)
{
  first = Conv (input, w1)
  relu = Relu (first)
  output = Conv (relu, w2)
}"""


def test_a_network_in_fp8_is_the_rounded_one_in_float64():
    w1, w2 = normal(16, 16, 1, 1, seed=1), normal(16, 16, 1, 1, seed=2)
    x = normal(2, 16, 4, 4, seed=3)
    model, report = quantize(written(TWO_LAYERS, w1=w1, w2=w2), [x], method="minmax", kind=FP8)
    assert (report.type, graph_precision(model)) == ("FP8", "fp8")
    proto = ir.to_proto(model)
    proto.graph.output.append(helper.make_tensor_value_info("relu", 1, None))
    output, relu = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"input": x})

    def layer(values, scale, weight):
        steps = (np.abs(weight).max(axis=(1, 2, 3)).astype(np.float32) / np.float32(448))[:, None]
        kernel = nearest(weight[:, :, 0, 0] / steps) * steps.astype(np.float64)
        step = np.float32(scale)
        return np.einsum("oi,nihw->nohw", kernel, nearest(values / step) * float(step))

    first = np.maximum(layer(x, report.scales["input"], w1), 0)
    second = layer(relu, report.scales["relu"], w2)
    for actual, expected in ((relu, first), (output, second)):
        # Sums of 16 terms in FP32, and weights whose quotient FP32 rounds across a half.
        np.testing.assert_allclose(actual, expected, atol=16 * 2.0**-23 * np.abs(expected).max())


@pytest.mark.parametrize("half", [False, True])
def test_the_runner_computes_what_is_written_with_every_relu_and_large_biases(half, tmp_path):
    text = """(float[N, 16, 4, 4] input) => (float[N, 16, 4, 4] output)
    {
      conv = Conv (input, w1, b)
      relu = Relu (conv)
      output = Conv (relu, w2, b)
    }"""
    w1, w2 = (0.01 * normal(16, 16, 1, 1, seed=seed) for seed in (1, 2))
    x = normal(2, 16, 4, 4, seed=3)
    source = written(text, w1=w1, w2=w2, b=normal(16, seed=4))
    model, _ = quantize(source, [x], method="minmax", kind=FP8)
    if half:
        to_half(model)
    ir.save(model, tmp_path / "fp8.onnx")
    with open_runtime(open_artefact(tmp_path / "fp8.onnx")) as runner:
        actual = runner.infer({"input": x})["output"]
    session = open_session(ir.to_proto(model).SerializeToString(), "it", as_written=True)
    (expected,) = session.run(None, {"input": x})
    assert tensor_error("output", expected, actual).snr_db > 60


@pytest.fixture(scope="module")
def fp8(network_onnx, tmp_path_factory):
    path = tmp_path_factory.mktemp("fp8") / "network.onnx"
    return convert(network_onnx, path, precision="fp8", calibration="digits", images=16)


def test_a_converted_file_tells_its_precision_and_counts_its_nodes(fp8, network_onnx):
    model = read_model(fp8.path)
    assert read_provenance(fp8.path).precision == graph_precision(model) == "fp8"
    assert fp8.provenance.calibration["method"] == "minmax"
    # All convolutions but the stem, and all gates; the rest computes in FP16, the pool in FP32.
    before = Counter(node.op_type for node in onnx.load(network_onnx).graph.node)
    assert fp8.nodes["FP8"]["Conv"] == before["Conv"] - 1
    assert fp8.nodes["FP8"]["cbam_deploy.CbamGateAddRelu"] == before["CbamGateAddRelu"]
    assert "ReduceMean" not in fp8.nodes["FP8"]
    assert fp8.quantization.float_feature_maps == ()


def test_a_depthwise_convolution_between_q_and_dq_is_no_fp8_node():
    text = """(float[N, 16, 8, 8] x) => (float[N, 16, 8, 8] y)
    {
      first = Conv (x, w)
      up = Relu (first)
      depthwise = %s
      relu = Relu (depthwise)
      y = Conv (relu, w)
    }"""
    weight = normal(16, 16, 1, 1)
    for line, expected in (
        ("Conv <group = 16> (up, d)", set()),  # Its floats are the neighbours' too.
        ("Conv (up, w)", {"first", "up", "depthwise", "relu"}),
    ):
        network = written(text % line, w=weight, d=normal(16, 1, 1, 1))
        model, _ = quantize(network, [normal(1, 16, 8, 8)], method="minmax", kind=FP8)
        assert {node.outputs[0].name for node in fp8_nodes(model.graph)} == expected


def test_inlined_fp8_files_may_round_a_few_values_otherwise(fp8, tmp_path):
    assert inline(fp8.path, tmp_path / "inlined.onnx").cosine > 0.99


def test_gate_weights_and_zero_points_are_as_tensorrt_takes_them(fp8):
    model = read_model(fp8.path)
    for node in model.graph:
        if node.op_type == "CbamGateAddRelu":
            assert {value.dtype for value in node.inputs[2:]} == {ir.DataType.FLOAT}
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = node.inputs[2].const_value
            assert zero.dtype == ir.DataType.FLOAT8E4M3FN
            assert not zero.numpy().astype(np.float32).any()
        if node.op_type == "QuantizeLinear":
            assert node.inputs[1].const_value.size == 1


def test_the_file_is_nearer_to_its_own_rounding_in_pytorch_than_to_fp32(fp8, network_onnx):
    # FP8's steps are coarse: few values lie so near a half that another sum decides otherwise.
    x = normal(8, 3, 32, 32)
    with open_rounded(open_artefact(fp8.path)) as runner, torch.inference_mode():
        actual = runner.infer({"input": x})["logits"]
        rounded = FakeQuantized(fp8.path)(torch.from_numpy(x)).numpy()
    with open_runtime(network_onnx) as runner:
        exact = runner.infer({"input": x})["logits"]
    near, far = (tensor_error("logits", one, actual).snr_db for one in (rounded, exact))
    assert near > far + 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "fp8 needs pictures"),
        ({"calibration": "digits", "method": "entropy"}, "entropy"),
        ({"calibration": "digits", "max_accuracy_drop": 0.1}, "budget is for INT8"),
    ],
)
def test_what_fp8_cannot_be_made_with_is_refused(network_onnx, tmp_path, options, message):
    with pytest.raises(BadInput, match=message):
        convert(network_onnx, tmp_path / "x.onnx", precision="fp8", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_network_without_fp8_kernels_is_refused(tmp_path):
    text = "(float[N, 3, 8, 8] input) => (float[N, 8, 8, 8] y) { y = Conv (input, w) }"
    onnx.save(ir.to_proto(written(text, w=normal(8, 3, 1, 1))), tmp_path / "small.onnx")
    np.save(tmp_path / "x.npy", images(2)[:, :, :8, :8])
    with pytest.raises(BadInput, match="no layer that there are FP8 kernels for"):
        convert(
            tmp_path / "small.onnx",
            tmp_path / "fp8.onnx",
            precision="fp8",
            calibration=str(tmp_path / "x.npy"),
        )
