"""Networks of different shape that know nothing of attention, small enough for a test.

All take pictures [N, 3, H, W]; `PICTURE` is a size that all of them take.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

PICTURE = 32


class Vgg(nn.Module):
    """A plain stack: convolutions and pools in one Sequential, ReLU in place."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in (8, 16):
            for _ in range(2):
                layers += [
                    nn.Conv2d(channels, width, 3, padding=1),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                ]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class Inverted(nn.Module):
    """MobileNetV2's block: expand, depthwise, project; a shortcut where sizes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        inner = inputs * 3
        self.joined = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU6(inplace=True),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU6(inplace=True),
            nn.Conv2d(inner, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.joined else self.conv(x)


class MobileNet(nn.Module):
    """Depthwise convolutions; residual blocks without a ReLU after the addition."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True)
        )
        self.blocks = nn.Sequential(
            Inverted(8, 8, 1),
            Inverted(8, 16, 2),
            Inverted(16, 16, 1),
            Inverted(16, 24, 2),
        )
        self.classifier = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.blocks(self.stem(x)).mean((2, 3)))


class DenseBlock(nn.Module):
    """Each layer sees all maps before it."""

    def __init__(self, inputs: int, layers: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(inputs + number * growth),
                nn.ReLU(),
                nn.Conv2d(inputs + number * growth, growth, 3, padding=1, bias=False),
            )
            for number in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for layer in self.layers:
            maps.append(layer(torch.cat(maps, 1)))
        return torch.cat(maps, 1)


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1, bias=False)
        self.dense1 = DenseBlock(12, 2, 6)
        self.transition = nn.Sequential(
            nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 12, 1, bias=False), nn.AvgPool2d(2)
        )
        self.dense2 = DenseBlock(12, 2, 6)
        self.norm = nn.BatchNorm2d(24)
        self.classifier = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dense2(self.transition(self.dense1(self.stem(x))))
        return self.classifier(self.norm(x).relu().mean((2, 3)))


def double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class Up(nn.Module):
    def __init__(self, inputs: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(inputs, skip, 2, 2)
        self.conv = nn.Sequential(
            nn.Conv2d(2 * skip, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.conv(torch.cat([skip, self.up(x)], 1))


class UNet(nn.Module):
    """Segmentation, with skips from the way down to the way up; one map of classes comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.inc = double(3, 8)
        self.down1 = nn.Sequential(nn.MaxPool2d(2), double(8, 16))
        self.down2 = nn.Sequential(nn.MaxPool2d(2), double(16, 32))
        self.up1 = Up(32, 16, 16)
        self.up2 = Up(16, 8, 8)
        self.outc = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.inc(x)
        second = self.down1(first)
        return self.outc(self.up2(self.up1(self.down2(second), second), first))


class Residual(nn.Module):
    """A basic block whose shortcut is computed first."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.shortcut = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += shortcut
        return self.relu(out)


class Detector(nn.Module):
    """A feature pyramid on a residual backbone; one head for all levels, several outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        )
        self.layer1 = nn.Sequential(Residual(8, 8, 1))
        self.layer2 = nn.Sequential(Residual(8, 16, 2), Residual(16, 16, 1))
        self.layer3 = nn.Sequential(Residual(16, 32, 2))
        self.lateral2 = nn.Conv2d(16, 16, 1)
        self.lateral3 = nn.Conv2d(32, 16, 1)
        self.boxes = nn.Conv2d(16, 4, 3, padding=1)
        self.scores = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
        second = self.layer2(self.layer1(self.stem(x)))
        small = self.lateral3(self.layer3(second))
        large = self.lateral2(second) + functional.interpolate(small, scale_factor=2.0)
        levels = [large, small]
        return {
            "boxes": [self.boxes(level) for level in levels],
            "scores": [self.scores(level).sigmoid() for level in levels],
        }


NETWORKS = {kind.__name__: kind for kind in (Vgg, MobileNet, DenseNet, UNet, Detector)}


def lively(name: str, seed: int = 0) -> nn.Module:
    """Such a network in evaluation mode; its BatchNorm does something."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = NETWORKS[name]()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.2)
                module.running_mean.normal_(std=0.2)
                module.running_var.uniform_(0.5, 1.5)
    return model.eval()
