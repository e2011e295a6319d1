"""ResNet-18 with gates whose weights are named as in published networks, written anew."""

import torch
from torch import nn

REDUCTION = 16


def mean_and_maximum(x):
    return torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)


def pointwise(inputs, outputs, *, bias=False):
    return nn.Conv2d(inputs, outputs, 1, bias=bias)


class OfficialGate(nn.Module):
    """`cbam.ChannelGate.mlp.1`, `cbam.SpatialGate.spatial.conv`, `cbam.SpatialGate.spatial.bn`."""

    def __init__(self, channels):
        super().__init__()
        hidden = channels // REDUCTION
        self.ChannelGate = nn.Module()
        self.ChannelGate.mlp = nn.Sequential(
            nn.Flatten(), nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels)
        )
        self.SpatialGate = nn.Module()
        self.SpatialGate.spatial = nn.Sequential()
        self.SpatialGate.spatial.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.SpatialGate.spatial.bn = nn.BatchNorm2d(1)

    def forward(self, x):
        mlp = self.ChannelGate.mlp
        x = x * torch.sigmoid(mlp(x.mean((2, 3))) + mlp(x.amax((2, 3))))[:, :, None, None]
        pooled = mean_and_maximum(x).flip(1)
        return x * torch.sigmoid(self.SpatialGate.spatial(pooled))


class ChannelAttention(nn.Module):
    """`ca.fc.0`, `ca.fc.2`, or `ca.fc1`, `ca.fc2`; without bias."""

    def __init__(self, channels, numbered):
        super().__init__()
        hidden = channels // REDUCTION
        layers = pointwise(channels, hidden), pointwise(hidden, channels)
        if numbered:
            self.fc1, self.fc2 = layers
        else:
            self.fc = nn.Sequential(layers[0], nn.ReLU(), layers[1])

    def mlp(self, x):
        return self.fc(x) if hasattr(self, "fc") else self.fc2(torch.relu(self.fc1(x)))

    def forward(self, x):
        mean, peak = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        return torch.sigmoid(self.mlp(mean) + self.mlp(peak))


class SpatialAttention(nn.Module):
    """`sa.conv1`; without bias or BatchNorm."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x):
        return torch.sigmoid(self.conv1(mean_and_maximum(x)))


class TimmSpatial(nn.Module):
    """`se.spatial.conv.conv`, `se.spatial.conv.bn`."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential()
        self.conv.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.conv.bn = nn.BatchNorm2d(1)

    def forward(self, x):
        return torch.sigmoid(self.conv(mean_and_maximum(x)))


class TimmCbam(nn.Module):
    """`se.channel.fc1`, `se.channel.fc2`, without bias."""

    def __init__(self, channels):
        super().__init__()
        self.channel = ChannelAttention(channels, numbered=True)
        self.spatial = TimmSpatial()

    def forward(self, x):
        x = x * self.channel(x)
        return x * self.spatial(x)


class TimmSe(nn.Module):
    """`se.fc1`, `se.fc2`, with bias."""

    def __init__(self, channels):
        super().__init__()
        self.fc1 = pointwise(channels, channels // REDUCTION, bias=True)
        self.fc2 = pointwise(channels // REDUCTION, channels, bias=True)

    def forward(self, x):
        squeezed = torch.relu(self.fc1(x.mean((2, 3), keepdim=True)))
        return x * torch.sigmoid(self.fc2(squeezed))


class Block(nn.Module):
    """A basic residual block with the gate of an origin."""

    def __init__(self, inputs, outputs, stride, origin):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))
        self.origin = origin
        if origin == "official":
            self.cbam = OfficialGate(outputs)
        elif origin.startswith("ca_sa"):
            self.ca = ChannelAttention(outputs, numbered=origin == "ca_sa_numbered")
            self.sa = SpatialAttention()
        elif origin == "timm":
            self.se = TimmCbam(outputs)
        elif origin == "timm_se":
            self.se = TimmSe(outputs)

    def gate(self, x):
        if self.origin == "official":
            return self.cbam(x)
        if self.origin.startswith("ca_sa"):
            x = self.ca(x) * x
            return self.sa(x) * x
        return x if self.origin == "plain" else self.se(x)

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(self.gate(x) + shortcut)


class ResNet18(nn.Module):
    def __init__(self, origin):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        width = 64
        for number, outputs in enumerate((64, 128, 256, 512), start=1):
            first = Block(width, outputs, 1 if number == 1 else 2, origin)
            second = Block(outputs, outputs, 1, origin)
            self.add_module(f"layer{number}", nn.Sequential(first, second))
            width = outputs
        self.fc = nn.Linear(512, 1000)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = nn.functional.max_pool2d(x, 3, 2, 1)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.fc(x.mean((2, 3)))
