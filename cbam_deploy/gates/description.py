"""What an attention gate is made of: every variant of the CBAM paper's ablations in one dataclass.

Source: Woo, Park, Lee, Kweon, "CBAM: Convolutional Block Attention Module", ECCV 2018, section 4.1
(tables 1 to 3). Squeeze-and-Excitation (Hu, Shen, Sun, CVPR 2018) is the variant `SE`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from cbam_deploy.errors import BadInput

ChannelPool = Literal["avg", "max", "avg+max"]
Spatial = Literal["pool", "conv1x1", "none"]
Arrangement = Literal["channel-spatial", "spatial-channel", "parallel", "channel", "spatial"]


@dataclass(frozen=True)
class GateSpec:
    """One variant of the attention gate; the defaults are the paper's choice.

    Attributes:
        channel_pool: what the channel gate's shared MLP sees of each channel.
        reduction: r, the MLP's bottleneck ratio; the hidden layer has max(C // r, 1) units.
        spatial: what the spatial gate's convolution sees of each position: the channel-wise
            maximum and mean (`pool`), a learned 1x1 convolution to one map, or no spatial gate.
        kernel_size: k of the spatial gate's k x k convolution.
        arrangement: order of the two gates, or which one stands alone.

    Raises:
        ValueError: a field has a value outside the table, or `spatial` and `arrangement` disagree
            on whether there is a spatial gate.
    """

    channel_pool: ChannelPool = "avg+max"
    reduction: int = 16
    spatial: Spatial = "pool"
    kernel_size: int = 7
    arrangement: Arrangement = "channel-spatial"

    def __post_init__(self) -> None:
        choices = {
            "channel_pool": get_args(ChannelPool),
            "spatial": get_args(Spatial),
            "arrangement": get_args(Arrangement),
            "kernel_size": (3, 7),
        }
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} must be one of {allowed}, not {getattr(self, field)!r}")
        if self.reduction < 1:
            raise ValueError(f"reduction must be at least 1, not {self.reduction}")
        if (self.spatial == "none") != (self.arrangement == "channel"):
            raise ValueError("spatial='none' and arrangement='channel' go together")


CBAM = GateSpec()
SE = GateSpec(channel_pool="avg", spatial="none", arrangement="channel")


def parse_gate(text: str) -> GateSpec:
    """The variant that ``field=value,...`` describes; fields left out are the paper's choice.

    Raises:
        BadInput: a field is unknown, or a value outside the table.
    """
    known = [field.name for field in fields(GateSpec)]
    given: dict[str, Any] = {}
    for item in text.split(","):
        field, equals, value = item.strip().partition("=")
        if field not in known or not equals:
            raise BadInput(f"gate {item.strip()!r}", f"write FIELD=VALUE of {', '.join(known)}")
        counts = isinstance(getattr(CBAM, field), int)
        if counts and not (value.isdecimal() and len(value) < 10):
            raise BadInput(
                f"gate {item.strip()}: {value!r} is not a number up to 999999999", "give one"
            )
        given[field] = int(value) if counts else value
    try:
        return GateSpec(**given)
    except ValueError as error:
        raise BadInput(f"gate {text}: {error}", "choose another value") from error
