"""Networks of five shapes that know nothing of attention gates."""

import torch
from torch import nn
from torch.nn import functional

SIZE = 32  # of the pictures


def conv(inputs, outputs, stride=1, groups=1, kernel=3):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class Plain(nn.Module):
    """A stack of convolutions and pools, in the style of VGG: no normalization, no shortcut."""

    def __init__(self):
        super().__init__()
        layers, inputs = [], 3
        for outputs in (16, 24, 32):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
            inputs = outputs
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(32, 10)

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


class Inverted(nn.Module):
    """1x1 up, depthwise, 1x1 down without activation, added to the input where it fits."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.body = nn.Sequential(
            conv(inputs, 4 * inputs, kernel=1),
            conv(4 * inputs, 4 * inputs, stride, groups=4 * inputs),
            nn.Conv2d(4 * inputs, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.fits = stride == 1 and inputs == outputs

    def forward(self, x):
        return x + self.body(x) if self.fits else self.body(x)


class Depthwise(nn.Module):
    """Inverted bottlenecks, in the style of MobileNetV2; two of four have a shortcut."""

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 16, 2)
        widths = [(16, 16, 1), (16, 24, 2), (24, 24, 1), (24, 32, 2)]
        self.blocks = nn.Sequential(*(Inverted(*width) for width in widths))
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        return self.head(functional.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1).flatten(1))


class Dense(nn.Module):
    """Every layer sees the outputs of all before it."""

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 16, 2)
        self.layers = nn.ModuleList(conv(16 + 8 * number, 8) for number in range(4))
        self.transition = nn.Conv2d(48, 24, 1)
        self.head = nn.Linear(24, 10)

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.head(functional.avg_pool2d(self.transition(x), 2).mean((2, 3)))


class UNet(nn.Module):
    """Down twice and up twice, with skips; a map of classes comes out."""

    def __init__(self):
        super().__init__()
        self.down = nn.ModuleList([conv(3, 16), conv(16, 24), conv(24, 32)])
        self.up = nn.ModuleList([conv(32 + 24, 24), conv(24 + 16, 16)])
        self.classes = nn.Conv2d(16, 4, 1)

    def forward(self, x):
        skips = []
        for layer in self.down[:-1]:
            skips.append(layer(x))
            x = functional.max_pool2d(skips[-1], 2)
        x = self.down[-1](x)
        for layer in self.up:
            x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
            x = layer(torch.cat([x, skips.pop()], 1))
        return self.classes(x)


class Residual(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        x = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(x)) + shortcut)


class Detector(nn.Module):
    """Residual blocks, and at two scales boxes and scores."""

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 16, 2)
        self.layer1 = Residual(16, 16, 1)
        self.layer2 = Residual(16, 32, 2)
        self.boxes = nn.ModuleList([nn.Conv2d(16, 4, 1), nn.Conv2d(32, 4, 1)])
        self.scores = nn.ModuleList([nn.Conv2d(16, 3, 1), nn.Conv2d(32, 3, 1)])

    def forward(self, x):
        fine = self.layer1(self.stem(x))
        maps = fine, self.layer2(fine)
        boxes = [head(x).flatten(2) for head, x in zip(self.boxes, maps, strict=True)]
        scores = [head(x).flatten(2) for head, x in zip(self.scores, maps, strict=True)]
        return torch.cat(boxes, 2), torch.cat(scores, 2).sigmoid()


# Where gates go, and how many.
NETWORKS = {
    Plain: ("stages", 3),
    Depthwise: ("blocks", 2),
    Dense: (["stem", "layers.0", "layers.3", "transition"], 4),
    UNet: (["down.0", "down.1", "down.2", "up.1"], 4),
    Detector: ("blocks", 2),
}
