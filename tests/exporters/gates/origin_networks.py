"""Attention gates as the code that people have writes them: structure and habits, in our own words.

Each class takes the number of channels and maps [N, C, H, W] to the same shape; where it gives two
values, the second one is an attention that goes out.
"""

import torch
from torch import nn
from torch.nn import functional

REDUCTION = 4


class Senet(nn.Module):
    """hujie-frank's and moskomule's SE: pool, view, two Linears without bias, view, expand_as."""

    def __init__(self, channels):
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(
            nn.Linear(channels, channels // REDUCTION, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(channels // REDUCTION, channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x):
        b, c, _, _ = x.size()
        y = self.avg_pool(x).view(b, c)
        y = self.fc(y).view(b, c, 1, 1)
        return x * y.expand_as(x)


class TorchvisionSe(nn.Module):
    """torchvision's SqueezeExcitation: `fc1`, `fc2` are 1x1 Conv2d; the scale comes first."""

    def __init__(self, channels, activation=nn.ReLU, scale_activation=nn.Sigmoid):
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, channels // REDUCTION, 1)
        self.fc2 = nn.Conv2d(channels // REDUCTION, channels, 1)
        self.activation = activation()
        self.scale_activation = scale_activation()

    def forward(self, x):
        scale = self.fc2(self.activation(self.fc1(self.avgpool(x))))
        return self.scale_activation(scale) * x


class GhostSe(nn.Module):
    """GhostNet's: relu6(z + 3) / 6 written out."""

    def __init__(self, channels):
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.conv_reduce = nn.Conv2d(channels, channels // REDUCTION, 1, bias=True)
        self.act1 = nn.ReLU(inplace=True)
        self.conv_expand = nn.Conv2d(channels // REDUCTION, channels, 1, bias=True)

    def forward(self, x):
        z = self.conv_expand(self.act1(self.conv_reduce(self.avg_pool(x))))
        return x * (functional.relu6(z + 3.0) / 6.0)


class ClampedSe(GhostSe):
    """The same by a clamp, and a product with a sixth."""

    def forward(self, x):
        z = self.conv_expand(self.act1(self.conv_reduce(self.avg_pool(x))))
        return x * torch.clamp(z + 3.0, 0.0, 6.0).mul(1 / 6)


class EffectiveSe(nn.Module):
    """timm's EffectiveSEModule: one 1x1 Conv2d of a kept-dimension mean, hard sigmoid."""

    def __init__(self, channels):
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, kernel_size=1, padding=0)

    def forward(self, x):
        return x * functional.hardsigmoid(self.fc(x.mean((2, 3), keepdim=True)))


class RtmdetAttention(nn.Module):
    """mmdetection's ChannelAttention of RTMDet, which mmpose's RTMPose takes too."""

    def __init__(self, channels):
        super().__init__()
        self.global_avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Conv2d(channels, channels, 1, 1, 0, bias=True)
        self.act = nn.Hardsigmoid(inplace=True)

    def forward(self, x):
        out = self.global_avgpool(x)
        return x * self.act(self.fc(out))


class LinearMlp(nn.Sequential):
    def __init__(self, channels):
        hidden = channels // REDUCTION
        super().__init__(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))


class ConvMlp(nn.Sequential):
    def __init__(self, channels, activation=nn.ReLU, bias=False, middle=()):
        hidden = channels // REDUCTION
        first, last = (
            nn.Conv2d(*sizes, 1, bias=bias) for sizes in ((channels, hidden), (hidden, channels))
        )
        super().__init__(first, *(make(hidden) for make in middle), activation(), last)


class SharedLinear(nn.Module):
    """The textbook's channel attention of a shared Linear MLP, as a map of its own."""

    def __init__(self, channels):
        super().__init__()
        self.avg_pool, self.max_pool = nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1)
        self.mlp = LinearMlp(channels)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x):
        b, c, _, _ = x.size()
        avg = self.mlp(self.avg_pool(x).view(b, c))
        peak = self.mlp(self.max_pool(x).view(b, c))
        return self.sigmoid(avg + peak).view(b, c, 1, 1)


class ChannelAttention(nn.Module):
    """The most copied one (luuuyi's): pools, `fc` of 1x1 Conv2d, sigmoid of the sum."""

    def __init__(self, channels, pools="avg+max", **mlp):
        super().__init__()
        self.avg_pool, self.max_pool = nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1)
        self.pools = pools
        self.fc = ConvMlp(channels, **mlp)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x):
        if self.pools != "avg+max":
            pool = self.avg_pool if self.pools == "avg" else self.max_pool
            return self.sigmoid(self.fc(pool(x)))
        avg_out = self.fc(self.avg_pool(x))
        max_out = self.fc(self.max_pool(x))
        return self.sigmoid(avg_out + max_out)


class SpatialAttention(nn.Module):
    """Its counterpart: the mean is channel 0 of `conv1`, the maximum channel 1."""

    def __init__(self, kernel_size=7, descriptor="both", dilation=1):
        super().__init__()
        self.descriptor = descriptor
        padding = dilation * (kernel_size // 2)
        inputs = 2 if descriptor == "both" else 1
        self.conv1 = nn.Conv2d(
            inputs, 1, kernel_size, padding=padding, dilation=dilation, bias=False
        )
        self.sigmoid = nn.Sigmoid()

    def forward(self, x):
        avg_out = torch.mean(x, dim=1, keepdim=True)
        max_out, _ = torch.max(x, dim=1, keepdim=True)
        y = {"both": torch.cat([avg_out, max_out], dim=1), "avg": avg_out, "max": max_out}
        return self.sigmoid(self.conv1(y[self.descriptor]))


class Cbam(nn.Module):
    """`x = ca(x) * x; x = sa(x) * x`."""

    def __init__(self, channels, ca=ChannelAttention, sa=SpatialAttention):
        super().__init__()
        self.ca, self.sa = ca(channels), sa()

    def forward(self, x):
        x = self.ca(x) * x
        return self.sa(x) * x


class ChannelAlone(Cbam):
    def forward(self, x):
        return x * self.ca(x)


class SpatialAlone(Cbam):
    def forward(self, x):
        return x * self.sa(x)


class SpatialFirst(Cbam):
    def forward(self, x):
        x = x * self.sa(x)
        return x * self.ca(x)


class Parallel(Cbam):
    """Both parts see x."""

    def forward(self, x):
        return x * self.ca(x) * self.sa(x)


class SumOfGates(Cbam):
    """A well-known transcription of the formula misplaces a bracket."""

    def forward(self, x):
        ca = self.ca
        x = x * (torch.sigmoid(ca.fc(ca.avg_pool(x))) + torch.sigmoid(ca.fc(ca.max_pool(x))))
        return x * self.sa(x)


class StereoAttention(Cbam):
    """FoundationStereo's: `x = cam(x) * x`, and sam(x), computed of it, goes to the GRU."""

    def forward(self, x):
        x = self.ca(x) * x
        return x, self.sa(x)


class MapUsedTwice(Cbam):
    """The spatial attention gates x and goes out as well, to be looked at."""

    def forward(self, x):
        x = self.ca(x) * x
        attention = self.sa(x)
        return x * attention, attention


class Flatten(nn.Module):
    def forward(self, x):
        return x.view(x.size(0), -1)


class AuthorsChannelGate(nn.Module):
    """Jongchan's: windows as large as the map, Flatten and Linear, unsqueeze and expand_as."""

    def __init__(self, channels):
        super().__init__()
        self.mlp = nn.Sequential(Flatten(), *LinearMlp(channels))

    def forward(self, x):
        total = None
        for pool in (functional.avg_pool2d, functional.max_pool2d):
            raw = self.mlp(pool(x, (x.size(2), x.size(3)), stride=(x.size(2), x.size(3))))
            total = raw if total is None else total + raw
        scale = functional.sigmoid(total).unsqueeze(2).unsqueeze(3).expand_as(x)
        return x * scale


class ChannelPool(nn.Module):
    def forward(self, x):
        return torch.cat((torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)), dim=1)


class BasicConv(nn.Module):
    """Conv2d without bias and a BatchNorm2d of one channel."""

    def __init__(self, kernel_size, inputs=2):
        super().__init__()
        self.conv = nn.Conv2d(inputs, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(1, eps=1e-5, momentum=0.01, affine=True)

    def forward(self, x):
        return self.bn(self.conv(x))


class AuthorsSpatialGate(nn.Module):
    def __init__(self):
        super().__init__()
        self.compress = ChannelPool()
        self.spatial = BasicConv(7)

    def forward(self, x):
        return x * torch.sigmoid(self.spatial(self.compress(x)))


class Triplet(nn.Module):
    """landskape-ai's: spatial gates of the map and of two permutations of it, averaged."""

    def __init__(self, channels):
        super().__init__()
        self.cw, self.hc, self.hw = (AuthorsSpatialGate() for _ in range(3))

    def forward(self, x):
        first = self.cw(x.permute(0, 2, 1, 3).contiguous()).permute(0, 2, 1, 3).contiguous()
        second = self.hc(x.permute(0, 3, 2, 1).contiguous()).permute(0, 3, 2, 1).contiguous()
        return 1 / 3 * (self.hw(x) + first + second)


class AuthorsCbam(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.ChannelGate = AuthorsChannelGate(channels)
        self.SpatialGate = AuthorsSpatialGate()

    def forward(self, x):
        return self.SpatialGate(self.ChannelGate(x))


class TimmChannel(nn.Module):
    def __init__(self, channels):
        super().__init__()
        hidden = channels // REDUCTION
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=False)
        self.act = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(hidden, channels, 1, bias=False)
        self.gate = nn.Sigmoid()

    def forward(self, x):
        x_avg = self.fc2(self.act(self.fc1(x.mean((2, 3), keepdim=True))))
        x_max = self.fc2(self.act(self.fc1(x.amax((2, 3), keepdim=True))))
        return x * self.gate(x_avg + x_max)


class TimmSpatial(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = BasicConv(7)
        self.gate = nn.Sigmoid()

    def forward(self, x):
        pooled = torch.cat([x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)], dim=1)
        return x * self.gate(self.conv(pooled))


class TimmLightChannel(TimmChannel):
    def forward(self, x):
        pooled = 0.5 * x.mean((2, 3), keepdim=True) + 0.5 * x.amax((2, 3), keepdim=True)
        return x * functional.sigmoid(self.fc2(self.act(self.fc1(pooled))))


class TimmLightSpatial(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = BasicConv(7, inputs=1)

    def forward(self, x):
        pooled = 0.5 * x.mean(dim=1, keepdim=True) + 0.5 * x.amax(dim=1, keepdim=True)
        return x * self.conv(pooled).sigmoid()


class TimmCbam(nn.Module):
    def __init__(self, channels, channel=TimmChannel, spatial=TimmSpatial):
        super().__init__()
        self.channel, self.spatial = channel(channels), spatial()

    def forward(self, x):
        x = self.channel(x)
        return self.spatial(x)


class AuthorsEca(nn.Module):
    """BangguWu's: squeeze and transpose around a Conv1d without bias."""

    def __init__(self, channels, kernel_size=3):
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=(kernel_size - 1) // 2, bias=False)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x):
        y = self.avg_pool(x)
        y = self.conv(y.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return x * self.sigmoid(y).expand_as(x)


class TimmEca(AuthorsEca):
    """timm's: views around the Conv1d."""

    def forward(self, x):
        y = x.mean((2, 3)).view(x.shape[0], 1, -1)
        y = self.sigmoid(self.conv(y)).view(x.shape[0], -1, 1, 1)
        return x * y.expand_as(x)


class Scse(nn.Module):
    """segmentation_models.pytorch's SCSEModule: two Sequentials, and the sum of both products."""

    def __init__(self, channels):
        super().__init__()
        hidden = channels // REDUCTION
        self.cSE = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, hidden, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, 1),
            nn.Sigmoid(),
        )
        self.sSE = nn.Sequential(nn.Conv2d(channels, 1, 1), nn.Sigmoid())

    def forward(self, x):
        return x * self.cSE(x) + x * self.sSE(x)
