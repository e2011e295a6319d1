"""Attentions that are recognized and stay as they are, and networks that have none.

As in `origin_networks`, each is written as its origin writes it, in our own words.
"""

from __future__ import annotations

import torch
from origin_networks import REDUCTION, Flatten
from torch import nn
from torch.nn import functional


class Bam(nn.Module):
    """BAM as its authors' code has it: 1 + sigmoid of the product of both parts."""

    def __init__(self, channels):
        super().__init__()
        hidden = channels // REDUCTION
        self.gate_c = nn.Sequential(
            Flatten(),
            nn.Linear(channels, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, channels),
        )
        dilated = [
            part
            for _ in range(2)
            for part in (
                nn.Conv2d(hidden, hidden, 3, padding=4, dilation=4),
                nn.BatchNorm2d(hidden),
                nn.ReLU(),
            )
        ]
        self.gate_s = nn.Sequential(
            nn.Conv2d(channels, hidden, 1),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            *dilated,
            nn.Conv2d(hidden, 1, 1),
        )

    def parts(self, x):
        mean = functional.avg_pool2d(x, (x.size(2), x.size(3)))
        channel = self.gate_c(mean).unsqueeze(2).unsqueeze(3).expand_as(x)
        return channel, self.gate_s(x).expand_as(x)

    def forward(self, x):
        channel, spatial = self.parts(x)
        attention = 1 + functional.sigmoid(channel * spatial)
        return attention * x


class BamOfThePaper(Bam):
    """x + x times the sigmoid of the sum of both parts."""

    def forward(self, x):
        channel, spatial = self.parts(x)
        return x + x * torch.sigmoid(channel + spatial)


class Simam(nn.Module):
    """ZjjConan's: no weights, the energy of each neuron."""

    def __init__(self, channels, e_lambda=1e-4):
        super().__init__()
        self.activation = nn.Sigmoid()
        self.e_lambda = e_lambda

    def forward(self, x):
        _, _, h, w = x.size()
        n = w * h - 1
        d = (x - x.mean(dim=[2, 3], keepdim=True)).pow(2)
        y = d / (4 * (d.sum(dim=[2, 3], keepdim=True) / n + self.e_lambda)) + 0.5
        return x * self.activation(y)


class HardSwish(nn.Module):
    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU6(inplace=True)

    def forward(self, x):
        return x * (self.relu(x + 3) / 6)


class CoordinateAttention(nn.Module):
    """houqb's CoordAtt: rows' and columns' means in one Conv2d, split again."""

    def __init__(self, channels):
        super().__init__()
        hidden = max(8, channels // 32)
        self.pool_h = nn.AdaptiveAvgPool2d((None, 1))
        self.pool_w = nn.AdaptiveAvgPool2d((1, None))
        self.conv1 = nn.Conv2d(channels, hidden, 1)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.act = HardSwish()
        self.conv_h, self.conv_w = nn.Conv2d(hidden, channels, 1), nn.Conv2d(hidden, channels, 1)

    def pools(self, x):
        return self.pool_h(x), self.pool_w(x).permute(0, 1, 3, 2)

    def forward(self, x):
        _, _, h, w = x.size()
        y = torch.cat(self.pools(x), dim=2)
        y = self.act(self.bn1(self.conv1(y)))
        x_h, x_w = torch.split(y, [h, w], dim=2)
        a_h = self.conv_h(x_h).sigmoid()
        a_w = self.conv_w(x_w.permute(0, 1, 3, 2)).sigmoid()
        return x * a_w * a_h


class CoordinateMeans(CoordinateAttention):
    """The same by `mean` and with one product of both attentions."""

    def forward(self, x):
        h, w = x.shape[2:]
        y = torch.cat([x.mean(3, keepdim=True), x.mean(2, keepdim=True).transpose(2, 3)], 2)
        y = self.act(self.bn1(self.conv1(y)))
        x_h, x_w = y.split([h, w], 2)
        return x * (self.conv_h(x_h).sigmoid() * self.conv_w(x_w.transpose(2, 3)).sigmoid())


class MultiScaleGroups(nn.Module):
    """EMA: a coordinate attention of groups of channels inside another attention."""

    def __init__(self, channels, groups=4):
        super().__init__()
        self.groups, each = groups, channels // groups
        self.conv1x1, self.conv3x3 = nn.Conv2d(each, each, 1), nn.Conv2d(each, each, 3, padding=1)
        self.gn = nn.GroupNorm(each, each)

    def forward(self, x):
        n, c, h, w = x.shape
        x = x.reshape(n * self.groups, -1, h, w)
        y = torch.cat([x.mean(3, keepdim=True), x.mean(2, keepdim=True).transpose(2, 3)], 2)
        x_h, x_w = self.conv1x1(y).split([h, w], 2)
        gated = self.gn(x * x_h.sigmoid() * x_w.transpose(2, 3).sigmoid())
        weights = gated.mean((2, 3)).softmax(-1).unsqueeze(1)
        scores = torch.matmul(weights, self.conv3x3(x).flatten(2)).view(-1, 1, h, w)
        return (x * scores.sigmoid()).reshape(n, c, h, w)


class AdditiveGate(nn.Module):
    """Attention U-Net's: a map gated by itself and by a coarser one, x·σ(ψ(ReLU(Wx·x + Wg·g)))."""

    def __init__(self, channels):
        super().__init__()
        hidden = channels // 2
        self.down = nn.Conv2d(channels, channels, 3, padding=1)
        self.W_g = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.BatchNorm2d(hidden))
        self.W_x = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.BatchNorm2d(hidden))
        self.psi = nn.Sequential(nn.Conv2d(hidden, 1, 1), nn.BatchNorm2d(1), nn.Sigmoid())
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        g = torch.relu(self.down(x))
        return x * self.psi(self.relu(self.W_g(g) + self.W_x(x)))


class NonLocal(nn.Module):
    """Wang's non-local block, as in SAGAN and DANet: softmax(QK) V of 1x1 Conv2d, scaled, added."""

    def __init__(self, channels):
        super().__init__()
        self.query, self.key = (nn.Conv2d(channels, channels // 8, 1) for _ in range(2))
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.ones(1))

    def forward(self, x):
        n, c, h, w = x.shape
        q = self.query(x).view(n, -1, h * w).permute(0, 2, 1)
        attention = torch.softmax(torch.bmm(q, self.key(x).view(n, -1, h * w)), dim=-1)
        out = torch.bmm(self.value(x).view(n, -1, h * w), attention.permute(0, 2, 1))
        return self.gamma * out.view(n, c, h, w) + x


class OnSequences(nn.Module):
    """A Squeeze-and-Excitation of [N, C, L]."""

    def __init__(self, channels):
        super().__init__()
        self.fc1 = nn.Conv1d(channels, channels // REDUCTION, 1)
        self.fc2 = nn.Conv1d(channels // REDUCTION, channels, 1)
        self.conv = nn.Conv1d(channels, channels, 3, padding=1)

    def forward(self, x):
        y = self.conv(x.flatten(2))
        z = torch.sigmoid(self.fc2(torch.relu(self.fc1(y.mean(-1, keepdim=True)))))
        return (y * z).unflatten(2, x.shape[2:])


class OnVolumes(nn.Module):
    """A Squeeze-and-Excitation of [N, C, D, H, W]."""

    def __init__(self, channels):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool3d(1)
        self.fc1, self.fc2 = nn.Linear(channels, REDUCTION), nn.Linear(REDUCTION, channels)
        self.conv = nn.Conv3d(channels, channels, 3, padding=1)

    def forward(self, x):
        y = self.conv(x.unsqueeze(2))
        z = torch.sigmoid(self.fc2(torch.relu(self.fc1(self.pool(y).flatten(1)))))
        return (y * z[:, :, None, None, None]).squeeze(2)


class MultiScale(nn.Module):
    """MS-CAM of attentional feature fusion: an attention as large as the map."""

    def __init__(self, channels):
        super().__init__()
        hidden = channels // REDUCTION

        def layers(*first):
            return nn.Sequential(
                *first,
                nn.Conv2d(channels, hidden, 1),
                nn.BatchNorm2d(hidden),
                nn.ReLU(inplace=True),
                nn.Conv2d(hidden, channels, 1),
                nn.BatchNorm2d(channels),
            )

        self.local_att, self.global_att = layers(), layers(nn.AdaptiveAvgPool2d(1))
        self.sigmoid = nn.Sigmoid()

    def forward(self, x):
        return x * self.sigmoid(self.local_att(x) + self.global_att(x))


# What each of them is called in the report.
NAMED = {
    Bam: "it is BAM",
    BamOfThePaper: "it is BAM",
    Simam: "it is SimAM",
    CoordinateAttention: "it is coordinate attention",
    CoordinateMeans: "it is coordinate attention",
    MultiScaleGroups: "it is coordinate attention",
    AdditiveGate: "it is the gate of Attention U-Net",
    NonLocal: "it is a non-local block",
    OnSequences: "it gates sequences [N, C, L]",
    OnVolumes: "it gates volumes [N, C, D, H, W]",
    MultiScale: "is scaled by an attention that no fused gate computes",
}


class Activations(nn.Module):
    """Products of a map and a function of it, none of which looks at more than one element."""

    def forward(self, x):
        x = functional.silu(x) + functional.hardswish(x) + functional.gelu(x) + functional.mish(x)
        x = x + functional.gelu(x, approximate="tanh") + x * torch.sigmoid(1.702 * x)
        return x + functional.glu(torch.cat([x, 2 * x], 1), dim=1)


class Highway(nn.Module):
    """x·T(x) and a GLU of convolutions."""

    def __init__(self, channels):
        super().__init__()
        self.transform = nn.Conv2d(channels, channels, 3, padding=1)
        self.both = nn.Conv2d(channels, 2 * channels, 3, padding=1)

    def forward(self, x):
        t = torch.sigmoid(self.transform(x))
        return functional.glu(self.both(x), dim=1) * t + x * (1 - t)


class ConvNext(nn.Module):
    """ConvNeXt V2's block: LayerNorm, GELU and global response normalization."""

    def __init__(self, channels):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.up, self.down = nn.Linear(channels, 2 * channels), nn.Linear(2 * channels, channels)
        self.gamma = nn.Parameter(torch.ones(2 * channels))

    def forward(self, x):
        y = functional.gelu(self.up(self.norm(self.depthwise(x).permute(0, 2, 3, 1))))
        g = torch.norm(y, p=2, dim=(1, 2), keepdim=True)
        y = self.gamma * (y * (g / (g.mean(-1, keepdim=True) + 1e-6))) + y
        return x + self.down(y).permute(0, 3, 1, 2)


class InvertedResidual(nn.Module):
    """MobileNet's."""

    def __init__(self, channels, activation=nn.ReLU6):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(channels, 2 * channels, 1, bias=False),
            nn.BatchNorm2d(2 * channels),
            activation(),
            nn.Conv2d(2 * channels, 2 * channels, 3, 1, 1, groups=2 * channels, bias=False),
            nn.BatchNorm2d(2 * channels),
            activation(),
            nn.Conv2d(2 * channels, channels, 1, bias=False),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, x):
        return x + self.conv(x)


class Unet(nn.Module):
    """Down, up, concatenated; an image-level branch as DeepLab's; GroupNorm and SiLU."""

    def __init__(self, channels):
        super().__init__()
        self.down = nn.Conv2d(channels, channels, 3, 2, 1)
        self.norm, self.act = nn.GroupNorm(4, channels), nn.SiLU()
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1))
        self.merge = nn.Conv2d(3 * channels, channels, 3, padding=1)

    def forward(self, x):
        y = self.act(self.norm(self.down(x)))
        up = functional.interpolate(y, size=x.shape[2:], mode="bilinear")
        image = functional.relu(self.pool(x)).expand_as(x)
        return self.act(self.merge(torch.cat([x, up, image], 1)))


class Transformer(nn.Module):
    """A ViT's block on the positions of a map, with SwiGLU, and YOLO11's attention of Conv2d."""

    def __init__(self, channels):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.w1, self.w2 = nn.Linear(channels, 2 * channels), nn.Linear(channels, 2 * channels)
        self.w3 = nn.Linear(2 * channels, channels)
        self.pe = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.mixed = nn.Conv2d(channels, 3 * channels, 1)

    def forward(self, x):
        n, c, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm1(tokens)).chunk(3, -1)
        attention = ((q @ k.transpose(1, 2)) * c**-0.5).softmax(-1)
        tokens = tokens + self.proj(attention @ v)
        y = self.norm2(tokens)
        tokens = tokens + self.w3(functional.silu(self.w1(y)) * self.w2(y))
        x = tokens.transpose(1, 2).reshape(n, c, h, w)
        q, k, v = self.mixed(x).view(n, 2, 3 * c // 2, h * w).split(c // 2, dim=2)
        y = v @ ((q.transpose(2, 3) @ k) * 0.3).softmax(-1).transpose(2, 3)
        return x + y.reshape(n, c, h, w) + self.pe(v.reshape(n, c, h, w))


PLAIN = {
    "activations": lambda channels: Activations(),
    "highway": Highway,
    "convnext": ConvNext,
    "mobilenet": InvertedResidual,
    "hard_swish": lambda channels: InvertedResidual(channels, nn.Hardswish),
    "unet": Unet,
    "transformer": Transformer,
}
