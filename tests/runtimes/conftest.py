"""A tiny network as an ONNX file, as a PyTorch module, and in float64 NumPy."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper, parser

from cbam_deploy.engines.build import build_engine
from cbam_deploy.engines.manifest import manifest_path

NETWORK = """
<ir_version: 10, opset_import: ["" : 18]>
network (float[batch,3,8,8] input) => (float[batch,5] logits)
{
  features = Conv <pads = [1, 1, 1, 1]> (input, weight, bias)
  rectified = Relu (features)
  axes = Constant <value_ints = [2, 3]> ()
  pooled = ReduceMean <keepdims = 0> (rectified, axes)
  logits = Gemm <transB = 1> (pooled, classifier)
}
"""


@pytest.fixture(scope="session")
def weights() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shapes = {"weight": (4, 3, 3, 3), "bias": (4,), "classifier": (5, 4)}
    return {name: random.standard_normal(size, dtype=np.float32) for name, size in shapes.items()}


@pytest.fixture(scope="session")
def made(weights, tmp_path_factory) -> Path:
    """A folder with the network as an ONNX file, and its engine for batches up to 4."""
    proto = parser.parse_model(NETWORK)
    for name, values in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    folder = tmp_path_factory.mktemp("network")
    onnx.save(proto, folder / "network.onnx")
    build_engine(folder / "network.onnx", folder / "network.engine", max_batch=4)
    return folder


@pytest.fixture
def model(made, tmp_path) -> Path:
    """The ONNX file, for the test to alter."""
    return Path(shutil.copy(made / "network.onnx", tmp_path))


@pytest.fixture
def engine(made, tmp_path) -> Path:
    """The engine with its manifest, for the test to alter."""
    path = Path(shutil.copy(made / "network.engine", tmp_path))
    shutil.copy(manifest_path(made / "network.engine"), manifest_path(path))
    return path


@pytest.fixture
def module(weights) -> torch.nn.Module:
    """The network in PyTorch, in training mode as a caller may leave it."""
    convolution = torch.nn.Conv2d(3, 4, 3, padding=1)
    classifier = torch.nn.Linear(4, 5, bias=False)
    for parameter, name in (
        (convolution.weight, "weight"),
        (convolution.bias, "bias"),
        (classifier.weight, "classifier"),
    ):
        parameter.data.copy_(torch.from_numpy(weights[name]))
    pool = (torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    return torch.nn.Sequential(convolution, torch.nn.ReLU(), *pool, classifier)


@pytest.fixture
def reference(weights):
    """The values of the graph by name, in float64, from the definition of each operator."""

    def values(pictures: np.ndarray) -> dict[str, np.ndarray]:
        weight, bias, classifier = (weights[n].astype(np.float64) for n in weights)
        padded = np.pad(pictures.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
        features = np.einsum("nchwij,kcij->nkhw", windows, weight) + bias[:, None, None]
        pooled = np.maximum(features, 0).mean(axis=(2, 3))
        return {"features": features, "pooled": pooled, "logits": pooled @ classifier.T}

    return values


@pytest.fixture
def pictures() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((3, 3, 8, 8), dtype=np.float32)


def tolerance(values: np.ndarray, terms: int = 27 + 64 + 4) -> float:
    """Bound of float32 rounding: one unit per term of the longest chain of additions.

    Each output sums at most 3x3x3 products, then 64 positions, then 4 channels; the magnitude is
    that of the largest value, with a factor 4 for cancellation in the sums of products.
    """
    return float(4 * terms * np.finfo(np.float32).eps * np.abs(values).max())


@pytest.fixture(name="tolerance")
def tolerance_fixture():
    return tolerance
