"""MobileNet v1, with attention gates after its depthwise and its pointwise convolutions.

Source: Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision
Applications", 2017 (https://arxiv.org/abs/1704.04861), table 1. The CBAM paper does not say where
its MobileNet has gates. Its parameter counts (table 5: 4.23 M plain, 5.07 M with SE and with CBAM)
come out with a gate after both convolutions of each depthwise-separable block; one gate a block
would make 4.72 M. The gates follow the ReLU, as later mobile networks have them.
"""

from __future__ import annotations

from torch import Tensor, nn

from cbam_deploy.gates.description import GateSpec
from cbam_deploy.models.gate import AttentionGate
from cbam_deploy.models.initialization import initialize
from cbam_deploy.models.resnet import Stem

# Outputs and stride of each depthwise-separable block.
_BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *((512, 1),) * 5,
    (1024, 2),
    (1024, 1),
)


class SeparableBlock(nn.Module):
    """gate(relu(bn(pointwise(gate(relu(bn(depthwise3x3(x)))))))), each with its own weights."""

    def __init__(self, inputs: int, outputs: int, stride: int, gate: GateSpec | None) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            inputs, inputs, 3, stride=stride, padding=1, groups=inputs, bias=False
        )
        self.bn1 = nn.BatchNorm2d(inputs)
        self.gate1 = AttentionGate(inputs, gate) if gate else nn.Identity()
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.gate2 = AttentionGate(outputs, gate) if gate else nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, inputs, H, W] to [N, outputs, H / stride, W / stride]."""
        x = self.gate1(self.relu(self.bn1(self.depthwise(x))))
        out: Tensor = self.gate2(self.relu(self.bn2(self.pointwise(x))))
        return out


class MobileNet(nn.Module):
    """A classifier of pictures [N, 3, H, W]; arguments as those of `resnet.ResNet`."""

    def __init__(self, gate: GateSpec | None, num_classes: int, stem: Stem) -> None:
        super().__init__()
        stride = 2 if stem == "imagenet" else 1
        self.conv1 = nn.Conv2d(3, 32, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.relu = nn.ReLU()
        blocks = []
        width = 32
        for outputs, block_stride in _BLOCKS:
            blocks.append(SeparableBlock(width, outputs, block_stride, gate))
            width = outputs
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(width, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, num_classes] of pictures `x` [N, 3, H, W]."""
        x = self.blocks(self.relu(self.bn1(self.conv1(x))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits
