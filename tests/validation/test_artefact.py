"""An FP16 file is judged by the numbers a GPU would compute, also on a CPU."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cbam_deploy.artefacts import open_artefact
from cbam_deploy.errors import BadInput
from cbam_deploy.exporters.half.rounded_runner import ROUNDING, open_rounded
from cbam_deploy.runtimes import open_runtime


@pytest.fixture
def there_and_back(tmp_path):
    """input * 1e4 * 1e-4 in FP16: overflows in between for inputs above 6.5."""
    factors = {"up": 1e4, "down": 1e-4}
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["input"], ["half"], to=TensorProto.FLOAT16),
            helper.make_node("Mul", ["half", "up"], ["large"]),
            helper.make_node("Mul", ["large", "down"], ["back"]),
            helper.make_node("Cast", ["back"], ["output"], to=TensorProto.FLOAT),
        ],
        "there_and_back",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(np.float16(value), name) for name, value in factors.items()],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


def test_overflow_that_a_cpu_hides_is_seen(there_and_back):
    feeds = {"input": np.array([[1.0, 10.0]], np.float32)}
    with open_rounded(open_artefact(there_and_back)) as runner:
        assert runner.name == ROUNDING
        judged = runner.infer(feeds)["output"]
    with np.errstate(over="ignore"):
        half = feeds["input"].astype(np.float16) * np.float16(1e4) * np.float16(1e-4)
    np.testing.assert_array_equal(judged, half.astype(np.float32))
    assert np.isinf(judged[0, 1])


def test_values_inside_are_rounded_too(there_and_back):
    with open_rounded(open_artefact(there_and_back), extra_outputs=["large"]) as runner:
        large = runner.infer({"input": np.array([[1.0003, 2.0]], np.float32)})["large"]
    np.testing.assert_array_equal(large, large.astype(np.float16).astype(large.dtype))


def test_fp32_runs_as_it_is(network_onnx):
    opened = open_artefact(network_onnx)
    with open_rounded(opened) as judged, open_runtime(opened) as plain:
        assert judged.name == plain.name == "onnxruntime-cpu"


def test_biases_of_an_int8_layer_are_added_as_floats(tmp_path):
    """With scales of 1 a bias of 0.3 is less than half a step of the sums, and lost if rounded."""
    values = {
        "one": np.float32(1),
        "tenth": np.float32(0.1),
        "zero": np.int8(0),
        "w": np.ones((1, 1, 1, 1), np.int8),
        "bias": np.array([0.3], np.float32),
    }
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["input", "one", "zero"], ["i"]),
            helper.make_node("DequantizeLinear", ["i", "one", "zero"], ["x"]),
            helper.make_node("DequantizeLinear", ["w", "one", "zero"], ["weight"]),
            helper.make_node("Conv", ["x", "weight", "bias"], ["sum"]),
            helper.make_node("QuantizeLinear", ["sum", "tenth", "zero"], ["k"]),
            helper.make_node("DequantizeLinear", ["k", "tenth", "zero"], ["output"]),
        ],
        "biased",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, 1, 1])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 1, 1, 1])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    path = tmp_path / "biased.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    with open_rounded(open_artefact(path)) as runner:
        (found,) = runner.infer({"input": np.full((1, 1, 1, 1), 2, np.float32)}).values()
    np.testing.assert_allclose(found.ravel(), [2.3], rtol=1e-6)


def test_a_file_that_loads_only_in_its_rounded_form_is_refused(tmp_path):
    """ONNX Runtime makes integers of DQ, Concat, Q, and those want FP32 scales."""
    dtype = TensorProto.FLOAT16
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["input", "scale", "zero"], ["i"]),
            helper.make_node("DequantizeLinear", ["i", "scale", "zero"], ["a"]),
            helper.make_node("QuantizeLinear", ["input", "other", "zero"], ["k"]),
            helper.make_node("DequantizeLinear", ["k", "other", "zero"], ["b"]),
            helper.make_node("Concat", ["a", "b"], ["c"], axis=1),
            helper.make_node("QuantizeLinear", ["c", "scale", "zero"], ["j"]),
            helper.make_node("DequantizeLinear", ["j", "scale", "zero"], ["output"]),
        ],
        "joined",
        [helper.make_tensor_value_info("input", dtype, ["batch", 2])],
        [helper.make_tensor_value_info("output", dtype, ["batch", 4])],
        [
            numpy_helper.from_array(np.float16(0.5), "scale"),
            numpy_helper.from_array(np.float16(0.25), "other"),
            numpy_helper.from_array(np.int8(0), "zero"),
        ],
    )
    path = tmp_path / "joined.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)]), path)
    with pytest.raises(BadInput, match=r"joined\.onnx: ONNX Runtime cannot load it"):
        open_rounded(open_artefact(path)).activate()
