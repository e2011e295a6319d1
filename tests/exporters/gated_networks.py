"""Small networks with gates, as modules."""

import torch
from torch import nn

from cbam_deploy.gates.description import CBAM, SE, GateSpec
from cbam_deploy.models.gate import AttentionGate

CHANNELS = 16
SIZE = 8  # of the pictures, in pixels

VARIANTS = {
    "cbam": CBAM,
    "cbam3": GateSpec(kernel_size=3),
    "se": SE,
    "maximum_only": GateSpec(channel_pool="max"),
    "mean_only": GateSpec(channel_pool="avg"),
    "conv1x1": GateSpec(spatial="conv1x1"),
    "spatial_first": GateSpec(arrangement="spatial-channel"),
    "parallel": GateSpec(arrangement="parallel"),
    "channel_alone": GateSpec(spatial="none", arrangement="channel"),
    "spatial_alone": GateSpec(arrangement="spatial"),
}
FUSED = {
    "cbam": "CbamGate",
    "cbam3": "CbamGate",
    "se": "SeGate",
    "maximum_only": "CbamGateMax",
    "mean_only": "CbamGateMean",
    "conv1x1": "CbamGateConvMap",
    "spatial_first": "CbamGateSpatialFirst",
    "parallel": "CbamGateParallel",
    "channel_alone": "SeGateMeanMax",
    "spatial_alone": "SpatialGate",
}


class Variants(nn.Module):
    """Every variant once, each after a convolution."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, 1)
        self.convs = nn.ModuleDict({name: nn.Conv2d(CHANNELS, CHANNELS, 1) for name in VARIANTS})
        self.gates = nn.ModuleDict(
            {name: AttentionGate(CHANNELS, spec) for name, spec in VARIANTS.items()}
        )

    def forward(self, x):
        x = self.stem(x)
        for name, gate in self.gates.items():
            x = gate(self.convs[name](x))
        return x


class Block(nn.Module):
    """relu(gate(conv(x)) + x)."""

    def __init__(self, spec):
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.gate = AttentionGate(CHANNELS, spec)

    def forward(self, x):
        return torch.relu(self.gate(self.conv(x)) + x)


class Residual(nn.Module):
    """Three residual blocks in a row, so that a gate's output is the next one's residual."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, 1)
        self.blocks = nn.Sequential(Block(CBAM), Block(SE), Block(CBAM))

    def forward(self, x):
        return self.blocks(self.stem(x)).mean((2, 3))


def lively(module, seed=0):
    """The module in evaluation mode, with BatchNorm statistics and weights far from neutral."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) - 0.4)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.running_var.abs_().add_(0.1)
    return module.eval()
