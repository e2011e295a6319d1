"""A Residual Attention Network: stacked attention modules of a trunk and a soft mask.

Source: Wang et al., "Residual Attention Network for Image Classification", CVPR 2017
(https://arxiv.org/abs/1704.06904), table 2 and figure 2, with p = 1, t = 2 and r = 1; residual
units are those of He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016.

    cbam-deploy export examples/residual_attention_network.py:attention_56 -o attention.onnx
    cbam-deploy build-engine attention.onnx -o attention.engine
    cbam-deploy validate attention.onnx --data photos \
      --reference examples/residual_attention_network.py:attention_56
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import interpolate


def attention_56() -> nn.Module:
    """Attention-56 for ImageNet: pictures [N, 3, 224, 224] to logits [N, 1000]."""
    return ResidualAttentionNetwork(64, ((256, 3), (512, 2), (1024, 1)), 2048, 1000)


def attention_tiny() -> nn.Module:
    """One narrow stage, to try things out: pictures [N, 3, 32, 32] to logits [N, 10]."""
    return ResidualAttentionNetwork(8, ((16, 2),), 32, 10)


class ResidualUnit(nn.Module):
    """x + conv1x1(conv3x3(conv1x1(x))), with BatchNorm and ReLU before each convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        inner = outputs // 4
        self.before = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, inner, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, outputs, 1, bias=False),
        )
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, inputs, H, W] to [N, outputs, H / stride, W / stride]."""
        active = self.before(x)
        shortcut = x if self.shortcut is None else self.shortcut(active)
        result: Tensor = shortcut + self.residual(active)
        return result


class Hourglass(nn.Module):
    """The mask's way down and up: half the size `depth` times, and back by interpolation.

    Before each further halving a residual unit carries the map over to the same size on the way
    up, where it is added.
    """

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.down = ResidualUnit(channels, channels)
        self.across = ResidualUnit(channels, channels) if depth > 1 else None
        self.inner = Hourglass(channels, depth - 1) if depth > 1 else None
        self.up = ResidualUnit(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to the same shape."""
        out = self.down(self.pool(x))
        if self.inner is not None and self.across is not None:
            out = self.across(out) + self.inner(out)
        return interpolate(self.up(out), size=x.shape[2:], mode="bilinear", align_corners=False)


class AttentionModule(nn.Module):
    """(1 + M(x)) * T(x), equation 3: a mask M of 0..1 over what the trunk T computes."""

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.first = ResidualUnit(channels, channels)
        self.trunk = nn.Sequential(
            ResidualUnit(channels, channels), ResidualUnit(channels, channels)
        )
        self.mask = nn.Sequential(
            Hourglass(channels, depth),
            *_normalized_conv1x1(channels),
            *_normalized_conv1x1(channels),
            nn.Sigmoid(),
        )
        self.last = ResidualUnit(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to the same shape."""
        x = self.first(x)
        result: Tensor = self.last((1 + self.mask(x)) * self.trunk(x))
        return result


class ResidualAttentionNetwork(nn.Module):
    """A classifier of pictures [N, 3, H, W]: stages of a unit and attention, then three units.

    Args:
        stem_width: channels after the first convolution.
        stages: channels of each stage and how many times its mask halves the map; at 224 pixels
            the maps are 56, 28 and 14 wide, and every mask of Attention-56 looks down to 7.
        last_width: channels of the last units.
        num_classes: outputs of the classifier.
    """

    def __init__(
        self,
        stem_width: int,
        stages: tuple[tuple[int, int], ...],
        last_width: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, stem_width, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(stem_width),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        layers: list[nn.Module] = []
        inputs = stem_width
        for number, (width, depth) in enumerate(stages):
            layers.append(ResidualUnit(inputs, width, stride=1 if number == 0 else 2))
            layers.append(AttentionModule(width, depth))
            inputs = width
        layers.append(ResidualUnit(inputs, last_width, stride=2))
        layers += [ResidualUnit(last_width, last_width), ResidualUnit(last_width, last_width)]
        self.stages = nn.Sequential(*layers, nn.BatchNorm2d(last_width), nn.ReLU())
        self.fc = nn.Linear(last_width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, num_classes] of pictures `x`."""
        logits: Tensor = self.fc(self.stages(self.stem(x)).mean((2, 3)))
        return logits


def _normalized_conv1x1(channels: int) -> tuple[nn.Module, ...]:
    return nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels, 1, bias=False)
