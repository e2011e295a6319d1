"""Tiny networks as ONNX files, and engines built from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from cbam_deploy.engines.build import BuildResult, build_engine
from cbam_deploy.graphs.gate_bodies import gate_function

CONVOLUTION = """
<ir_version: 10, opset_import: ["" : 18]>
convolution (float[{batch},3,{size},{size}] input) => (float[{batch},8,{size},{size}] output)
{{
  features = Conv <pads = [1, 1, 1, 1]> (input, weight)
  output = Relu (features)
}}
"""

GATED = """
<ir_version: 10, opset_import: ["" : 18, "cbam_deploy" : 1]>
gated (float[batch,3,16,16] input) => (float[batch,8,16,16] output)
{
  features = Conv <pads = [1, 1, 1, 1]> (input, weight)
  first = cbam_deploy.SeGate (features, w0, b0, w1, b1)
  output = cbam_deploy.SeGate (first, w0, b0, w1, b1)
}
"""

SHAPES = {"weight": (8, 3, 3, 3), "w0": (2, 8), "b0": (2,), "w1": (8, 2), "b1": (8,)}


def _model(text: str, *weights: str) -> onnx.ModelProto:
    model = parser.parse_model(text)
    random = np.random.default_rng(0)
    for name in weights:
        values = random.standard_normal(SHAPES[name], dtype=np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
    return model


def _gated() -> onnx.ModelProto:
    model = _model(GATED, *SHAPES)
    model.functions.append(ir.serde.serialize_function(gate_function("SeGate", 18)))
    return model


@pytest.fixture
def convolution(tmp_path: Path) -> Callable[..., Path]:
    """Writes a network of one convolution; batch and size as ONNX dimensions, free or fixed."""

    def write(name: str = "net.onnx", batch: object = "batch", size: object = 16) -> Path:
        path = tmp_path / name
        onnx.save(_model(CONVOLUTION.format(batch=batch, size=size), "weight"), path)
        return path

    return write


@pytest.fixture
def gated(tmp_path: Path) -> Path:
    """A network with two gates, nodes of one ONNX local function."""
    path = tmp_path / "gated.onnx"
    onnx.save(_gated(), path)
    return path


@pytest.fixture(scope="session")
def gated_build(tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    """What building that network for one GPU gave; no test alters its files."""
    folder = tmp_path_factory.mktemp("gated")
    onnx.save(_gated(), folder / "gated.onnx")
    return build_engine(folder / "gated.onnx", folder / "odd[1].engine", targets=("sm_89",))
