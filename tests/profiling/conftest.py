"""A tiny network with a gate, whole and with Q and DQ, whose nodes partly lack names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from cbam_deploy.graphs.gate_functions import set_functions
from cbam_deploy.graphs.name_scopes import NAME_SCOPES

NETWORK = """
<ir_version: 10, opset_import: ["" : 18, "cbam_deploy" : 1]>
network (float[batch,3,16,16] input) => (float[batch,8,16,16] output)
{
  features = Conv <pads = [1, 1, 1, 1]> (input, stem)
  rectified = Relu (features)
  map = Conv <pads = [1, 1, 1, 1]> (rectified, block_conv)
  gated = cbam_deploy.CbamGateAddRelu (map, rectified, W0, B0, W1, B1, WS, BS)
  output = Exp (gated)
}
"""
QUANTIZED = """
<ir_version: 10, opset_import: ["" : 18]>
network (float[batch,3,16,16] input) => (float[batch,8,16,16] output)
<float step = {0.0625}, uint8 zero = {128}, int8 middle = {0}>
{
  q_input = QuantizeLinear (input, step, zero)
  d_input = DequantizeLinear (q_input, step, zero)
  d_stem = DequantizeLinear (stem, step, middle)
  features = Conv <pads = [1, 1, 1, 1]> (d_input, d_stem)
  q_features = QuantizeLinear (features, step, zero)
  d_features = DequantizeLinear (q_features, step, zero)
  output = Exp (d_features)
}
"""
SHAPES = {
    "stem": (8, 3, 3, 3), "block_conv": (8, 8, 3, 3), "W0": (4, 8), "B0": (4,), "W1": (8, 4),
    "B1": (8,), "WS": (1, 2, 7, 7), "BS": (1,),
}  # fmt: skip
# What the parser has no spelling for: weights called after their modules.
WEIGHTS = {
    "stem": "stem.weight", "block_conv": "block.conv.weight",
    **{name: f"block.gate.{name}" for name in ("W0", "B0", "W1", "B1", "WS", "BS")},
}  # fmt: skip
NAMES = {"features": "stem_conv", "map": "block_conv", "gated": "gate"}


@pytest.fixture(scope="session")
def gated_file(tmp_path_factory) -> Path:
    """conv, Relu, conv, a fused gate, Exp: a file whose Relu and Exp have no names."""
    random = np.random.default_rng(0)
    proto = parser.parse_model(NETWORK)
    for name, shape in SHAPES.items():
        values = 0.1 * random.standard_normal(shape, dtype=np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(values, WEIGHTS[name]))
    for node in proto.graph.node:
        node.name = NAMES.get(node.output[0], "")
        node.input[:] = [WEIGHTS.get(name, name) for name in node.input]
    exp = proto.graph.node[-1]
    exp.metadata_props.add(key=NAME_SCOPES, value="['', 'head', 'head.exp', 'exp']")
    model = ir.from_proto(proto)
    set_functions(model)
    path = tmp_path_factory.mktemp("profiled") / "gated.onnx"
    onnx.save(ir.to_proto(model), path)
    return path


@pytest.fixture(scope="session")
def int8_file(gated_file) -> Path:
    """A convolution between DQ and Q, and Exp behind it."""
    proto = parser.parse_model(QUANTIZED)
    values = np.random.default_rng(0).integers(-127, 128, (8, 3, 3, 3), dtype=np.int8)
    proto.graph.initializer.append(numpy_helper.from_array(values, "stem.weight_quantized"))
    for node in proto.graph.node:
        node.name = f"node_{node.output[0]}"
        node.input[:] = ["stem.weight_quantized" if n == "stem" else n for n in node.input]
    path = gated_file.with_name("int8.onnx")
    onnx.save(proto, path)
    return path


@pytest.fixture(scope="session", autouse=True)
def short_rounds():
    """Rounds as short as they can be: no test here asks how long anything takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cbam_deploy.benchmarking.interleaving.ROUND_SECONDS", 0.001)
        patch.setattr("cbam_deploy.benchmarking.warm_up.MIN_SECONDS", 0.001)
        patch.setattr("cbam_deploy.benchmarking.warm_up.CHUNK_SECONDS", 0.001)
        yield
