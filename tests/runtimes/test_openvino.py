"""OpenVINO as a runner."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser

from cbam_deploy.errors import BadInput, MissingCapability
from cbam_deploy.numerics.tensors import TensorSpec
from cbam_deploy.runtimes import open_runtime
from cbam_deploy.runtimes.openvino import OpenVinoRunner

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="needs the package openvino"
)
FP16_ROUNDING = 2.0**-11


@needs_openvino
def test_outputs_are_those_of_the_graph_in_fp32_at_any_batch(model, pictures, reference, tolerance):
    """CPUs with BF16 would compute in that, a hundred times further off than this tolerance."""
    with open_runtime(model, runtime="openvino", threads=1) as runner:
        assert runner.name == "openvino-cpu"
        assert runner.inputs == (TensorSpec("input", ("batch", 3, 8, 8), "float32"),)
        assert runner.outputs == (TensorSpec("logits", ("batch", 5), "float32"),)
        assert runner.batch_range == (1, None)
        for batch in (3, 1):
            logits = runner.infer({"input": pictures[:batch]})["logits"]
            expected = reference(pictures[:batch])["logits"]
            np.testing.assert_allclose(logits, expected, rtol=0, atol=tolerance(expected))


@needs_openvino
def test_fp16_files_are_computed_in_fp32_from_their_rounded_values(model, pictures, weights):
    proto = onnx.load(model)
    for tensor in proto.graph.initializer:
        values = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        weights = {**weights, tensor.name: values.astype(np.float64)}
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    onnx.save(proto, model)
    feeds = pictures.astype(np.float16)
    with OpenVinoRunner(model) as runner:
        assert runner.inputs[0].dtype == "float16"
        logits = runner.infer({"input": feeds})["logits"]
    assert logits.dtype == np.float16
    padded = np.pad(feeds.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    features = np.einsum("nchwij,kcij->nkhw", windows, weights["weight"])
    features += weights["bias"][:, None, None]
    expected = np.maximum(features, 0).mean(axis=(2, 3)) @ weights["classifier"].T
    largest = np.abs(expected).max()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2 * FP16_ROUNDING * largest)


QUANTIZED = """
<ir_version: 10, opset_import: ["" : 18]>
network (float[n,4,6,6] x) => (float[n,8,6,6] y)
<float x_scale = {0.03125}, int8 zero = {0}, float w_scale = {0.015625}>
{
  qx = QuantizeLinear (x, x_scale, zero)
  dx = DequantizeLinear (qx, x_scale, zero)
  dw = DequantizeLinear (w, w_scale, zero)
  y = Conv (dx, dw)
}
"""


@needs_openvino
def test_int8_files_compute_what_their_scales_say(tmp_path):
    random = np.random.default_rng(0)
    weight = random.integers(-127, 128, (8, 4, 1, 1), dtype=np.int8)
    proto = parser.parse_model(QUANTIZED)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    onnx.save(proto, tmp_path / "int8.onnx")
    x = random.standard_normal((2, 4, 6, 6), dtype=np.float32)
    steps = np.clip(np.rint(x.astype(np.float64) * 32), -128, 127)
    expected = np.einsum("nchw,kc->nkhw", steps, weight[:, :, 0, 0].astype(np.float64)) / 32 / 64
    with OpenVinoRunner(tmp_path / "int8.onnx") as runner:
        np.testing.assert_allclose(runner.infer({"x": x})["y"], expected, rtol=1e-6, atol=1e-6)


@needs_openvino
def test_values_inside_are_returned_and_unknown_ones_refused_by_name(
    model, pictures, reference, tolerance
):
    names = ("features", "pooled", "logits")
    with open_runtime(model, runtime="openvino", extra_outputs=names) as runner:
        computed = runner.infer({"input": pictures})
    assert set(computed) == set(names)
    for name, expected in reference(pictures).items():
        np.testing.assert_allclose(computed[name], expected, rtol=0, atol=tolerance(expected))
    with pytest.raises(BadInput, match=r"network.onnx: no node computes 'nonsense'"):
        OpenVinoRunner(model, extra_outputs=("nonsense",)).activate()


@needs_openvino
def test_external_data_is_found_beside_the_file(model, pictures, reference, tolerance, monkeypatch):
    proto = onnx.load(model)
    onnx.save(proto, model, save_as_external_data=True, location="weights.bin", size_threshold=0)
    monkeypatch.chdir("/")
    with OpenVinoRunner(model) as runner:
        logits = runner.infer({"input": pictures})["logits"]
    expected = reference(pictures)["logits"]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=tolerance(expected))


@needs_openvino
@pytest.mark.parametrize(
    ("feeds", "complaint"),
    [
        ({}, "input input: it is not given"),
        ({"input": np.zeros((1, 3, 8, 8))}, "input input: its dtype is float64"),
        ({"input": np.zeros((1, 3, 9, 8), np.float32)}, r"its shape is \[1, 3, 9, 8\]"),
    ],
)
def test_unfit_input_is_refused_by_name(model, feeds, complaint):
    with OpenVinoRunner(model) as runner:
        for run in (runner.infer, runner.prepare):
            with pytest.raises(BadInput, match=complaint):
                run(feeds)


@needs_openvino
def test_an_operator_that_openvino_lacks_is_refused_by_name(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Strange", ["x"], ["y"], domain="com.example")],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 4])],
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("com.example", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), tmp_path / "odd.onnx")
    with pytest.raises(BadInput, match=r"odd\.onnx: OpenVINO cannot load it .*Strange"):
        OpenVinoRunner(tmp_path / "odd.onnx").activate()


@needs_openvino
def test_sizes_that_a_file_leaves_open_are_free_one_by_one(model, pictures):
    proto = onnx.load(model)
    for axis in (2, 3):
        proto.graph.input[0].type.tensor_type.shape.dim[axis].Clear()
    onnx.save(proto, model)
    with OpenVinoRunner(model) as runner:
        assert runner.inputs[0].shape == ("batch", 3, "input_2", "input_3")
        assert runner.infer({"input": pictures[..., :7]})["logits"].shape == (3, 5)


@needs_openvino
def test_timed_runs_are_counted_and_inputs_of_two_batches_kept_apart(model, pictures):
    with OpenVinoRunner(model) as runner:
        large, small = (runner.prepare({"input": pictures[:size]}) for size in (3, 1))
        for execution in (large, small):
            seconds = execution.measure(5)
            assert seconds.shape == (5,)
            assert (seconds > 0).all()


PROGRAM = """
import sys
from cbam_deploy import open_runtime
with open_runtime(sys.argv[1], runtime="openvino") as runtime:
    print(len(runtime.outputs))
assert "openvino_telemetry" not in sys.modules
"""


@needs_openvino
def test_a_session_reports_nothing_and_leaves_nothing_in_home(tmp_path, model):
    home = tmp_path / "home"
    home.mkdir()
    cache = str(home / ".cache")
    environment = {**os.environ, "HOME": str(home), "TMPDIR": str(home), "XDG_CACHE_HOME": cache}
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(model)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout == "1\n"
    assert not list(home.rglob("*"))


def test_without_openvino_its_package_is_missing(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingCapability, match="needs the package openvino") as refused:
        open_runtime(model, runtime="openvino")
    assert "[openvino]" in refused.value.hint
