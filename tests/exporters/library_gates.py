"""Gates as timm, torchvision, Ultralytics, mmdetection and segmentation_models.pytorch have them.

Written anew from their formulas. Each class takes the number of channels and maps [N, C, H, W] to
the same shape.
"""

import torch
from torch import nn
from torch.nn import functional

REDUCTION = 4


def two_layers(channels, act=nn.ReLU, *, norm=False, bias=True):
    hidden = channels // REDUCTION
    return nn.Sequential(
        nn.Conv2d(channels, hidden, 1, bias=bias),
        *([nn.BatchNorm2d(hidden)] if norm else []),
        act(),
        nn.Conv2d(hidden, channels, 1, bias=bias),
    )


def both_pools(x):
    return x.amax(1, keepdim=True), x.mean(1, keepdim=True)


class SqueezeExcitation(nn.Module):
    """torchvision's, with any activations."""

    def __init__(self, channels, act=nn.ReLU, gate=nn.Sigmoid):
        super().__init__()
        self.avgpool, self.fc, self.gate = (
            nn.AdaptiveAvgPool2d(1),
            two_layers(channels, act),
            gate(),
        )

    def forward(self, x):
        return self.gate(self.fc(self.avgpool(x))) * x


class EfficientNetSe(SqueezeExcitation):
    def __init__(self, channels):
        super().__init__(channels, nn.SiLU)


class MobileNetSe(SqueezeExcitation):
    def __init__(self, channels):
        super().__init__(channels, gate=nn.Hardsigmoid)


class HSigmoid(nn.Module):
    """relu6(x + 3) / 6, as GhostNet and early MobileNetV3 wrote it."""

    def forward(self, x):
        return functional.relu6(x + 3.0) / 6.0


class GhostNetSe(SqueezeExcitation):
    def __init__(self, channels):
        super().__init__(channels, gate=HSigmoid)


class MmcvHSigmoid(nn.Module):
    """clamp((x + 3) / 6, 0, 1)."""

    def forward(self, x):
        return ((x + 3.0) / 6.0).clamp(0.0, 1.0)


class MmdetSe(SqueezeExcitation):
    def __init__(self, channels):
        super().__init__(channels, nn.Hardswish, MmcvHSigmoid)


class SwishWritten(nn.Module):
    """x · relu6(x + 3) / 6."""

    def forward(self, x):
        return x * functional.relu6(x + 3) / 6


class SwishWrittenSe(SqueezeExcitation):
    def __init__(self, channels):
        super().__init__(channels, SwishWritten)


class GeluSe(SqueezeExcitation):
    def __init__(self, channels):
        super().__init__(channels, nn.GELU)


class LeakySe(SqueezeExcitation):
    def __init__(self, channels):
        super().__init__(channels, nn.LeakyReLU)


class EffectiveSe(nn.Module):
    """VoVNet's in timm, and RTMDet's channel attention."""

    def __init__(self, channels):
        super().__init__()
        self.fc, self.act = nn.Conv2d(channels, channels, 1), nn.Hardsigmoid(inplace=True)

    def forward(self, x):
        return x * self.act(self.fc(x.mean((2, 3), keepdim=True)))


class Eca(nn.Module):
    """timm's: the vector as a row, and `view` back."""

    def __init__(self, channels, kernel_size=5):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x):
        y = self.conv(x.mean((2, 3)).view(x.shape[0], 1, -1))
        return x * y.view(x.shape[0], -1, 1, 1).sigmoid().expand_as(x)


class UltralyticsCbam(nn.Module):
    def __init__(self, channels, kernel_size=7):
        super().__init__()
        self.pool, self.fc, self.act = (
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels, 1, bias=True),
            nn.Sigmoid(),
        )
        self.cv1 = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x):
        x = x * self.act(self.fc(self.pool(x)))
        return x * self.act(self.cv1(torch.cat([x.mean(1, True), x.max(1, True)[0]], 1)))


class Scse(nn.Module):
    """segmentation_models.pytorch's."""

    def __init__(self, channels):
        super().__init__()
        self.cse = nn.Sequential(nn.AdaptiveAvgPool2d(1), two_layers(channels), nn.Sigmoid())
        self.sse = nn.Sequential(nn.Conv2d(channels, 1, 1), nn.Sigmoid())

    def forward(self, x):
        return x * self.cse(x) + x * self.sse(x)


class LightCbam(nn.Module):
    """timm's `lcbam`: the mean of both pools, in both parts."""

    def __init__(self, channels):
        super().__init__()
        self.fc = two_layers(channels, bias=False)
        self.conv, self.bn = nn.Conv2d(1, 1, 7, padding=3, bias=False), nn.BatchNorm2d(1)

    def forward(self, x):
        pooled = 0.5 * x.mean((2, 3), keepdim=True) + 0.5 * x.amax((2, 3), keepdim=True)
        x = x * self.fc(pooled).sigmoid()
        described = 0.5 * x.mean(1, keepdim=True) + 0.5 * x.amax(1, keepdim=True)
        return x * self.bn(self.conv(described)).sigmoid()


class SideBySide(nn.Module):
    """x · ca(x) · sa(x), the kernel dilated, the shared MLP with BatchNorm."""

    def __init__(self, channels):
        super().__init__()
        self.fc = two_layers(channels, norm=True)
        self.conv = nn.Conv2d(2, 1, 5, padding=4, dilation=2)

    def parts(self, x):
        pools = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        ca = torch.sigmoid(sum(self.fc(pool) for pool in pools))
        return ca, torch.sigmoid(self.conv(torch.cat(both_pools(x), 1)))

    def forward(self, x):
        ca, sa = self.parts(x)
        return x * ca * sa


class OfOneProduct(SideBySide):
    """x · (ca(x) · sa(x))."""

    def forward(self, x):
        ca, sa = self.parts(x)
        return x * (ca * sa)


class OfOneSum(SideBySide):
    """x · (ca(x) + sa(x))."""

    def forward(self, x):
        ca, sa = self.parts(x)
        return x * (sa + ca)


class SpatialFirst(SideBySide):
    def forward(self, x):
        x = x * self.parts(x)[1]
        return x * self.parts(x)[0]


class MeanOnly(nn.Module):
    """CBAM of the mean alone, in both parts."""

    def __init__(self, channels):
        super().__init__()
        self.fc, self.conv = two_layers(channels, nn.SiLU), nn.Conv2d(1, 1, 5, padding=2)

    def forward(self, x):
        x = x * torch.sigmoid(self.fc(x.mean((2, 3), keepdim=True)))
        return x * torch.sigmoid(self.conv(x.mean(1, keepdim=True)))


class SelfResidual(Eca):
    def forward(self, x):
        return x + super().forward(x)


class ActivatedGate(EffectiveSe):
    def forward(self, x):
        return functional.silu(super().forward(x))


class ActivatedSum(UltralyticsCbam):
    def forward(self, x):
        return functional.gelu(super().forward(x) + x)


class Triplet(nn.Module):
    """Triplet attention: spatial parts of the map and of two of its transposes, averaged."""

    def __init__(self, channels):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(2, 1, 7, padding=3, bias=False), nn.BatchNorm2d(1))
            for _ in range(3)
        )

    def branch(self, number, x):
        return x * torch.sigmoid(self.convs[number](torch.cat(both_pools(x), 1)))

    def forward(self, x):
        by_height = self.branch(0, x.permute(0, 2, 1, 3).contiguous()).permute(0, 2, 1, 3)
        by_width = self.branch(1, x.permute(0, 3, 2, 1).contiguous()).permute(0, 3, 2, 1)
        return 1 / 3 * (by_height.contiguous() + by_width.contiguous() + self.branch(2, x))


class LeavingMap(nn.Module):
    """FoundationStereo's way: x is gated by channel, and the map of positions leaves."""

    def __init__(self, channels):
        super().__init__()
        self.fc, self.conv = two_layers(channels, bias=False), nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x):
        pools = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        x = torch.sigmoid(sum(self.fc(pool) for pool in pools)) * x
        attention = torch.sigmoid(self.conv(torch.cat(both_pools(x)[::-1], 1)))
        return x * attention + (1 - attention) * x.flip(1)


FUSED = {
    SqueezeExcitation: ["SeGate"],
    EfficientNetSe: ["SeGateSilu"],
    MobileNetSe: ["SeGateHardSigmoid"],
    GhostNetSe: ["SeGateHardSigmoid"],
    MmdetSe: ["SeGateHardSwishHardSigmoid"],
    SwishWrittenSe: ["SeGateHardSwish"],
    GeluSe: ["SeGateGelu"],
    LeakySe: ["SeGateLeakyRelu"],
    EffectiveSe: ["SeGateLinearHardSigmoid"],
    Eca: ["EcaGate"],
    UltralyticsCbam: ["CbamGateMeanLinear"],
    Scse: ["ScseGate"],
    LightCbam: ["CbamGateMeanOfPools"],
    SideBySide: ["CbamGateParallel"],
    OfOneProduct: ["CbamGateParallel"],
    OfOneSum: ["ScseGateMeanMaxPoolMap"],
    SpatialFirst: ["CbamGateSpatialFirst"],
    MeanOnly: ["CbamGateMeanSiluMeanMap"],
    SelfResidual: ["EcaGateAdd"],
    ActivatedGate: ["SeGateLinearHardSigmoidThenSilu"],
    ActivatedSum: ["CbamGateMeanLinearAddGelu"],
    Triplet: ["SpatialGate", "SpatialGate", "SpatialGateAdd"],
    LeavingMap: ["SeGateMeanMax"],
}
# What is said of the parts of these that are not fused.
LEFT = {
    LeavingMap: [
        "the spatial part: its attention map is also used outside, by a difference",
        "the spatial part: its gate function is a difference; fused are σ(z) and the hard sigmoid",
    ]
}


class TanhBehind(EffectiveSe):
    def forward(self, x):
        return x * torch.sigmoid(torch.tanh(self.fc(x.mean((2, 3), keepdim=True))))


class PReluInside(SqueezeExcitation):
    def __init__(self, channels):
        super().__init__(channels, nn.PReLU)


class EluInside(SqueezeExcitation):
    def __init__(self, channels):
        super().__init__(channels, nn.ELU)


class TanhGeluInside(SqueezeExcitation):
    def __init__(self, channels):
        super().__init__(channels, lambda: nn.GELU("tanh"))


class KerasHardSigmoid(nn.Module):
    def forward(self, x):
        return (0.2 * x + 0.5).clamp(0, 1)


class KerasSlope(SqueezeExcitation):
    def __init__(self, channels):
        super().__init__(channels, gate=KerasHardSigmoid)


class TwoMlps(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.fcs = nn.ModuleList(two_layers(channels) for _ in range(2))

    def forward(self, x):
        pools = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        return x * torch.sigmoid(sum(fc(pool) for fc, pool in zip(self.fcs, pools, strict=True)))


class WrongAxis(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x):
        rows = x.mean(2, keepdim=True).mean(1, keepdim=True).expand(-1, 1, x.shape[2], -1)
        described = torch.cat([x.amax(1, keepdim=True), rows], 1)
        return x * torch.sigmoid(self.conv(described))


class BiasBeforePadding(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.point, self.conv = nn.Conv2d(channels, 1, 1), nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x):
        return x * torch.sigmoid(self.conv(self.point(x)))


REFUSED = {
    TanhBehind: "the channel part: tanh lies between its last layer and σ: σ(tanh(W·v + b)); "
    "fused are W1·act(W0·v + b0) + b1, W·v + b and a convolution along the channels",
    PReluInside: "the channel part: PReLU lies between its layers; fused are ReLU, LeakyReLU of "
    "slope 0.01, SiLU, GELU by erf and HardSwish",
    EluInside: "the channel part: ELU lies between its layers; fused are ReLU, LeakyReLU of "
    "slope 0.01, SiLU, GELU by erf and HardSwish",
    TanhGeluInside: "the channel part: GELU by tanh lies between its layers; fused are ReLU, "
    "LeakyReLU of slope 0.01, SiLU, GELU by erf and HardSwish",
    KerasSlope: "the channel part: its gate function is clip(0.2·z + 0.5, 0, 1); fused are σ(z) "
    "and the hard sigmoid clip(z/6 + 1/2, 0, 1)",
    TwoMlps: "the channel part: the branches of mean and maximum have different weights",
    WrongAxis: "its replacement differs",
    BiasBeforePadding: "the spatial part: its 1x1 convolution has a bias, which the next one's "
    "zero padding does not see at the border; give it bias=False",
}


class Network(nn.Module):
    """A gate of each kind, each behind a convolution of its own."""

    def __init__(self, gates, channels=16):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, channels, 3, padding=1) for _ in gates)
        self.gates = nn.ModuleDict({gate.__name__: gate(channels) for gate in gates})

    def forward(self, x):
        pairs = zip(self.gates.values(), self.convs, strict=True)
        return tuple(gate(conv(x)) for gate, conv in pairs)
