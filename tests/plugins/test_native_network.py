"""A lowered network's gates through the plugin library, with the launches of a real GPU.

`benchmarks/lowered_network.py` does the same for the gates of CBAM-ResNet-50, in all tactics.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from lowered_network import (
    WARP,
    driver_kernels,
    lowered_gates,
    results,
    runs_of,
)
from native_build import Programs, build_driver, build_host, packaged_library
from native_cases import stand_in_image
from onnx import numpy_helper, parser

from cbam_deploy.exporters.lower import lower
from cbam_deploy.gates.reference import disagreement
from cbam_deploy.graphs.gate_functions import set_functions
from cbam_deploy.plugins import images
from cbam_deploy.plugins.compile import CompiledKernels

NETWORK = """
<ir_version: 10, opset_import: ["" : 18, "cbam_deploy" : 1]>
two (float[batch, 32, 4, 4] x) => (float[batch, 32, 4, 4] y)
{
  features = Relu (x)
  between = cbam_deploy.CbamGateAddRelu (features, x, w0, b0, w1, b1, ws, bs)
  y = cbam_deploy.CbamGateAddRelu (between, features, w0, b0, w1, b1, ws, bs)
}
"""
SHAPES = {"w0": (4, 32), "b0": (4,), "w1": (32, 4), "b1": (32,), "ws": (1, 2, 7, 7), "bs": (1,)}


def test_gates_that_share_kernels_run_as_they_were_lowered_for_orin(built, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    proto = parser.parse_model(NETWORK)
    for name, shape in SHAPES.items():
        value = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(value, name))
    for node, name in zip(proto.graph.node, ("relu", "first", "second"), strict=True):
        node.name = name
    model = ir.from_proto(proto)
    set_functions(model)
    source, lowered = tmp_path / "two.onnx", tmp_path / "two-trt.onnx"
    onnx.save(ir.to_proto(model), source)

    kernels = []

    def compiled(wanted, architecture):
        (kernel,) = wanted
        kernels.append(kernel)
        image = stand_in_image(kernel.name, architecture)
        return CompiledKernels(architecture, image, (kernel.name,), "", b".version 9.0\n\0")

    monkeypatch.setattr(images, "compile_kernels", compiled)
    lower(source, lowered, targets=["sm_87"])
    gates = lowered_gates(lowered, source)
    assert [gate.name for gate in gates] == ["first", "second"]
    offsets = [{image.offset is None for image in gate.program.images} for gate in gates]
    assert offsets == [{False}, {True}], "the first gate carries the kernels of both"

    # One format; in it the staged kernels and a fused one.
    by_number = {run.tactic.number: run for run in runs_of(gates[1:]) if run.form.layout == "HWC"}
    runs = [by_number[min(by_number)], by_number[max(by_number)]]
    assert [len(run.tactic.launches) for run in runs] == [3, 1]
    assert {launch.threads % WARP for run in runs for launch in run.tactic.launches} == {0}
    driver = build_driver(built, driver_kernels(runs, kernels), WARP)
    programs = Programs(packaged_library(built), build_host(built), driver).on(87)
    maps = gates[1].maps(2)
    expected = gates[1].expected(maps)
    for run, y in zip(
        runs, results(gates, runs, {"second": maps}, programs, tmp_path), strict=True
    ):
        assert disagreement(run.gate.gate(run.form), y, expected) is None
