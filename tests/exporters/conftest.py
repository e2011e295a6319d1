"""Small networks as ONNX files of standard ops, exported once, and what to do with them."""

import gated_networks
import numpy as np
import onnx
import onnxruntime
import pytest
from gated_networks import SIZE

from cbam_deploy.exporters import fuse
from cbam_deploy.graphs.onnx_file import write_model
from cbam_deploy.tracing.torch_graph import trace


def _export(module, path):
    write_model(trace(gated_networks.lively(module), SIZE, None, "network"), path)
    return path


@pytest.fixture(scope="session")
def variants_onnx(tmp_path_factory):
    """One gate of each variant, in no residual block."""
    return _export(gated_networks.Variants(), tmp_path_factory.mktemp("variants") / "net.onnx")


@pytest.fixture(scope="session")
def residual_onnx(tmp_path_factory):
    """Residual blocks gated by CBAM, SE and CBAM."""
    return _export(gated_networks.Residual(), tmp_path_factory.mktemp("residual") / "net.onnx")


@pytest.fixture
def fused(tmp_path):
    """Fuse a file, or a model saved as ``source.onnx``; return the report and the new file."""

    def run(source):
        if isinstance(source, onnx.ModelProto):
            onnx.save(source, tmp_path / "source.onnx")
            source = tmp_path / "source.onnx"
        return fuse(source, tmp_path / "fused.onnx"), tmp_path / "fused.onnx"

    return run


def _outputs(path, batch):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(batch)
    x = random.standard_normal((batch, 3, SIZE, SIZE), dtype=np.float32)
    return session.run(None, {session.get_inputs()[0].name: x})


@pytest.fixture
def same_outputs():
    """Assert that two files compute the same, but for the order of a few FP32 sums."""

    def check(path, other):
        for batch in (1, 3):
            for ours, theirs in zip(_outputs(path, batch), _outputs(other, batch), strict=True):
                np.testing.assert_allclose(ours, theirs, atol=5e-6 * np.abs(theirs).max(), rtol=0)

    return check
