"""A small anchor-free detector of the YOLO family with CBAM, as people build them from Ultralytics.

Blocks: Conv (convolution, BatchNorm, SiLU), C2f (split, bottlenecks, concatenate), CBAM in
Ultralytics' spelling, which is another gate than the paper's: its channel part is one 1x1
convolution of the average alone, its spatial part a 7x7 convolution of mean and maximum.

    cbam-deploy export examples/detector/network.py:detector --weights detector.pt -o detector.onnx
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = ("circle", "square", "triangle")
SIZE = 128  # Height and width of the input, in pixels.
STRIDES = (8, 16)
_LONGEST = 4.0  # Logarithm of the longest distance from a place to a side, in strides.


def detector() -> nn.Module:
    """For pictures [N, 3, 128, 128] of levels 0 to 1: boxes and scores [N, 7, 320]."""
    return Detector(24)


def detector_tiny() -> nn.Module:
    """A third as wide, to try things out."""
    return Detector(8)


class Conv(nn.Module):
    """SiLU(BatchNorm(convolution)), without bias."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel_size, stride, kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, inputs, H, W] to [N, outputs, H / stride, W / stride]."""
        result: Tensor = self.act(self.bn(self.conv(x)))
        return result


class ChannelAttention(nn.Module):
    """x * sigmoid(conv1x1(mean of x over the map))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Conv2d(channels, channels, 1)
        self.act = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Weight the channels of [N, C, H, W]."""
        result: Tensor = x * self.act(self.fc(self.pool(x)))
        return result


class SpatialAttention(nn.Module):
    """x * sigmoid(conv7x7(mean and maximum of x over the channels))."""

    def __init__(self) -> None:
        super().__init__()
        self.cv1 = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.act = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Weight the places of [N, C, H, W]."""
        pooled = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)
        result: Tensor = x * self.act(self.cv1(pooled))
        return result


class CBAM(nn.Module):
    """Channel attention, then spatial attention."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channel_attention = ChannelAttention(channels)
        self.spatial_attention = SpatialAttention()

    def forward(self, x: Tensor) -> Tensor:
        """Weight [N, C, H, W]."""
        result: Tensor = self.spatial_attention(self.channel_attention(x))
        return result


class Bottleneck(nn.Module):
    """x + CBAM(conv3x3(conv3x3(x)))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(channels, channels, 3), Conv(channels, channels, 3)
        self.cbam = CBAM(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to the same shape."""
        result: Tensor = x + self.cbam(self.cv2(self.cv1(x)))
        return result


class C2f(nn.Module):
    """Two halves; one goes through a bottleneck; what there is, concatenated."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.cv1, self.cv2 = Conv(inputs, outputs), Conv(3 * half, outputs)
        self.m = Bottleneck(half)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, inputs, H, W] to [N, outputs, H, W]."""
        first, second = self.cv1(x).chunk(2, 1)
        result: Tensor = self.cv2(torch.cat([first, second, self.m(second)], 1))
        return result


class Head(nn.Module):
    """Four distances to the sides, and a logit for each class, at each place of a map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.box = nn.Sequential(Conv(channels, channels, 3), nn.Conv2d(channels, 4, 1))
        self.cls = nn.Sequential(Conv(channels, channels, 3), nn.Conv2d(channels, len(CLASSES), 1))
        nn.init.constant_(self.cls[-1].bias, -4.6)  # Scores begin at 0.01: most places are empty.

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, channels, H, W] to [N, 4 + classes, H * W]."""
        return torch.cat([self.box(x), self.cls(x)], 1).flatten(2)


class Detector(nn.Module):
    """Maps at strides 8 and 16, the first enriched by the second; a head on each.

    Args:
        width: channels at stride 4; twice as many at 8, three times at 16.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        c4, c8, c16 = width, 2 * width, 3 * width
        self.stem = nn.Sequential(Conv(3, width // 2, 3, 2), Conv(width // 2, c4, 3, 2))
        self.stage8 = nn.Sequential(C2f(c4, c4), Conv(c4, c8, 3, 2), C2f(c8, c8))
        self.stage16 = nn.Sequential(Conv(c8, c16, 3, 2), C2f(c16, c16), CBAM(c16))
        self.up = nn.Upsample(None, 2, "nearest")
        self.merge = C2f(c8 + c16, c8)
        self.heads = nn.ModuleList([Head(c8), Head(c16)])
        self.register_buffer("places", places(), persistent=False)
        self.register_buffer("strides", strides(), persistent=False)

    def raw(self, x: Tensor) -> Tensor:
        """What the heads say, [N, 4 + classes, places]: logarithms of distances, and logits."""
        fine = self.stage8(self.stem(x))
        coarse = self.stage16(fine)
        fine = self.merge(torch.cat([fine, self.up(coarse)], 1))
        return torch.cat([head(x) for head, x in zip(self.heads, (fine, coarse), strict=True)], 2)

    def corners(self, raw: Tensor) -> Tensor:
        """Left, top, right and bottom in pixels, [N, 4, places]."""
        distances = raw[:, :4].clamp(-_LONGEST, _LONGEST).exp() * self.strides
        return torch.cat([self.places - distances[:, :2], self.places + distances[:, 2:]], 1)

    def forward(self, x: Tensor) -> Tensor:
        """Centre x, centre y, width, height in pixels, and scores 0 to 1: [N, 4 + classes, A]."""
        raw = self.raw(x)
        distances = raw[:, :4].clamp(-_LONGEST, _LONGEST).exp() * self.strides
        before, behind = distances[:, :2], distances[:, 2:]
        centre = self.places + (behind - before) / 2
        return torch.cat([centre, before + behind, raw[:, 4:].sigmoid()], 1)


def places() -> Tensor:
    """The middle of each place of the maps, x and y in pixels: [2, 320]."""
    found = []
    for stride in STRIDES:
        middles = (torch.arange(SIZE // stride) + 0.5) * stride
        y, x = torch.meshgrid(middles, middles, indexing="ij")
        found.append(torch.stack([x.flatten(), y.flatten()]))
    return torch.cat(found, 1)


def strides() -> Tensor:
    """The stride of each place, in pixels: [320]."""
    return torch.cat([torch.full(((SIZE // s) ** 2,), float(s)) for s in STRIDES])


def loss(network: Detector, images: Tensor, boxes: Tensor, classes: Tensor) -> Tensor:
    """GIoU loss of places inside objects, and binary cross-entropy of scores with the IoU.

    An object belongs to the places near its middle, on the map that suits its size. The score of
    its class shall be the IoU of the place's box (Zhang et al., "VarifocalNet", CVPR 2021).

    Args:
        network: in training mode.
        images: [N, 3, 128, 128], levels of 0 to 1.
        boxes: corners in pixels, [N, M, 4]; rows of an object that is not there are zero.
        classes: int64 [N, M].
    """
    raw = network.raw(images)
    owner = _owners(network, boxes)  # [N, places]: index of an object, or -1.
    taken = owner >= 0
    wanted = torch.zeros_like(raw[:, 4:])
    sample, place = taken.nonzero(as_tuple=True)
    mine = owner[sample, place]
    found = network.corners(raw)[sample, :, place]
    overlap, generalized = _giou(found, boxes[sample, mine])
    wanted[sample, classes[sample, mine], place] = overlap.detach()
    # Empty places count less the surer they are of it.
    scores = raw[:, 4:].sigmoid().detach()
    weight = torch.where(wanted > 0, wanted, 0.75 * scores**2)
    entropy = functional.binary_cross_entropy_with_logits(raw[:, 4:], wanted, reduction="none")
    count = max(1, len(mine))
    return ((1 - generalized).sum() * 2 + (weight * entropy).sum()) / count


def _owners(network: Detector, boxes: Tensor) -> Tensor:
    """For each place the smallest object it belongs to, [N, places] int64, -1 for none."""
    sides = boxes[..., 2:] - boxes[..., :2]
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2
    longest = sides.amax(-1, keepdim=True)  # [N, M, 1]
    away = (network.places.T[None, None] - middle[:, :, None]).abs().amax(-1)  # [N, M, places]
    own_map = torch.where(longest < SIZE / 4, STRIDES[0], STRIDES[1]) == network.strides
    near = away < torch.minimum(1.5 * network.strides, longest / 2)
    area = sides.prod(-1, keepdim=True).expand_as(away)
    area = area.masked_fill(~(near & own_map & (longest > 0)), torch.inf)
    smallest, owner = area.min(1)
    return owner.masked_fill(smallest.isinf(), -1)


def _giou(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalized IoU of corners [K, 4] (Rezatofighi et al., CVPR 2019)."""

    def area(corners: Tensor) -> Tensor:
        return (corners[:, 2:] - corners[:, :2]).clamp(min=0).prod(1)

    low, high = torch.minimum(first, second), torch.maximum(first, second)
    shared = area(torch.cat([high[:, :2], low[:, 2:]], 1))
    union = area(first) + area(second) - shared
    hull = area(torch.cat([low[:, :2], high[:, 2:]], 1))
    overlap = shared / union
    return overlap, overlap - (hull - union) / hull
