"""Files of opset 11 to 17 are converted upward for INT8, and compute the same as before."""

import logging

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from spelled_gates import Spelling, write

from cbam_deploy import convert, fuse
from cbam_deploy.artefacts import open_onnx
from cbam_deploy.errors import BadInput
from cbam_deploy.exporters.newer_opset import in_newer_opset
from cbam_deploy.graphs.onnx_file import write_model
from cbam_deploy.graphs.opset import converted_to

OLD = (11, 12, 13, 15, 17)
SIZES = ("H=6", "W=8")


def model_of(opset):
    """Operators whose attributes became inputs, or whose meaning changed, until opset 19."""
    random = np.random.default_rng(0)
    weights = {
        "w": random.standard_normal((4, 3, 3, 3)).astype(np.float32),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "roi": np.zeros(0, np.float32),
    }

    def axes(name, *values):
        """Axes as an attribute; as an input from opset 13 on."""
        if opset < 13:
            return [], {"axes": list(values)}
        weights[name] = np.array(values)
        return [name], {}

    parts = {} if opset >= 13 else {"split": [2, 2]}
    squeezed, squeeze = axes("last", 3)
    spread, unsqueeze = axes("back", 3)
    halves = [] if opset < 13 else ["halves"]
    weights |= {name: np.array([2, 2]) for name in halves}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4, name="conv"),
        helper.make_node("Resize", ["c", "roi", "scales"], ["r"], mode="nearest"),
        helper.make_node("Split", ["r", *halves], ["a", "b"], axis=1, **parts),
        helper.make_node("ReduceMean", ["a"], ["m"], axes=[3], keepdims=1),
        helper.make_node("Squeeze", ["m", *squeezed], ["s"], **squeeze),
        helper.make_node("Softmax", ["s"], ["p"], axis=2),
        helper.make_node("Unsqueeze", ["p", *spread], ["u"], **unsqueeze),
        helper.make_node("HardSigmoid", ["u"], ["h"], alpha=1 / 6),
        helper.make_node("Mul", ["b", "h"], ["boxes"]),
        helper.make_node("ReduceMax", ["boxes"], ["scores"], axes=[1], keepdims=0),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, "H", "W"])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank)
            for name, rank in (("boxes", 4), ("scores", 3))
        ],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=6)
    onnx.checker.check_model(model)
    return model


def outputs(path):
    session = onnxruntime.InferenceSession(str(path))
    x = np.random.default_rng(1).standard_normal((2, 3, 6, 8)).astype(np.float32)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {session.get_inputs()[0].name: x}), strict=True))


@pytest.mark.parametrize("opset", OLD)
def test_what_is_converted_upward_computes_the_same_under_the_same_names(tmp_path, opset):
    onnx.save(model_of(opset), tmp_path / "old.onnx")
    new = converted_to(open_onnx(tmp_path / "old.onnx").model, 19)
    assert new.opset_imports[""] == 19
    write_model(new, tmp_path / "new.onnx")
    before, after = outputs(tmp_path / "old.onnx"), outputs(tmp_path / "new.onnx")
    assert list(after) == ["boxes", "scores"]
    for name, expected in before.items():
        np.testing.assert_allclose(after[name], expected, rtol=1e-6, atol=1e-7)
    assert any(node.name == "conv" for node in new.graph)


@pytest.mark.parametrize("precision", ["int8", "int8+fp32"])
@pytest.mark.parametrize("opset", [11, 17])
def test_int8_needs_no_other_export(tmp_path, precision, opset):
    np.save(tmp_path / "x.npy", np.random.default_rng(2).standard_normal((4, 3, 6, 8)))
    onnx.save(model_of(opset), tmp_path / "old.onnx")
    made = tmp_path / "new.onnx"
    convert(
        tmp_path / "old.onnx",
        made,
        precision=precision,
        calibration=str(tmp_path / "x.npy"),
        sizes=SIZES,
    )
    found = onnx.load(made)
    assert [output.name for output in found.graph.output] == ["boxes", "scores"]
    assert any(node.op_type == "QuantizeLinear" for node in found.graph.node)
    for name, expected in outputs(tmp_path / "old.onnx").items():
        noise = np.linalg.norm(outputs(made)[name] - expected)
        assert noise < 0.05 * np.linalg.norm(expected)


@pytest.mark.parametrize("opset", [11, 14])
def test_gates_stay_nodes_with_the_bodies_of_the_new_opset(tmp_path, opset):
    onnx.save(write(Spelling(opset=opset)), tmp_path / "plain.onnx")
    fuse(tmp_path / "plain.onnx", tmp_path / "fused.onnx")
    new = converted_to(open_onnx(tmp_path / "fused.onnx").model, 19)
    (gate,) = (node for node in new.graph if node.domain == "cbam_deploy")
    assert new.functions[gate.op_identifier()].opset_imports[""] == 19
    write_model(new, tmp_path / "new.onnx")
    x = np.random.default_rng(1).standard_normal((2, 16, 9, 7)).astype(np.float32)
    plain, fused = (
        onnxruntime.InferenceSession(str(tmp_path / name)) for name in ("plain.onnx", "new.onnx")
    )
    shape = plain.get_inputs()[0].shape
    x = x[:, : shape[1]] if isinstance(shape[1], int) else x
    expected, actual = (one.run(None, {"input": x})[0] for one in (plain, fused))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_a_file_that_would_compute_something_else_is_refused(tmp_path, monkeypatch):
    onnx.save(model_of(13), tmp_path / "old.onnx")

    def wrong(model, version):
        new = converted_to(model, version)
        weight = new.graph.initializers["w"]
        weight.const_value = onnx_tensor(weight.const_value.numpy() * np.float32(1.01))
        return new

    def onnx_tensor(array):
        import onnx_ir as ir

        return ir.tensor(array, name="w")

    monkeypatch.setattr("cbam_deploy.exporters.newer_opset.converted_to", wrong)
    opened = open_onnx(tmp_path / "old.onnx").sized(SIZES)
    with pytest.raises(BadInput, match="in opset 19 instead of 13, output boxes is another"):
        in_newer_opset(opened, "int8", None, 0)


def test_outputs_whose_free_sizes_bear_one_name_are_converted(tmp_path, caplog):
    """As torch's older exporter writes several heads; ONNX Runtime believes equal names."""
    model = model_of(17)
    inner = helper.make_tensor_value_info("c", TensorProto.FLOAT, ["N", 4, "D", "D"])
    outer = helper.make_tensor_value_info("r", TensorProto.FLOAT, ["N", 4, "D", "D"])
    model.graph.value_info.extend([inner, outer])
    onnx.save(model, tmp_path / "old.onnx")
    with caplog.at_level(logging.WARNING):
        convert(tmp_path / "old.onnx", tmp_path / "half.onnx", sizes=SIZES)
    named = {info.name: info for info in onnx.load(tmp_path / "half.onnx").graph.value_info}
    assert not any(d.dim_param for d in named["c"].type.tensor_type.shape.dim)
