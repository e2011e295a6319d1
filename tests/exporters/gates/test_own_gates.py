"""Every gate that has a name, and every variant of the paper, is fused as PyTorch exports it."""

import warnings

import numpy as np
import onnxruntime
import torch
from torch import nn

from cbam_deploy import fuse
from cbam_deploy.gates.description import GATES
from cbam_deploy.gates.operators import operator_for
from cbam_deploy.models.gate import AttentionGate
from cbam_deploy.studies.variants import VARIANTS

CHANNELS = 16
SPECS = {
    **{variant.name: variant.gate for variant in VARIANTS if variant.gate is not None},
    **GATES,
}


class Indexed(nn.Module):
    """ECA that takes the axis of one element away by an index."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 5, padding=2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.conv(x.mean((2, 3))[:, None])[:, 0]
        scaled: torch.Tensor = x * logits.sigmoid()[:, :, None, None]
        return scaled


class Network(nn.Module):
    """One gate of each kind behind a convolution of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.ModuleList(AttentionGate(CHANNELS, spec) for spec in SPECS.values())
        self.gates.append(Indexed())
        self.convs = nn.ModuleList(nn.Conv2d(3, CHANNELS, 3, padding=1) for _ in self.gates)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(gate(conv(x)) for gate, conv in zip(self.gates, self.convs, strict=True))


def test_every_gate_that_has_a_name_is_fused(tmp_path):
    torch.manual_seed(0)
    network, picture = Network().eval(), torch.randn(2, 3, 12, 10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (picture,), tmp_path / "a.onnx", dynamo=True, verbose=False)
    report = fuse(tmp_path / "a.onnx", tmp_path / "b.onnx")
    expected = sorted(operator_for(spec).name for spec in [*SPECS.values(), GATES["eca"]])
    assert (sorted(op for _, op in report.fused), report.refused) == (expected, ())
    session = onnxruntime.InferenceSession(tmp_path / "b.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: picture.numpy()})
    for one, other in zip(found, network.double()(picture.double()), strict=True):
        exact = other.detach().numpy()
        assert np.abs(one - exact).max() <= 1e-5 * np.abs(exact).max()
