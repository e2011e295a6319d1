"""ResNet, Wide ResNet and ResNeXt, with an attention gate in every residual block.

Sources: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016; Xie et al.,
"Aggregated Residual Transformations for Deep Neural Networks", CVPR 2017; the gate's place is that
of figure 3 of the CBAM paper. The stride of a bottleneck is in its 3x3 convolution, and names of
parameters are torchvision's: its checkpoints load into networks without gates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from cbam_deploy.gates.description import GateSpec
from cbam_deploy.models.gate import AttentionGate
from cbam_deploy.models.initialization import initialize

Stem = Literal["imagenet", "cifar"]


@dataclass(frozen=True)
class ResNetConfig:
    """One network of the family.

    Attributes:
        block: ``basic`` (two 3x3 convolutions) or ``bottleneck`` (1x1, 3x3, 1x1).
        depths: number of blocks per stage.
        widths: width of each stage's blocks before a bottleneck's expansion by 4.
        stem_width: channels after the first convolution.
        groups: groups of a bottleneck's 3x3 convolution.
        width_per_group: channels of each group in a bottleneck of width 64.
    """

    block: Literal["basic", "bottleneck"]
    depths: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512)
    stem_width: int = 64
    groups: int = 1
    width_per_group: int = 64


class BasicBlock(nn.Module):
    """relu(gate(bn(conv3x3(relu(bn(conv3x3(x)))))) + shortcut(x))."""

    def __init__(self, inputs: int, width: int, stride: int, gate: GateSpec | None) -> None:
        super().__init__()
        self.conv1 = _conv3x3(inputs, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.gate = AttentionGate(width, gate) if gate else nn.Identity()
        self.relu = nn.ReLU()
        self.downsample = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, inputs, H, W] to [N, width, H / stride, W / stride]."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return _join(self, out, x)


class Bottleneck(nn.Module):
    """relu(gate(bn(conv1x1(conv3x3(conv1x1(x))))) + shortcut(x)), bn and relu between."""

    def __init__(
        self,
        inputs: int,
        width: int,
        stride: int,
        gate: GateSpec | None,
        groups: int,
        width_per_group: int,
    ) -> None:
        super().__init__()
        inner = width * width_per_group // 64 * groups
        outputs = width * 4
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = _conv3x3(inner, inner, stride, groups)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.gate = AttentionGate(outputs, gate) if gate else nn.Identity()
        self.relu = nn.ReLU()
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, inputs, H, W] to [N, 4 * width, H / stride, W / stride]."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return _join(self, out, x)


class ResNet(nn.Module):
    """A classifier of pictures [N, 3, H, W]: stem, stages ``layer1`` onwards, mean pool, ``fc``.

    Args:
        config: which network of the family.
        gate: the attention gate of every block, None for none.
        num_classes: outputs of the classifier.
        stem: ``imagenet`` (7x7 convolution of stride 2, then max pool) or ``cifar`` (3x3 of
            stride 1, no pool).
    """

    def __init__(
        self, config: ResNetConfig, gate: GateSpec | None, num_classes: int, stem: Stem
    ) -> None:
        super().__init__()
        width = config.stem_width
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
            self.maxpool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.conv1 = _conv3x3(3, width)
            self.maxpool = nn.Identity()
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.stages = tuple(f"layer{number + 1}" for number in range(len(config.depths)))
        for number, name in enumerate(self.stages):
            stage = _stage(config, number, width, gate)
            self.add_module(name, stage)
            width = _outputs(config, number)
        self.fc = nn.Linear(width, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, num_classes] of pictures `x` [N, 3, H, W]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def _stage(config: ResNetConfig, number: int, inputs: int, gate: GateSpec | None) -> nn.Sequential:
    blocks: list[nn.Module] = []
    width = config.widths[number]
    for block in range(config.depths[number]):
        stride = 2 if block == 0 and number > 0 else 1
        if config.block == "basic":
            blocks.append(BasicBlock(inputs, width, stride, gate))
        else:
            blocks.append(
                Bottleneck(inputs, width, stride, gate, config.groups, config.width_per_group)
            )
        inputs = _outputs(config, number)
    return nn.Sequential(*blocks)


def _outputs(config: ResNetConfig, stage: int) -> int:
    return config.widths[stage] * (4 if config.block == "bottleneck" else 1)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if inputs == outputs and stride == 1:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
    )


def _join(block: BasicBlock | Bottleneck, out: Tensor, x: Tensor) -> Tensor:
    """relu(gate(out) + shortcut(x)); a fused gate takes the shortcut in, and writes the result."""
    if isinstance(block.gate, AttentionGate) and block.gate.operators is not None:
        fused: Tensor = block.gate(out, block.downsample(x))
        return fused
    out = block.gate(out)
    result: Tensor = block.relu(out + block.downsample(x))
    return result


def _conv3x3(inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, groups=groups, bias=False)
