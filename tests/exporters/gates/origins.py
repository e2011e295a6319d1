"""Which operators gates of which origin become, and all of them in one network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from origin_networks import (
    AuthorsCbam,
    AuthorsEca,
    Cbam,
    ChannelAlone,
    ChannelAttention,
    ClampedSe,
    EffectiveSe,
    GhostSe,
    MapUsedTwice,
    Parallel,
    RtmdetAttention,
    Scse,
    Senet,
    SharedLinear,
    SpatialAlone,
    SpatialAttention,
    SpatialFirst,
    StereoAttention,
    SumOfGates,
    TimmCbam,
    TimmEca,
    TimmLightChannel,
    TimmLightSpatial,
    TorchvisionSe,
    Triplet,
)
from torch import nn
from ultralytics_networks import UltralyticsCbam


class Behind(nn.Module):
    """A gate, the map added to its output, and an activation of that."""

    def __init__(self, channels, gate, activation=nn.Identity, adds=True):
        super().__init__()
        self.gate, self.adds = gate(channels), adds
        self.act = activation()

    def forward(self, x):
        y = self.gate(x)
        return self.act(y + x if self.adds else y)


class SkipFirst(Behind):
    """`x + gate(x)`, with the skip as the first operand."""

    def forward(self, x):
        return x + self.gate(x)


@dataclass(frozen=True)
class Origin:
    """A gate of a certain origin.

    Attributes:
        make: the module, from the number of channels.
        operators: of the fused gates, in order.
        fixed: whether TorchScript can export it for one size alone.
        alike: whether it is another one of these but for a number or an activation, so that
            exporting it by dynamo, which takes long, would show nothing new.
    """

    make: Callable[[int], nn.Module]
    operators: tuple[str, ...] = field(default=("CbamGate",))
    fixed: bool = False
    alike: bool = False


def _cbam(**parts: Callable[..., nn.Module]) -> Callable[[int], nn.Module]:
    return partial(Cbam, **parts)


def _channel(**options: object) -> Callable[[int], nn.Module]:
    return _cbam(ca=partial(ChannelAttention, **options))


def _spatial(**options: object) -> Callable[[int], nn.Module]:
    return _cbam(sa=partial(SpatialAttention, **options))


# By row of the table of gates: what it is, as a name that a module can have.
ORIGINS: dict[str, Origin] = {
    "senet": Origin(Senet, ("SeGate",)),
    "torchvision_se": Origin(TorchvisionSe, ("SeGate",), alike=True),
    "efficientnet_se": Origin(
        partial(TorchvisionSe, activation=partial(nn.SiLU, inplace=True)), ("SeGateSilu",)
    ),
    "mobilenetv3_se": Origin(
        partial(TorchvisionSe, scale_activation=nn.Hardsigmoid), ("SeGateHardSigmoid",)
    ),
    "ghostnet_se": Origin(GhostSe, ("SeGateHardSigmoid",)),
    "clamped_se": Origin(ClampedSe, ("SeGateHardSigmoid",)),
    "timm_ese": Origin(EffectiveSe, ("SeGateLinearHardSigmoid",)),
    "rtmdet": Origin(RtmdetAttention, ("SeGateLinearHardSigmoid",), alike=True),
    "cbam_linear_mlp": Origin(_cbam(ca=SharedLinear)),
    "cbam_conv_mlp": Origin(Cbam),
    "cbam_bias": Origin(_channel(bias=True), alike=True),
    "cbam_authors": Origin(AuthorsCbam, fixed=True),
    "timm_cbam": Origin(TimmCbam),
    "timm_light_cbam": Origin(
        partial(TimmCbam, channel=TimmLightChannel, spatial=TimmLightSpatial),
        ("CbamGateMeanOfPools",),
    ),
    "ultralytics_cbam": Origin(UltralyticsCbam, ("CbamGateMeanLinear",)),
    "ultralytics_cbam_k3": Origin(
        partial(UltralyticsCbam, kernel_size=3), ("CbamGateMeanLinear",), alike=True
    ),
    "cbam_mean": Origin(_channel(pools="avg"), ("CbamGateMean",), alike=True),
    "cbam_max": Origin(_channel(pools="max"), ("CbamGateMax",), alike=True),
    "cbam_leaky": Origin(_channel(activation=nn.LeakyReLU), ("CbamGateLeakyRelu",), alike=True),
    "cbam_gelu": Origin(_channel(activation=nn.GELU), ("CbamGateGelu",)),
    "cbam_silu": Origin(_channel(activation=nn.SiLU), ("CbamGateSilu",)),
    "cbam_hard_swish": Origin(
        _channel(activation=nn.Hardswish), ("CbamGateHardSwish",), alike=True
    ),
    "cbam_mean_map": Origin(_spatial(descriptor="avg"), ("CbamGateMeanMap",), alike=True),
    "cbam_max_map": Origin(_spatial(descriptor="max"), ("CbamGateMaxMap",), alike=True),
    "cbam_batch_norm_mlp": Origin(_channel(middle=(nn.BatchNorm2d,))),
    "cbam_k1": Origin(_spatial(kernel_size=1), alike=True),
    "cbam_k5": Origin(_spatial(kernel_size=5), alike=True),
    "cbam_k9": Origin(_spatial(kernel_size=9), alike=True),
    "cbam_k11": Origin(_spatial(kernel_size=11), alike=True),
    "cbam_dilated": Origin(_spatial(kernel_size=3, dilation=4)),
    "channel_alone": Origin(ChannelAlone, ("SeGateMeanMax",)),
    "spatial_alone": Origin(SpatialAlone, ("SpatialGate",)),
    "spatial_first": Origin(SpatialFirst, ("CbamGateSpatialFirst",)),
    "parallel": Origin(Parallel, ("CbamGateParallel",)),
    "sum_of_gates": Origin(SumOfGates, ("CbamGateSumOfGates",)),
    "stereo": Origin(StereoAttention, ("SeGateMeanMax",)),
    "map_used_twice": Origin(MapUsedTwice, ("SeGateMeanMax",)),
    "eca_authors": Origin(AuthorsEca, ("EcaGate",)),
    "eca_authors_k5": Origin(partial(AuthorsEca, kernel_size=5), ("EcaGate",), alike=True),
    "timm_eca": Origin(TimmEca, ("EcaGate",)),
    "scse": Origin(Scse, ("ScseGate",)),
    "triplet": Origin(Triplet, ("SpatialGate", "SpatialGate", "SpatialGateAdd")),
    "skip_first": Origin(partial(SkipFirst, gate=Cbam), ("CbamGateAdd",)),
    "residual": Origin(partial(Behind, gate=Senet), ("SeGateAdd",), alike=True),
    "residual_relu": Origin(partial(Behind, gate=Cbam, activation=nn.ReLU), ("CbamGateAddRelu",)),
    "relu_of_gate": Origin(
        partial(Behind, gate=Cbam, activation=nn.ReLU, adds=False), ("CbamGateThenRelu",)
    ),
    "silu_of_gate": Origin(
        partial(Behind, gate=UltralyticsCbam, activation=nn.SiLU, adds=False),
        ("CbamGateMeanLinearThenSilu",),
        alike=True,
    ),
    "residual_silu": Origin(
        partial(Behind, gate=EffectiveSe, activation=nn.SiLU), ("SeGateLinearHardSigmoidAddSilu",)
    ),
}


class Block(nn.Module):
    """A convolution on either side of a gate, as in a network."""

    def __init__(self, gate, channels):
        super().__init__()
        self.before = nn.Conv2d(3, channels, 1)
        self.gate = gate(channels)
        self.after = nn.Conv2d(channels, 4, 1)

    def forward(self, x):
        gated = self.gate(self.before(x))
        if isinstance(gated, tuple):
            gated, attention = gated
            return self.after(gated), attention
        return (self.after(gated),)


class Blocks(nn.Module):
    """Blocks side by side on one picture, named by their gates."""

    def __init__(self, gates, channels=16):
        super().__init__()
        self.blocks = nn.ModuleDict({name: Block(make, channels) for name, make in gates.items()})

    def forward(self, x):
        return tuple(output for block in self.blocks.values() for output in block(x))
