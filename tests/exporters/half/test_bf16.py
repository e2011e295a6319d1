"""Claims about BF16: how it rounds, what it keeps where FP16 overflows, and what is refused."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from fake_quantized import FakeQuantized
from half_networks import check, dtypes, gated, network, normal, relative_error, run_like_gpu

from cbam_deploy.artefacts import open_artefact
from cbam_deploy.errors import BadInput, MissingCapability
from cbam_deploy.explain.spatial_maps import spatial_maps
from cbam_deploy.exporters.convert import convert
from cbam_deploy.exporters.half.conversion import to_half
from cbam_deploy.exporters.half.formats import BF16, FP16
from cbam_deploy.exporters.half.rounded_runner import open_rounded
from cbam_deploy.exporters.half.rounding import round_in_fp32
from cbam_deploy.exporters.half.rules import weight_fault
from cbam_deploy.graphs.onnx_file import read_provenance
from cbam_deploy.graphs.opset import converted_to
from cbam_deploy.numerics.metrics import tensor_error
from cbam_deploy.runtimes import open_runtime
from cbam_deploy.runtimes.onnxruntime import OnnxRuntimeRunner

# BF16 rounds to 8 bits; a value passes four roundings in `SCALED`, weights one each.
BF16_TOLERANCE = 10 * 2.0**-8
# 1e5 passes FP16's range on the way, and 1e-4 is where FP16 begins to underflow.
SCALED = """(float[batch, 4, 2, 2] input) => (float[batch, 4, 2, 2] output)
{
  up = Conv (input, w1)
  relu = Relu (up)
  output = Conv (relu, w2)
}"""
W1 = normal(4, 4, 1, 1, seed=1, scale=1e5)
W2 = normal(4, 4, 1, 1, seed=2, scale=1e-6)


def rounded(values: np.ndarray) -> np.ndarray:
    """To 8 significant bits in float64, halves to even: BF16 wherever it does not underflow."""
    steps = 2.0 ** (np.floor(np.log2(np.abs(values.astype(np.float64)))) - 7)
    return np.rint(values / steps) * steps


def in_bf16(model):
    model = converted_to(model, BF16.opset)
    report = to_half(model, half=BF16)
    check(model)
    return model, report


def test_weights_are_rounded_to_8_bits_and_halves_to_even():
    model = network(SCALED, w1=W1, w2=W2)
    model, _ = in_bf16(model)
    for name, weight in (("w1", W1), ("w2", W2)):
        stored = model.graph.initializers[name].const_value
        assert stored.dtype == BF16.dtype
        np.testing.assert_array_equal(stored.numpy().astype(np.float64), rounded(weight))
    halfway = np.float32([1 + 2.0**-8, 1 + 3 * 2.0**-8])
    np.testing.assert_array_equal(halfway.astype(BF16.dtype.numpy()), [1, 1 + 2.0**-6])


def test_every_value_between_two_nodes_is_rounded_to_8_bits():
    model, _ = in_bf16(network(SCALED, w1=W1, w2=W2))
    round_in_fp32(model)
    x = normal(3, 4, 2, 2)
    with OnnxRuntimeRunner(ir.to_proto(model), extra_outputs=["up", "relu"]) as runner:
        values = runner.infer({"input": x})
    up, relu = values["up"], values["relu"]
    weight, fed = rounded(W1)[:, :, 0, 0], rounded(x)
    exact = np.einsum("oi,nihw->nohw", weight, fed)
    # ONNX Runtime adds four terms in FP32: what lies that close to a half may go either way.
    steps = 2.0 ** (np.floor(np.log2(np.abs(exact))) - 7)
    assert (np.abs(up.astype(np.float64) - exact) <= steps * (0.5 + 1e-3)).all()
    np.testing.assert_array_equal(up, rounded(up.astype(np.float64)))
    np.testing.assert_array_equal(relu, np.maximum(up, 0))


def test_a_network_beyond_fp16_s_range_needs_no_fp32_in_bf16():
    x = normal(3, 4, 2, 2)
    up = np.einsum("oi,nihw->nohw", W1[:, :, 0, 0].astype(np.float64), x)
    expected = np.einsum("oi,nihw->nohw", W2[:, :, 0, 0].astype(np.float64), np.maximum(up, 0))
    ranges = {"up": (up.min(), up.max()), "relu": (0.0, up.max())}
    model, report = in_bf16(network(SCALED, w1=W1, w2=W2))
    assert (report.kept, report.format) == ((), "BF16")
    (output,) = run_like_gpu(model, input=x)
    assert relative_error(output, expected) < BF16_TOLERANCE
    half = to_half(network(SCALED, w1=W1, w2=W2), ranges=ranges)
    assert [kept.node for kept in half.kept] == ["up", "relu", "output"]


def test_weights_are_refused_beyond_each_format_s_own_range():
    assert weight_fault(np.float32([1e38]), BF16) == ""
    assert "passes BF16's range" in weight_fault(np.float32([3.4e38]), BF16)
    assert weight_fault(np.float32([1e-6]), BF16) == ""
    assert "underflow in FP16" in weight_fault(np.float32([1e-7]), FP16)


def test_gate_weights_and_reductions_stay_fp32_in_bf16():
    before = gated()
    model, report = in_bf16(gated())
    types = dtypes(model)
    assert {types[name] for name in ("w1", "b1", "relu", "branch", "gated")} == {"BFLOAT16"}
    assert (types["input"], types["mean"], types["logits"]) == ("FLOAT", "FLOAT", "FLOAT")
    for name in ("gw0", "gb0", "gw1", "gb1", "gws", "gbs"):
        kept = model.graph.initializers[name].const_value.numpy()
        np.testing.assert_array_equal(kept, before.graph.initializers[name].const_value.numpy())
    assert report.reductions == ("mean",)


def test_operators_that_tensorrt_does_not_build_in_bf16_stay_fp32():
    text = """(float[N, 4, 2, 2] input) => (float[N, 4, 4, 4] output)
    {
      first = Conv (input, w)
      swish = HardSwish (first)
      up = ConvTranspose <strides = [2, 2]> (swish, t)
      output = Sigmoid (up)
    }"""
    weights = {"w": normal(4, 4, 1, 1), "t": normal(4, 4, 2, 2)}
    model, report = in_bf16(network(text, **weights))
    assert [kept.op for kept in report.kept] == ["HardSwish", "ConvTranspose"]
    assert "TensorRT-RTX" in report.kept[0].reason
    assert dtypes(model)["t"] == "FLOAT"
    assert "ConvTranspose" in to_half(network(text, **weights)).half_nodes


@pytest.fixture(scope="module")
def bf16(network_onnx, tmp_path_factory):
    path = tmp_path_factory.mktemp("bf16") / "network.onnx"
    return convert(network_onnx, path, precision="bf16")


def test_a_converted_file_is_of_the_opset_that_has_bf16_convolutions(bf16, network_onnx):
    model = onnx.load(bf16.path)
    assert {entry.version for entry in model.opset_import if not entry.domain} == {BF16.opset}
    assert read_provenance(bf16.path).precision == "bf16"
    before = Counter(node.op_type for node in onnx.load(network_onnx).graph.node)
    assert bf16.nodes["BF16"]["Conv"] == before["Conv"]
    assert bf16.half.format == "BF16"


def test_onnx_runtime_says_which_kernel_it_lacks(bf16):
    with pytest.raises(MissingCapability, match="no kernel here for") as refused:
        open_runtime(bf16.path).activate()
    assert "build-engine" in refused.value.hint


def test_gradcam_shows_what_the_gates_of_a_bf16_file_attend_to(bf16, network_onnx):
    pictures = normal(2, 3, 32, 32)
    preprocessing = read_provenance(bf16.path).preprocessing
    before, after = (
        spatial_maps(path, pictures, preprocessing).maps for path in (network_onnx, bf16.path)
    )
    assert before.keys() == after.keys()
    for gate, attention in before.items():
        np.testing.assert_allclose(after[gate], attention, atol=BF16_TOLERANCE)


def test_inlined_bf16_files_are_compared_with_bf16_rounding(bf16, tmp_path):
    from cbam_deploy.exporters import inline

    result = inline(bf16.path, tmp_path / "inlined.onnx")
    assert result.cosine > 0.9999
    assert len(result.gates) == bf16.provenance.gates["CbamGateAddRelu"]


def test_the_file_is_nearer_to_its_own_rounding_in_pytorch_than_to_fp32(bf16, network_onnx):
    # What lies near a half is soon decided otherwise, so it is little closer.
    x = normal(8, 3, 32, 32)
    with open_rounded(open_artefact(bf16.path)) as runner, torch.inference_mode():
        actual = runner.infer({"input": x})["logits"]
        rounded = FakeQuantized(bf16.path)(torch.from_numpy(x)).numpy()
    with open_runtime(network_onnx) as runner:
        exact = runner.infer({"input": x})["logits"]
    near, far = (tensor_error("logits", one, actual).snr_db for one in (rounded, exact))
    assert near > far + 1


def test_bf16_takes_and_gives_fp32_alone(network_onnx, tmp_path):
    with pytest.raises(BadInput, match="bf16 has no FP16 inputs"):
        convert(network_onnx, tmp_path / "x.onnx", precision="bf16", io_dtype="fp16")
    assert list(tmp_path.iterdir()) == []
