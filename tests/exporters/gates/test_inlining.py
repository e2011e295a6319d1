"""Inlined files compute the same by standard operators alone, and can be fused again."""

import numpy as np
import onnx
import onnxruntime
import pytest
from gate_models import gate_model, random_weights

from cbam_deploy import fuse, inline
from cbam_deploy.errors import BadInput

OPERATORS = ["CbamGateAddRelu", "SeGate", "CbamGateMeanLinearThenSilu", "EcaGate", "ScseGate"]


def run(path, feeds):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("op", OPERATORS)
def test_an_inlined_file_computes_the_same_without_functions(op, dtype, tmp_path):
    source, inlined = tmp_path / "gates.onnx", tmp_path / "plain.onnx"
    onnx.save(gate_model(op, random_weights(op, 16), dtype, channels=16, nodes=2), source)
    report = inline(source, inlined)
    assert [operator for _, operator in report.gates] == [op, op]
    model = onnx.load(inlined)
    assert not model.functions
    assert {node.domain for node in model.graph.node} == {""}
    assert [opset.domain for opset in model.opset_import] == [""]
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)
    random = np.random.default_rng(0)
    names = [value.name for value in model.graph.input]
    feeds = {name: random.standard_normal((2, 16, 5, 7)).astype(dtype) for name in names}
    largest = np.abs(run(source, feeds)).max()
    tolerance = 1e-5 if dtype == np.float32 else 2e-3  # Two gates, one rounding to FP16 each.
    assert np.abs(run(inlined, feeds) - run(source, feeds)).max() <= tolerance * largest


@pytest.mark.parametrize(("dtype", "casts"), [(np.float32, 0), (np.float16, 3)])
def test_weights_lie_as_operators_take_them_and_no_cast_is_idle(dtype, casts, tmp_path):
    op = "CbamGateAddRelu"
    onnx.save(gate_model(op, random_weights(op, 16), dtype), tmp_path / "gate.onnx")
    inline(tmp_path / "gate.onnx", tmp_path / "plain.onnx")
    graph = onnx.load(tmp_path / "plain.onnx").graph
    weights = {tensor.name for tensor in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 4  # Two of the first layer, one of the last, one of the map.
    assert {name for node in convolutions for name in node.input[1:]} <= weights
    assert not any(entry.name == "auto_pad" for node in convolutions for entry in node.attribute)
    operators = [node.op_type for node in graph.node]
    assert operators.count("Cast") == casts
    assert "CastLike" not in operators


def test_an_inlined_file_is_fused_again(tmp_path):
    source, inlined, again = (tmp_path / name for name in ("a.onnx", "b.onnx", "c.onnx"))
    onnx.save(gate_model("CbamGateAddRelu", random_weights("CbamGateAddRelu", 16)), source)
    inline(source, inlined)
    assert [op for _, op in fuse(inlined, again).fused] == ["CbamGateAddRelu"]


def test_an_output_in_the_place_of_the_file_is_refused(tmp_path):
    source = tmp_path / "gates.onnx"
    onnx.save(gate_model("SeGate", random_weights("SeGate", 16)), source)
    with pytest.raises(BadInput, match=r"gates\.onnx"):
        inline(source, source)
