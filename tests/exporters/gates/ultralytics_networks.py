"""Ultralytics' CBAM, and a detector with it as people build them, in our own words."""

import torch
from torch import nn


class UltralyticsChannel(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Conv2d(channels, channels, 1, 1, 0, bias=True)
        self.act = nn.Sigmoid()

    def forward(self, x):
        return x * self.act(self.fc(self.pool(x)))


class UltralyticsSpatial(nn.Module):
    def __init__(self, kernel_size=7):
        super().__init__()
        self.cv1 = nn.Conv2d(2, 1, kernel_size, padding=3 if kernel_size == 7 else 1, bias=False)
        self.act = nn.Sigmoid()

    def forward(self, x):
        pooled = torch.cat([x.mean(1, keepdim=True), torch.max(x, 1, keepdim=True)[0]], 1)
        return x * self.act(self.cv1(pooled))


class UltralyticsCbam(nn.Module):
    def __init__(self, channels, kernel_size=7):
        super().__init__()
        self.channel_attention = UltralyticsChannel(channels)
        self.spatial_attention = UltralyticsSpatial(kernel_size)

    def forward(self, x):
        return self.spatial_attention(self.channel_attention(x))


class Conv(nn.Module):
    """Ultralytics' Conv: Conv2d without bias, BatchNorm2d, SiLU."""

    def __init__(self, inputs, outputs, kernel_size=1, stride=1):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel_size, stride, kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.act = nn.SiLU()

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    """With a gate before its skip is added, as people paste it in."""

    def __init__(self, channels):
        super().__init__()
        self.cv1, self.cv2 = Conv(channels, channels, 3), Conv(channels, channels, 3)
        self.cbam = UltralyticsCbam(channels)

    def forward(self, x):
        return x + self.cbam(self.cv2(self.cv1(x)))


class C2f(nn.Module):
    """Split in halves, one bottleneck, all of it concatenated."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.c = outputs // 2
        self.cv1, self.cv2 = Conv(inputs, outputs), Conv(3 * self.c, outputs)
        self.m = nn.ModuleList([Bottleneck(self.c)])

    def forward(self, x):
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class Detector(nn.Module):
    """A YOLO in small: two maps of predictions, at strides 4 and 8."""

    def __init__(self, channels=16):
        super().__init__()
        self.stem = Conv(3, channels, 3, 2)
        self.down = nn.ModuleList(Conv(channels, channels, 3, 2) for _ in range(2))
        self.stages = nn.ModuleList(C2f(channels, channels) for _ in range(2))
        self.cbam = UltralyticsCbam(channels, kernel_size=3)
        self.up = nn.Upsample(None, 2, "nearest")
        self.merge = Conv(2 * channels, channels)
        self.heads = nn.ModuleList(nn.Conv2d(channels, 6, 1) for _ in range(2))

    def forward(self, x):
        x = self.stem(x)
        maps = []
        for down, stage in zip(self.down, self.stages, strict=True):
            x = stage(down(x))
            maps.append(x)
        fine, coarse = maps[0], self.cbam(maps[1])
        maps = [self.merge(torch.cat([self.up(coarse), fine], 1)), coarse]
        return tuple(head(one) for head, one in zip(self.heads, maps, strict=True))


class ExportedDetector(Detector):
    """The same as their export has it: boxes in pixels and scores in one tensor, then the maps."""

    def forward(self, x):
        fine, coarse = super().forward(x)
        decoded = [self.decoded(fine, 4), self.decoded(coarse, 8)]
        return torch.cat(decoded, 2), fine, coarse

    @staticmethod
    def decoded(map_, stride):
        """[N, 4 + classes, places]: a box has its middle near its place, and up to four of them."""
        rows, columns = (torch.arange(size) + 0.5 for size in map_.shape[2:])
        places = torch.stack([columns + 0 * rows[:, None], rows[:, None] + 0 * columns])
        middles = (places + map_[:, :2].tanh()) * stride
        sides = map_[:, 2:4].sigmoid() * 4 * stride
        return torch.cat([middles, sides, map_[:, 4:].sigmoid()], 1).flatten(2)
