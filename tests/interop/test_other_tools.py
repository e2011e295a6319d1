"""Fused files in every precision pass through other people's tools, and compute the same after.

`make interop` asks more tools, each in an environment of its own: `docs/interop.md`.
"""

from __future__ import annotations

import importlib.util

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from benchmarks.interop.probe import checker, inliner, onnxslim
from cbam_deploy.exporters.half.conversion import to_half
from cbam_deploy.exporters.int8.quantization import quantize
from cbam_deploy.gates.operators import DOMAIN, operator_named
from cbam_deploy.graphs.gate_functions import set_functions
from cbam_deploy.graphs.onnx_file import write_model
from cbam_deploy.runtimes.onnxruntime import OnnxRuntimeRunner

CHANNELS = 16
OPERATORS = ("CbamGateAddRelu", "EcaGate", "SeGateHardSwish")
# FP32's own rounding; FP16's, of what is stored between gates; a step or two of INT8.
TOLERANCES = {"fp32": 1e-5, "fp16": 2e-3, "int8": 2e-2}


def network(picture):
    """A convolution, three gates and a convolution in FP32, and the same in FP16 and INT8."""
    random = np.random.default_rng(0)
    weights = {
        "w": random.normal(0, 0.3, (CHANNELS, 3, 3, 3)),
        "v": random.normal(0, 0.1, (4, CHANNELS, 1, 1)),
    }
    lines = ["stem = Conv <pads = [1, 1, 1, 1]> (x, w)"]
    value = "stem"
    for op in OPERATORS:
        operator = operator_named(op)
        names = []
        for name, shape in operator.weight_shapes(CHANNELS, 4, 3).items():
            names.append(f"{op}_{name}")
            weights[names[-1]] = random.normal(0, 0.5, shape)
        maps = [value] + ["stem"] * (len(operator.maps) - 1)
        lines.append(f"{op}_out = {DOMAIN}.{op} ({', '.join([*maps, *names])})")
        value = f"{op}_out"
    lines.append(f"y = Conv ({value}, v)")
    proto = parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 18, "{DOMAIN}" : 1]>\n'
        "network (float[n,3,8,8] x) => (float[n,4,8,8] y) {\n" + "\n".join(lines) + "\n}"
    )
    for name, values in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    fp32 = ir.from_proto(proto)
    set_functions(fp32)
    fp16 = fp32.clone()
    to_half(fp16)
    int8, _ = quantize(fp32, [picture], method="minmax")
    to_half(int8)
    return {"fp32": fp32, "fp16": fp16, "int8": int8}


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(1).standard_normal((2, 3, 8, 8), dtype=np.float32)


@pytest.fixture(scope="module")
def files(tmp_path_factory, picture):
    folder = tmp_path_factory.mktemp("files")
    for precision, model in network(picture).items():
        write_model(model, folder / f"{precision}.onnx")
    return folder


def run(path, picture):
    with OnnxRuntimeRunner(path) as runner:
        return runner.infer({"x": picture})["y"]


@pytest.mark.parametrize("precision", TOLERANCES)
def test_onnx_checks_them_in_full(files, precision, picture, tmp_path):
    checker(files / f"{precision}.onnx", {"x": picture}, tmp_path / "out")


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize(
    "tool",
    [
        inliner,
        pytest.param(
            onnxslim,
            marks=pytest.mark.skipif(
                importlib.util.find_spec("onnxslim") is None, reason="needs the package onnxslim"
            ),
        ),
    ],
)
def test_what_a_tool_writes_computes_the_same(files, tool, precision, picture, tmp_path):
    fused = files / f"{precision}.onnx"
    tool(fused, {"x": picture}, tmp_path / "out")
    expected = run(fused, picture)
    atol = TOLERANCES[precision] * np.abs(expected).max()
    np.testing.assert_allclose(run(tmp_path / "out.onnx", picture), expected, rtol=0, atol=atol)
