"""Pools as large as the map are exported for every size; gates of other than planes are left."""

import copy

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional

from cbam_deploy.errors import BadInput
from cbam_deploy.exporters.gates.fusion import fuse_model
from cbam_deploy.tracing.network_inputs import parse_inputs
from cbam_deploy.tracing.torch_graph import trace


class Pools(nn.Module):
    """Each pool [N, C, ...] of a convolution's map, one output per pool."""

    def __init__(self, pools, axes=2):
        super().__init__()
        self.conv = getattr(nn, f"Conv{axes}d")(3, 4, 3, stride=2, padding=1)
        self.pools = pools

    def forward(self, x):
        x = self.conv(x)
        return tuple(pool(x) for pool in self.pools)


def sides(x):
    return x.size()[2:]


WHOLE = (
    lambda x: functional.avg_pool2d(x, (x.size(2), x.size(3)), stride=(x.size(2), x.size(3))),
    lambda x: functional.avg_pool2d(input=x, kernel_size=list(sides(x)), stride=1),
    lambda x: functional.max_pool2d(x, sides(x)),
    lambda x: nn.MaxPool2d(sides(x))(x),
    lambda x: functional.max_pool2d(x, sides(x), return_indices=True)[0],
    lambda x: functional.lp_pool2d(x, 2, sides(x)),
    lambda x: functional.max_pool1d(x.flatten(2), x.size(2) * x.size(3)),
)


def assert_exported(module, spec, **shape):
    """The graph of `module` computes, at `shape`, what the module does in float64."""
    torch.manual_seed(0)
    graph = trace(module.eval(), parse_inputs([spec]), None, "network")
    session = onnxruntime.InferenceSession(
        ir.to_proto(graph).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    x = torch.randn(*shape.values())
    with torch.inference_mode():
        references = copy.deepcopy(module).double()(x.double())
    found = session.run(None, {"x": x.numpy()})
    for ours, reference in zip(found, references, strict=True):
        np.testing.assert_allclose(ours, reference.numpy(), rtol=1e-5, atol=1e-6)
    return graph


def test_a_window_as_large_as_the_map_pools_maps_of_any_size():
    assert_exported(Pools(WHOLE), "x:Nx3xH=16xW=12", batch=3, channels=3, height=22, width=38)


def test_the_maximum_of_a_volume_is_exported():
    pools = (
        lambda x: functional.adaptive_max_pool3d(x, 1),
        lambda x: functional.adaptive_max_pool3d(x, (1, 1, 1), return_indices=True)[0],
        lambda x: functional.max_pool3d(x, sides(x)),
    )
    shape = {"batch": 1, "channels": 3, "depth": 5, "height": 8, "width": 10}
    assert_exported(Pools(pools, axes=3), "x:Nx3xD=4xH=6xW=8", **shape)


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: functional.avg_pool2d(x, (x.size(2), 1)),
        lambda x: functional.avg_pool2d(x, sides(x), padding=1),
    ],
    ids=["rows", "padded"],
)
def test_another_window_that_follows_from_the_size_is_named(pool):
    with pytest.raises(BadInput, match="window that follows from a free height or width") as error:
        trace(Pools((pool,)).eval(), parse_inputs(["x:Nx3xH=16xW=12"]), None, "network")
    assert "fix height and width with --input" in error.value.hint


def test_an_operator_that_onnx_lacks_is_named_with_a_remedy():
    module = Pools((lambda x: functional.adaptive_max_pool3d(x, 3),), axes=3)
    with pytest.raises(BadInput, match=r"aten.adaptive_max_pool3d, of which ONNX has no") as error:
        trace(module.eval(), parse_inputs(["x:Nx3x8x10x14"]), None, "network")
    assert "amax or mean" in error.value.hint


class Gate(nn.Module):
    """Channel attention of sequences or volumes, of mean and maximum, then spatial attention."""

    def __init__(self, axes):
        super().__init__()
        conv = getattr(nn, f"Conv{axes}d")
        self.mean = getattr(nn, f"AdaptiveAvgPool{axes}d")(1)
        self.maximum = getattr(nn, f"AdaptiveMaxPool{axes}d")(1)
        self.mlp = nn.Sequential(conv(8, 4, 1), nn.ReLU(), conv(4, 8, 1))
        self.enter, self.spatial = conv(3, 8, 1), conv(2, 1, 7, padding=3)

    def forward(self, x):
        x = self.enter(x)
        x = x * torch.sigmoid(self.mlp(self.mean(x)) + self.mlp(self.maximum(x)))
        pooled = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)
        return (x * torch.sigmoid(self.spatial(pooled)),)


@pytest.mark.parametrize(
    ("axes", "spec", "sizes"),
    [(1, "x:Nx3xL=16", {"length": 21}), (3, "x:Nx3x4x6x8", {"d": 4, "h": 6, "w": 8})],
    ids=["sequences", "volumes"],
)
def test_a_gate_of_other_than_planes_is_exported_and_left_with_the_reason(axes, spec, sizes):
    graph = assert_exported(Gate(axes), spec, batch=3, channels=3, **sizes)
    report = fuse_model(graph)
    assert report.fused == ()
    assert len(report.refused) == 2
    for _, reason in report.refused:
        assert "gates of maps [N, C, H, W] are fused" in reason
