"""An ONNX file is held against another one, output by output and value by value."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cbam_deploy import convert, fuse, validate
from cbam_deploy.errors import BadInput

CHANNELS = 8


def network(
    change=lambda name, array: array, rename=lambda name: name, outputs=("scores", "boxes")
):
    """Two convolutions with a spatial gate between them and two outputs."""
    random = np.random.default_rng(0)
    weights = {
        "w1": random.standard_normal((CHANNELS, 3, 3, 3)) / 4,
        "ws": random.standard_normal((1, 2, 7, 7)) / 8,
        "w2": random.standard_normal((CHANNELS, CHANNELS, 1, 1)) / 2,
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], pads=[1] * 4, name="first"),
        helper.make_node("ReduceMax", ["c1"], ["max"], axes=[1]),
        helper.make_node("ReduceMean", ["c1"], ["mean"], axes=[1]),
        helper.make_node("Concat", ["max", "mean"], ["both"], axis=1),
        helper.make_node("Conv", ["both", "ws"], ["logit"], pads=[3] * 4),
        helper.make_node("Sigmoid", ["logit"], ["mask"]),
        helper.make_node("Mul", ["c1", "mask"], ["gated"]),
        helper.make_node("Relu", ["gated"], ["r"]),
        helper.make_node("Conv", ["r", "w2"], ["c2"], name="second"),
        helper.make_node("Neg", ["c2"], [outputs[0]]),
        helper.make_node("Abs", ["c2"], [outputs[1]]),
    ]
    for node in nodes:
        node.input[:] = [rename(name) if name not in weights else name for name in node.input]
        node.output[:] = [rename(name) for name in node.output]
    values = [
        helper.make_tensor_value_info(rename(name), TensorProto.FLOAT, ["N", channels, "H", "W"])
        for name, channels in (("x", 3), *((name, CHANNELS) for name in outputs))
    ]
    initializers = [
        numpy_helper.from_array(np.asarray(change(name, array), np.float32), name)
        for name, array in weights.items()
    ]
    graph = helper.make_graph(nodes, "net", values[:1], values[1:], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "yolo.onnx"
    onnx.save(network(), path)
    return path


OPTIONS = {"sizes": ["H=16", "W=12"], "batch_sizes": [1, 3]}


@pytest.fixture(scope="module")
def fused(original, tmp_path_factory):
    path = tmp_path_factory.mktemp("fused") / "fused.onnx"
    assert len(fuse(original, path).fused) == 1
    return path


def test_a_fused_file_is_held_against_the_one_before(original, fused):
    report = validate(fused, reference=str(original), layers="all", **OPTIONS)
    assert report.passed
    assert [output.error.name for output in report.batches[0].outputs] == ["scores", "boxes"]
    assert report.reference_kind == "ONNX Runtime"
    compared = {entry.place.value for entry in report.layers.compared}
    assert {"c1", "c2", "scores", "boxes"} <= compared
    assert any(entry.place.is_gate for entry in report.layers.compared)


def test_a_fault_is_found_and_its_place_named(original, tmp_path):
    changed = network(lambda name, array: array * (1.01 if name == "w2" else 1))
    onnx.save(changed, tmp_path / "other.onnx")
    report = validate(tmp_path / "other.onnx", reference=original, layers="all", **OPTIONS)
    assert not report.passed
    assert report.layers.first_fault.place.node == "second"
    assert "first fault at Conv second" in report.failure()[0]


def test_the_worst_place_is_named_where_no_value_leaves_its_own_bound(original, tmp_path):
    changed = network(lambda name, array: array * (1 + 1e-6 * (name == "w2")))
    onnx.save(changed, tmp_path / "other.onnx")
    report = validate(
        tmp_path / "other.onnx", reference=original, layers="all", max_relative=1e-9, **OPTIONS
    )
    assert report.layers.passed
    message, _ = report.failure()
    assert "no value inside leaves its own bound; the worst is at Conv second" in message


def test_outputs_of_other_names_correspond_by_order(original, tmp_path):
    onnx.save(network(outputs=("a", "b"), rename="{}_".format), tmp_path / "renamed.onnx")
    assert validate(tmp_path / "renamed.onnx", reference=original, sizes=["H=8", "W=8"]).passed
    swapped = network(outputs=("boxes", "scores"))
    onnx.save(swapped, tmp_path / "swapped.onnx")  # By name: its boxes are negative scores.
    assert not validate(tmp_path / "swapped.onnx", reference=original, **OPTIONS).passed


def test_half_precision_is_held_to_its_own_bound(original, tmp_path, cli):
    convert(original, tmp_path / "half.onnx", sizes=OPTIONS["sizes"])
    ended = cli("validate", tmp_path / "half.onnx", "--reference", original, "--batch", "2")
    assert (ended.code, ended.err) == (0, "")
    assert f"Parity with {original}: passed" in " ".join(ended.out.split())


def test_files_of_other_outputs_are_refused(original, tmp_path):
    model = network()
    del model.graph.output[1]
    onnx.save(model, tmp_path / "one.onnx")
    with pytest.raises(BadInput, match="has 1 outputs, the reference"):
        validate(tmp_path / "one.onnx", reference=original, **OPTIONS)
    with pytest.raises(BadInput, match="weights of its own"):
        validate(original, reference=original, weights="a.pt", **OPTIONS)


def test_noise_is_no_test_of_int8(original, tmp_path, caplog):
    quantized = tmp_path / "int8.onnx"
    convert(
        original,
        quantized,
        precision="int8",
        calibration="digits",
        preprocessing="stretch 16, rgb, /255",
    )
    caplog.clear()
    report = validate(quantized, reference=original, batch_sizes=[4])
    assert report.passed
    assert report.inputs == "pictures of digits"
    assert "noise is no test of INT8" in caplog.text


def test_a_file_that_another_names_is_not_opened_for_comparison(original, tmp_path):
    samples = tmp_path / "x.npy"
    np.save(samples, np.random.default_rng(0).random((8, 3, 16, 16), np.float32))
    quantized = tmp_path / "int8.onnx"
    convert(
        original,
        quantized,
        precision="int8+fp32",
        calibration=str(samples),
        preprocessing="stretch 16, rgb, /255",
    )
    assert validate(quantized, reference=original, batch_sizes=[4]).inputs == "pictures of photos"


def test_a_preprocessing_beside_tensors_is_refused(original, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, 3, 16, 16), np.float32))
    with pytest.raises(BadInput, match="tensors are taken as they are"):
        validate(original, reference=original, data=f"{tmp_path}/x.npy", preprocessing="raw")
