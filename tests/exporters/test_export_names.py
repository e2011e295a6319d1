"""An export has the opset and the output names that are asked for, and outputs keep their names."""

import json

import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

from cbam_deploy import build_engine, convert, export_onnx, fuse, inline
from cbam_deploy.errors import BadInput
from cbam_deploy.gates.description import GateSpec
from cbam_deploy.graphs.names import name_outputs
from cbam_deploy.models.gate import AttentionGate

NAMES = ["p3", "p4"]


class Heads(nn.Module):
    """A gate, and two maps of predictions."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.gate = AttentionGate(16, GateSpec(reduction=4))
        self.heads = nn.ModuleList(nn.Conv2d(16, 6, 1, stride) for stride in (1, 2))

    def forward(self, x):
        x = self.gate(self.stem(x))
        return [head(x) for head in self.heads]


def outputs_of(path):
    return [output.name for output in onnx.load(path).graph.output]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("heads") / "heads.onnx"
    export_onnx(Heads(), path, inputs=["x:Nx3x16x16"], output_names=NAMES, opset=17)
    return path


def test_opset_and_names_are_those_asked_for(exported):
    model = onnx.load(exported)
    assert next(entry.version for entry in model.opset_import if not entry.domain) == 17
    assert outputs_of(exported) == NAMES
    assert any(node.domain == "cbam_deploy" for node in model.graph.node)


@pytest.mark.parametrize("opset", [13, 20])
def test_other_opsets_compute_what_pytorch_does(tmp_path, opset):
    found = export_onnx(Heads(), tmp_path / "a.onnx", inputs=["x:Nx3x16x16"], opset=opset)
    assert found.error.max_relative < 1e-4
    assert onnx.load(tmp_path / "a.onnx").opset_import[0].version == opset


def test_outputs_keep_their_names_through_every_command(exported, tmp_path):
    plain = tmp_path / "plain.onnx"
    inline(exported, plain)
    fuse(plain, tmp_path / "fused.onnx")
    options = {"calibration": "digits", "preprocessing": "stretch 16, rgb, /255", "images": 4}
    convert(exported, tmp_path / "half.onnx", io_dtype="fp16")
    convert(exported, tmp_path / "int8.onnx", precision="int8", **options)
    for name in ("plain", "fused", "half", "int8"):
        assert outputs_of(tmp_path / f"{name}.onnx") == NAMES, name


@pytest.mark.slow
def test_outputs_of_an_engine_keep_their_names(exported, tmp_path):
    built = build_engine(exported, tmp_path / "a.engine", targets=("sm_89",), max_batch=8)
    manifest = json.loads(built.manifest_path.read_text())
    assert [output["name"] for output in manifest["outputs"]] == NAMES


@pytest.mark.parametrize("opset", [10, 99])
def test_an_opset_that_there_is_not_is_refused(tmp_path, opset):
    with pytest.raises(BadInput, match=f"opset {opset}"):
        export_onnx(Heads(), tmp_path / "a.onnx", opset=opset)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a"], r"has 2 outputs \(y, z\)"),
        (["a", "a"], "'a' cannot be the name of output y"),
        (["a", ""], "'' cannot be the name of output z"),
        (["x", "a"], "'x' cannot be"),
        (["a", "w"], "'w' cannot be"),
        (["inner", "a"], "'inner' cannot be"),
    ],
)
def test_names_that_cannot_be_are_refused(names, message):
    model = ir.from_onnx_text(
        """<ir_version: 9, opset_import: ["" : 18]>
        net (float[N, 3] x) => (float[N, 3] y, float[N, 3] z) <float[3] w = {1.0, 2.0, 3.0}> {
            inner = Mul(x, w)
            y = Neg(inner)
            z = Abs(inner)
        }"""
    )
    with pytest.raises(BadInput, match=message):
        name_outputs(model.graph, names, "net")
    name_outputs(model.graph, ["z", "y"], "net")
    assert [value.name for value in model.graph.outputs] == ["z", "y"]
