"""A small gated classifier, and an engine that nothing but its manifest vouches for."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from cbam_deploy.engines.manifest import Manifest, PluginRecord, ShapeRange, dumps, manifest_path
from cbam_deploy.graphs.gate_bodies import gate_function
from cbam_deploy.numerics.tensors import TensorSpec
from cbam_deploy.preprocessing.text import parse
from cbam_deploy.provenance import METADATA_KEY, Provenance, file_sha256

CLASSES = ("cat", "black  dog", "fish", "bird", "horse")
STEPS = "stretch 8, rgb, /255, mean 0.5, std 0.25"
NETWORK = """
<ir_version: 10, opset_import: ["" : 18, "cbam_deploy" : 1]>
net (float[batch,3,8,8] image) => (float[batch,5] logits)
{
  features = Conv <pads = [1, 1, 1, 1]> (image, weight)
  gated = cbam_deploy.SeGate (features, w0, b0, w1, b1)
  pooled = GlobalAveragePool (gated)
  flat = Flatten (pooled)
  logits = Gemm (flat, classifier)
}
"""
SHAPES = {
    "weight": (8, 3, 3, 3), "w0": (2, 8), "b0": (2,), "w1": (8, 2), "b1": (8,), "classifier": (8, 5)
}  # fmt: skip


@pytest.fixture(scope="session")
def classifier_onnx(tmp_path_factory):
    """The network, which records its classes and how its pictures are prepared."""
    model, random = parser.parse_model(NETWORK), np.random.default_rng(0)
    for name, shape in SHAPES.items():
        array = random.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    model.functions.append(ir.serde.serialize_function(gate_function("SeGate", 18)))
    history = Provenance(preprocessing=parse(STEPS), class_names=CLASSES)
    onnx.helper.set_model_props(model, {METADATA_KEY: history.dumps()})
    path = tmp_path_factory.mktemp("classifier") / "net.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture
def engine(tmp_path):
    """Make an engine file with its manifest, changed as asked."""

    def make(name="net.engine", *, plugin=None, **changes):
        path = tmp_path / name
        path.write_bytes(b"a plan")
        fields = {
            "engine_sha256": file_sha256(path),
            "engine_bytes": path.stat().st_size,
            "onnx": "net.onnx",
            "onnx_sha256": "0" * 64,
            "runtime": "tensorrt",
            "runtime_version": "10.9.0.34",
            "targets": (),
            "inputs": (TensorSpec("image", ("batch", 3, 8, 8), "float32"),),
            "outputs": (TensorSpec("logits", ("batch", 5), "float32"),),
            "profile": {"image": ShapeRange((1, 3, 8, 8), (4, 3, 8, 8), (16, 3, 8, 8))},
            "precision": "fp16",
            "gates": {},
            "options": {},
            "build_seconds": 1.0,
            "command": "cbam-deploy build-engine net.onnx -o net.engine",
            "provenance": Provenance(preprocessing=parse(STEPS), class_names=CLASSES),
            "plugin": None if plugin is None else PluginRecord("0" * 64, embedded=plugin),
            **changes,
        }
        manifest_path(path).write_text(dumps(Manifest(**fields)))
        return path

    return make
