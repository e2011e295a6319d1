"""Attention gates in the styles that people paste into their networks, written anew.

Each class takes the number of channels and maps [N, C, H, W] to the same shape.
"""

import torch
from torch import nn
from torch.nn import functional

REDUCTION = 4


class Flatten(nn.Module):
    def forward(self, x):
        return x.view(x.size(0), -1)


class OfficialChannelGate(nn.Module):
    """Flatten and Linear; average and maximum by windows as large as the map."""

    def __init__(self, channels):
        super().__init__()
        hidden = channels // REDUCTION
        self.mlp = nn.Sequential(
            Flatten(), nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels)
        )

    def forward(self, x):
        total = None
        for pool in (functional.avg_pool2d, functional.max_pool2d):
            size = (x.size(2), x.size(3))
            branch = self.mlp(pool(x, size, stride=size))
            total = branch if total is None else total + branch
        scale = torch.sigmoid(total).unsqueeze(2).unsqueeze(3).expand_as(x)
        return x * scale


class OfficialSpatialGate(nn.Module):
    """Maximum with indices and mean, each unsqueezed; convolution without bias, BatchNorm."""

    def __init__(self, kernel_size=7):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=(kernel_size - 1) // 2, bias=False)
        self.bn = nn.BatchNorm2d(1)

    def forward(self, x):
        pooled = torch.cat((torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)), dim=1)
        return x * torch.sigmoid(self.bn(self.conv(pooled)))


class Official(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.channel = OfficialChannelGate(channels)
        self.spatial = OfficialSpatialGate()

    def forward(self, x):
        return self.spatial(self.channel(x))


class CaSa(nn.Module):
    """`x = ca(x) * x; x = sa(x) * x` with adaptive pools and 1x1 convolutions without bias."""

    def __init__(self, channels, kernel_size=7):
        super().__init__()
        hidden = channels // REDUCTION
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.max_pool = nn.AdaptiveMaxPool2d(1)
        self.fc = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, 1, bias=False),
        )
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.sigmoid = nn.Sigmoid()

    def mlp(self, x):
        return self.fc(x)

    def forward(self, x):
        x = self.sigmoid(self.mlp(self.avg_pool(x)) + self.mlp(self.max_pool(x))) * x
        mean = torch.mean(x, dim=1, keepdim=True)
        peak, _ = torch.max(x, dim=1, keepdim=True)
        return self.sigmoid(self.conv(torch.cat([mean, peak], dim=1))) * x


class CaSaTwoLayers(CaSa):
    """The same with `fc1`, `relu`, `fc2`, and the small kernel."""

    def __init__(self, channels):
        super().__init__(channels, kernel_size=3)
        hidden = channels // REDUCTION
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=False)
        self.fc2 = nn.Conv2d(hidden, channels, 1, bias=False)
        self.relu = nn.ReLU()

    def mlp(self, x):
        return self.fc2(self.relu(self.fc1(x)))


class TimmLike(nn.Module):
    """Means and `amax` with kept dimensions, spatial convolution with BatchNorm."""

    def __init__(self, channels):
        super().__init__()
        hidden = channels // REDUCTION
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=False)
        self.act = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(hidden, channels, 1, bias=False)
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.bn = nn.BatchNorm2d(1)

    def forward(self, x):
        mean = self.fc2(self.act(self.fc1(x.mean((2, 3), keepdim=True))))
        peak = self.fc2(self.act(self.fc1(x.amax((2, 3), keepdim=True))))
        x = x * functional.sigmoid(mean + peak)
        pooled = torch.cat([x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)], dim=1)
        return x * self.bn(self.conv(pooled)).sigmoid()


class Views(nn.Module):
    """Shapes from `size()`, linear layers, `view` back, and attention spread by `expand_as`."""

    def __init__(self, channels):
        super().__init__()
        hidden = max(channels // REDUCTION, 1)
        self.avg, self.max = nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1)
        self.fc = nn.Sequential(
            nn.Linear(channels, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, channels)
        )
        self.conv = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x):
        batch, channels, _, _ = x.size()
        mean = self.fc(self.avg(x).view(batch, channels)).view(batch, channels, 1, 1)
        peak = self.fc(self.max(x).view(batch, channels)).view(batch, channels, 1, 1)
        x = x * torch.sigmoid(mean + peak).expand_as(x)
        pooled = torch.cat((torch.max(x, 1)[0].unsqueeze(1), x.mean(1).unsqueeze(1)), 1)
        return x * torch.sigmoid(self.conv(pooled)).expand_as(x)


class Reshaped(nn.Module):
    """Positions flattened before they are pooled."""

    def __init__(self, channels):
        super().__init__()
        hidden = channels // REDUCTION
        self.reduce, self.expand = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        self.conv = nn.Conv2d(2, 1, 3, padding=1)

    def mlp(self, x):
        return self.expand(torch.relu(self.reduce(x)))

    def forward(self, x):
        flat = x.flatten(2)
        logits = self.mlp(flat.max(-1).values) + self.mlp(flat.mean(-1))
        x = torch.sigmoid(logits)[:, :, None, None] * x
        pooled = torch.stack([x.max(1).values, x.mean(1)], 1)
        return self.conv(pooled).sigmoid() * x


class SqueezeExcite(nn.Module):
    """Average pool, linear layers without bias, `view`, `expand_as`."""

    def __init__(self, channels):
        super().__init__()
        hidden = channels // REDUCTION
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(
            nn.Linear(channels, hidden, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x):
        batch, channels, _, _ = x.size()
        y = self.fc(self.avg_pool(x).view(batch, channels)).view(batch, channels, 1, 1)
        return x * y.expand_as(x)


class ConvSqueezeExcite(nn.Module):
    """1x1 convolutions with bias on a kept-dimension mean."""

    def __init__(self, channels, activation=torch.sigmoid, inner=functional.relu):
        super().__init__()
        hidden = channels // REDUCTION
        self.reduce, self.expand = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)
        self.activation, self.inner = activation, inner

    def forward(self, x):
        y = self.expand(self.inner(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * self.activation(y)


class HardSqueezeExcite(ConvSqueezeExcite):
    """MobileNetV3's."""

    def __init__(self, channels):
        super().__init__(channels, functional.hardsigmoid)


class SwishSqueezeExcite(ConvSqueezeExcite):
    """EfficientNet's."""

    def __init__(self, channels):
        super().__init__(channels, inner=functional.silu)


class EfficientChannelAttention(nn.Module):
    """A convolution along the channels in place of the MLP."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x):
        y = x.mean((2, 3), keepdim=True).squeeze(-1).transpose(-1, -2)
        y = self.conv(y).transpose(-1, -2).unsqueeze(-1)
        return x * torch.sigmoid(y)


class MisplacedBracket(nn.Module):
    """A sigmoid of each branch: a well-known transcription error, and another function."""

    def __init__(self, channels):
        super().__init__()
        self.gate = CaSa(channels)

    def forward(self, x):
        g = self.gate
        x = x * (torch.sigmoid(g.mlp(g.avg_pool(x))) + torch.sigmoid(g.mlp(g.max_pool(x))))
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * g.sigmoid(g.conv(pooled))


class SpatialOnly(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.gate = OfficialSpatialGate()

    def forward(self, x):
        return self.gate(x)


FUSED = {
    Official: "CbamGate",
    CaSa: "CbamGate",
    CaSaTwoLayers: "CbamGate",
    TimmLike: "CbamGate",
    Views: "CbamGate",
    Reshaped: "CbamGate",
    SqueezeExcite: "SeGate",
    ConvSqueezeExcite: "SeGate",
    HardSqueezeExcite: "SeGateHardSigmoid",
    SwishSqueezeExcite: "SeGateSilu",
    EfficientChannelAttention: "EcaGate",
    MisplacedBracket: "CbamGateSumOfGates",
    SpatialOnly: "SpatialGate",
}


class Network(nn.Module):
    """A block relu(gate(conv(x)) + shortcut) of each kind on one map; half of them halve it."""

    def __init__(self, gates, channels=16):
        super().__init__()
        steps = [1 + number % 2 for number in range(len(gates))]
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, s, 1) for s in steps)
        self.shortcuts = nn.ModuleList(
            nn.Identity() if s == 1 else nn.Conv2d(channels, channels, 1, s) for s in steps
        )
        self.gates = nn.ModuleDict({gate.__name__: gate(channels) for gate in gates})

    def forward(self, x):
        x = torch.relu(self.stem(x))
        blocks = zip(self.gates.values(), self.convs, self.shortcuts, strict=True)
        return tuple(torch.relu(gate(conv(x)) + shortcut(x)) for gate, conv, shortcut in blocks)
