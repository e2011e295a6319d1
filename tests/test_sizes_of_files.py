"""A file with free sizes and nothing recorded is counted, converted, compared, judged and timed."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from cbam_deploy import bench, complexity, convert, validate
from cbam_deploy.errors import BadInput
from cbam_deploy.graphs.onnx_file import read_provenance

SIZES = ["H=12", "W=20"]


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """A convolution of another program."""
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, "H", "W"])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, "H", "W"])
    weight = np.random.default_rng(0).standard_normal((4, 3, 1, 1)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "net",
        [image],
        [output],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])
    model.ir_version = 9
    path = tmp_path_factory.mktemp("foreign") / "foreign.onnx"
    onnx.save(model, path)
    return path


def test_it_is_counted(foreign):
    assert complexity(foreign, sizes=SIZES).multiply_adds == 3 * 4 * 12 * 20
    with pytest.raises(BadInput, match=r"leaves sizes free: \[N, 3, H, W\]"):
        complexity(foreign)


def test_it_is_converted_and_the_file_remembers(foreign, tmp_path):
    convert(foreign, tmp_path / "half.onnx", sizes=SIZES)
    assert read_provenance(tmp_path / "half.onnx").sizes == {"H": 12, "W": 20}
    assert complexity(tmp_path / "half.onnx").multiply_adds == 3 * 4 * 12 * 20
    with pytest.raises(BadInput, match="is free") as refused:
        convert(foreign, tmp_path / "half.onnx")
    assert "--size H=" in refused.value.hint


def test_it_is_timed(foreign, monkeypatch):
    monkeypatch.setattr("cbam_deploy.benchmarking.memory.applies_to", lambda _: False)
    report = bench([foreign], sizes=SIZES, batch_sizes=[1], seconds=0.01)
    assert json.loads(json.dumps(report.to_json()))["settings"]["sizes"] == SIZES
    with pytest.raises(BadInput, match="has no free axis D"):
        bench([foreign], sizes=["D=3"], batch_sizes=[1])


def test_it_is_compared(foreign):
    from torch import nn

    class Same(nn.Module):
        def __init__(self):
            super().__init__()
            import torch

            (weight,) = onnx.load(foreign).graph.initializer
            self.weight = nn.Parameter(torch.from_numpy(numpy_helper.to_array(weight).copy()))

        def forward(self, x):
            assert x.shape[2:] == (12, 20)
            return nn.functional.conv2d(x, self.weight)

    assert validate(foreign, reference=Same(), sizes=SIZES, batch_sizes=[2]).passed


def test_it_is_judged(cli, foreign, tmp_path, monkeypatch):
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    (tmp_path / "own.py").write_text("def side(outputs, names): return outputs['y'].shape[3]")
    monkeypatch.chdir(tmp_path)
    asked = ["--data", ".", "--metric", "own.py:side", "--preprocess", "stretch, rgb, /255"]
    ended = cli("evaluate", foreign, *asked, "--size", "H=12", "--size", "W=20", "--json")
    assert json.loads(ended.out)["networks"][0]["value"] == 20
    assert "nothing says the size" in cli("evaluate", foreign, *asked).error
    assert "has no free axis D" in cli("evaluate", foreign, *asked, "--size", "D=3").error
