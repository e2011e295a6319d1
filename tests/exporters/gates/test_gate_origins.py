"""Gates as their origins write them are fused to the operators that they are, by either exporter.

dynamo exports all of them in one network, TorchScript each by itself and for any size.
"""

import numpy as np
import pytest
from gated_networks import lively
from keras_networks import keras_network
from onnx.reference import ReferenceEvaluator
from onnxruntime import InferenceSession
from origin_files import TOLERANCE, assert_computes, export, picture
from origins import ORIGINS, Blocks
from torch.export import Dim
from ultralytics_networks import Detector

from cbam_deploy.exporters import fuse
from cbam_deploy.graphs.onnx_file import write_model
from cbam_deploy.tracing.network_inputs import parse_inputs
from cbam_deploy.tracing.torch_graph import trace
from tests.conftest import once

BY_DYNAMO = [name for name, origin in ORIGINS.items() if not origin.alike]


def network(*names):
    return lively(Blocks({name: ORIGINS[name].make for name in names}))


@pytest.fixture(scope="session")
def by_dynamo(tmp_path_factory):
    """Origins in one network, fused: the module, the report and the file."""
    module = network(*BY_DYNAMO)

    def make(path):
        free = ({0: Dim("batch", min=2)},)
        export(module, path, dynamo=True, opset_version=18, dynamic_shapes=free)

    path = once(tmp_path_factory, "origins", "exported.onnx", make)
    fused = tmp_path_factory.mktemp("origins") / "fused.onnx"
    return module, fuse(path, fused), fused


@pytest.mark.parametrize("name", BY_DYNAMO)
def test_what_dynamo_exports_is_fused(name, by_dynamo):
    _, report, _ = by_dynamo
    found = [operator for node, operator in report.fused if node.startswith(f"blocks.{name}.")]
    assert tuple(found) == ORIGINS[name].operators


def test_what_dynamo_exports_computes_the_same(by_dynamo):
    module, _, path = by_dynamo
    assert_computes(path, module, picture(batch=3))


@pytest.mark.parametrize("name", ORIGINS)
def test_what_torchscript_exports_is_fused(name, tmp_path, fused):
    module, fixed = network(name), ORIGINS[name].fixed
    axes = {} if fixed else {0: "batch", 2: "height", 3: "width"}
    path = tmp_path / "exported.onnx"
    export(module, path, dynamo=False, opset_version=17, dynamic_axes={"input": axes})
    report, path = fused(path)
    assert_computes(path, module, picture() if fixed else picture(3, 9, 21))
    assert tuple(operator for _, operator in report.fused) == ORIGINS[name].operators


def test_a_detector_of_free_size_is_fused(tmp_path, fused):
    module = lively(Detector())
    model = trace(module, parse_inputs(["image:Nx3xH=64xW=96"]), None, "detector")
    write_model(model, tmp_path / "exported.onnx")
    report, path = fused(tmp_path / "exported.onnx")
    for height, width in ((64, 96), (96, 32)):
        assert_computes(path, module, picture(1, height, width))
    expected = ["CbamGateMeanLinearAdd"] * 2 + ["CbamGateMeanLinear"]
    assert [operator for _, operator in report.fused] == expected


@pytest.mark.parametrize(
    ("gate", "operator"), [("se", "SeGate"), ("cbam", "CbamGate")], ids=["se", "cbam"]
)
def test_what_tf2onnx_makes_of_keras_is_fused(gate, operator, fused):
    model = keras_network(gate)
    report, path = fused(model)
    x = np.random.default_rng(1).standard_normal((2, 10, 12, 3), dtype=np.float32)
    (reference,) = ReferenceEvaluator(model).run(None, {"input": x})
    (found,) = InferenceSession(path).run(None, {"input": x})
    assert np.abs(found - reference).max() <= TOLERANCE * np.abs(reference).max()
    assert [op for _, op in report.fused] == [operator]
