"""Networks as others publish them: written after their sources, to hold our reading against.

Each gives a state dict of the names, shapes and order of planes of its origin.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Flatten(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), -1)


class BasicConv(nn.Module):
    def __init__(self, planes: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(planes, 1, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(1, eps=1e-5, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class AuthorsChannelGate(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = channels // 16
        self.mlp = nn.Sequential(
            Flatten(), nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        size = (x.size(2), x.size(3))
        total = self.mlp(nn.functional.avg_pool2d(x, size)) + self.mlp(
            nn.functional.max_pool2d(x, size)
        )
        return x * torch.sigmoid(total).unsqueeze(2).unsqueeze(3).expand_as(x)


class AuthorsSpatialGate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.spatial = BasicConv(2, 7)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat((torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)), dim=1)
        return x * torch.sigmoid(self.spatial(both))


class Authors(nn.Module):
    """Of the paper's repository."""

    attribute = "cbam"

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.ChannelGate = AuthorsChannelGate(channels)
        self.SpatialGate = AuthorsSpatialGate()

    def forward(self, x: Tensor) -> Tensor:
        return self.SpatialGate(self.ChannelGate(x))


class ChannelAttention(nn.Module):
    def __init__(self, channels: int, *, bias: bool = False) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Conv2d(channels, channels // 16, 1, bias=bias),
            nn.ReLU(),
            nn.Conv2d(channels // 16, channels, 1, bias=bias),
        )

    def forward(self, x: Tensor) -> Tensor:
        avg = self.fc(nn.functional.adaptive_avg_pool2d(x, 1))
        return torch.sigmoid(avg + self.fc(nn.functional.adaptive_max_pool2d(x, 1)))


class FlatChannelAttention(nn.Module):
    """The same with one attribute for each layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // 16, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // 16, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        avg, largest = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        return torch.sigmoid(self.fc2(self.fc1(avg).relu()) + self.fc2(self.fc1(largest).relu()))


class SpatialAttention(nn.Module):
    def __init__(self, *, bias: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 1, 7, padding=3, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([torch.mean(x, 1, keepdim=True), torch.max(x, 1, keepdim=True)[0]], 1)
        return torch.sigmoid(self.conv1(both))


class TimmChannel(FlatChannelAttention):
    def forward(self, x: Tensor) -> Tensor:
        return x * super().forward(x)


class TimmSpatial(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = BasicConv(2, 7)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)], dim=1)
        return x * torch.sigmoid(self.conv(both))


class Timm(nn.Module):
    """timm's `CbamModule`."""

    attribute = "se"

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channel, self.spatial = TimmChannel(channels), TimmSpatial()

    def forward(self, x: Tensor) -> Tensor:
        return self.spatial(self.channel(x))


class Block(nn.Module):
    """A residual block, basic or bottleneck, with the gate of one of the sources."""

    def __init__(self, inputs: int, width: int, stride: int, gate: str, bottleneck: bool) -> None:
        super().__init__()
        outputs = width * 4 if bottleneck else width
        kernels = (1, 3, 1) if bottleneck else (3, 3)
        channels = (inputs, width, width, outputs) if bottleneck else (inputs, width, width)
        strided = 1 if bottleneck else 0
        self.depth = len(kernels)
        for number, kernel in enumerate(kernels):
            conv = nn.Conv2d(
                channels[number],
                channels[number + 1],
                kernel,
                stride if number == strided else 1,
                kernel // 2,
                bias=False,
            )
            self.add_module(f"conv{number + 1}", conv)
            self.add_module(f"bn{number + 1}", nn.BatchNorm2d(channels[number + 1]))
        self.kind = gate
        if gate == "authors":
            self.cbam = Authors(outputs)
        elif gate == "timm":
            self.se = Timm(outputs)
        elif gate.startswith("ca/sa"):
            bias = gate.endswith("biases")
            flat = gate.endswith("flat")
            self.ca = (
                FlatChannelAttention(outputs) if flat else ChannelAttention(outputs, bias=bias)
            )
            self.sa = SpatialAttention(bias=bias)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for number in range(1, self.depth + 1):
            out = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(out))
            out = out.relu() if number < self.depth else out
        if self.kind == "authors":
            out = self.cbam(out)
        elif self.kind == "timm":
            out = self.se(out)
        elif self.kind != "plain":
            out = self.ca(out) * out
            out = self.sa(out) * out
        return torch.relu(out + (x if self.downsample is None else self.downsample(x)))


class Published(nn.Module):
    """ResNet-20 for small pictures, or ResNet-50 (`deep`), of ten classes.

    Args:
        gate: ``authors``, ``ca/sa``, ``ca/sa flat``, ``ca/sa biases``, ``timm`` or ``plain``.
        deep: which of the two.
    """

    def __init__(self, gate: str, deep: bool = False) -> None:
        super().__init__()
        widths, depths = ((64, 128, 256, 512), (3, 4, 6, 3)) if deep else ((16, 32, 64), (3,) * 3)
        stem = widths[0]
        self.conv1 = nn.Conv2d(3, stem, *((7, 2, 3) if deep else (3, 1, 1)), bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.pool = nn.MaxPool2d(3, 2, 1) if deep else nn.Identity()
        inputs = stem
        for number, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks = []
            for index in range(depth):
                stride = 2 if index == 0 and number > 0 else 1
                blocks.append(Block(inputs, width, stride, gate, deep))
                inputs = width * 4 if deep else width
            self.add_module(f"layer{number + 1}", nn.Sequential(*blocks))
        self.stages = len(depths)
        self.fc = nn.Linear(inputs, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.bn1(self.conv1(x)).relu())
        for number in range(self.stages):
            x = getattr(self, f"layer{number + 1}")(x)
        return self.fc(x.mean((2, 3)))


def lively(gate: str, *, deep: bool = False, seed: int = 0) -> Published:
    """Such a network in evaluation mode, every parameter and statistic off its initial value."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Published(gate, deep)
        for name, tensor in model.state_dict().items():
            if name.endswith(("bn.weight", "running_var")) or (".bn" in name and "weight" in name):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith(("bias", "running_mean")):
                tensor.normal_(std=0.3)
        for module in model.modules():
            if isinstance(module, nn.Conv2d) and module.out_channels == 1:
                nn.init.normal_(module.weight, std=0.3)
    return model.eval()
