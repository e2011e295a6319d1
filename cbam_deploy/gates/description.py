"""What an attention gate is made of, in one dataclass from which everything else follows.

    channel part    pools of each channel -> mixer -> gate function      Mc [N, C, 1, 1]
    spatial part    descriptor of each position -> k x k -> gate function  Ms [N, 1, H, W]
    arrangement     which of the two there are, and how they meet

Sources: Woo, Park, Lee, Kweon, "CBAM: Convolutional Block Attention Module", ECCV 2018, with the
variants of section 4.1, tables 1 to 3. Channel parts: Hu, Shen, Sun, "Squeeze-and-Excitation
Networks", CVPR 2018 (`SE`); Lee and Park, "CenterMask", CVPR 2020, section 3.3 (one layer); Wang et
al., "ECA-Net", CVPR 2020 (a convolution along the channels). Side by side: Roy, Navab, Wachinger,
"Concurrent Spatial and Channel Squeeze & Excitation", MICCAI 2018.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from cbam_deploy.errors import BadInput

ChannelPool = Literal["avg", "max", "avg+max"]
Spatial = Literal["pool", "avg", "max", "conv1x1", "none"]
Arrangement = Literal["channel-spatial", "spatial-channel", "parallel", "sum", "channel", "spatial"]
Mixer = Literal["mlp", "linear", "conv"]
Activation = Literal["relu", "leaky_relu", "silu", "gelu", "hard_swish"]
Join = Literal["logits", "gates", "pools"]
GateFunction = Literal["sigmoid", "hard_sigmoid"]

KERNEL_SIZES = range(1, 16, 2)
"""Of the k x k convolution, and of the mixer that is a convolution."""


@dataclass(frozen=True)
class GateSpec:
    """One variant of the attention gate; the defaults are the CBAM paper's choice.

    Attributes:
        channel_pool: what the channel part sees of each channel.
        reduction: r, the MLP's bottleneck ratio; the hidden layer has max(C // r, 1) units.
        spatial: what the spatial part's convolution sees of each position: the channel-wise
            maximum and mean (`pool`), one of them, a learned 1x1 convolution to one map; or `none`.
        kernel_size: k of the spatial part's k x k convolution, one of `KERNEL_SIZES`.
        arrangement: which part sees the map that the other has gated; or `parallel`, both see x
            and y = x·Mc·Ms; or `sum`, both see x and y = x·Mc + x·Ms; or which one stands alone.
        mixer: how the channels' statistics meet: a shared MLP of two layers, one layer C -> C
            (`linear`), or one convolution along the channels (`conv`).
        activation: between the two layers of the MLP. `leaky_relu` has slope 0.01, `gelu` is the
            exact one, x·Phi(x), and `hard_swish` is x·hard_sigmoid(x).
        join: where two pools meet: their logits are added, each has a gate of its own and these
            are added, or the pools are averaged before the mixer.
        channel_gate: of the channel part's logits; `hard_sigmoid` is clip(z / 6 + 1/2, 0, 1).
        spatial_gate: of the spatial part's.
        channel_kernel_size: of the mixer `conv`, one of `KERNEL_SIZES`.

    Raises:
        ValueError: a field has a value outside the table, or `spatial` and `arrangement` disagree
            on whether there is a spatial part.
    """

    channel_pool: ChannelPool = "avg+max"
    reduction: int = 16
    spatial: Spatial = "pool"
    kernel_size: int = 7
    arrangement: Arrangement = "channel-spatial"
    mixer: Mixer = "mlp"
    activation: Activation = "relu"
    join: Join = "logits"
    channel_gate: GateFunction = "sigmoid"
    spatial_gate: GateFunction = "sigmoid"
    channel_kernel_size: int = 3

    def __post_init__(self) -> None:
        choices: dict[str, tuple[Any, ...]] = {
            "channel_pool": get_args(ChannelPool),
            "spatial": get_args(Spatial),
            "arrangement": get_args(Arrangement),
            "kernel_size": tuple(KERNEL_SIZES),
            "mixer": get_args(Mixer),
            "activation": get_args(Activation),
            "join": get_args(Join),
            "channel_gate": get_args(GateFunction),
            "spatial_gate": get_args(GateFunction),
            "channel_kernel_size": tuple(KERNEL_SIZES),
        }
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} must be one of {allowed}, not {getattr(self, field)!r}")
        if self.reduction < 1:
            raise ValueError(f"reduction must be at least 1, not {self.reduction}")
        if (self.spatial == "none") != (self.arrangement == "channel"):
            raise ValueError("spatial='none' and arrangement='channel' go together")

    @property
    def has_channel(self) -> bool:
        """Whether there is a channel part."""
        return self.arrangement != "spatial"

    @property
    def has_spatial(self) -> bool:
        """Whether there is a spatial part."""
        return self.arrangement != "channel"

    @property
    def kind(self) -> GateSpec:
        """What is computed, whatever the sizes: these, and what is not used, as in `CBAM`."""
        unused = ["reduction", "kernel_size", "channel_kernel_size"]
        if not self.has_channel:
            unused += ["channel_pool", "mixer", "activation", "join", "channel_gate"]
        if self.mixer != "mlp":
            unused.append("activation")
        if self.channel_pool != "avg+max":
            unused.append("join")
        if not self.has_spatial:
            unused.append("spatial_gate")
        return replace(self, **{field: getattr(CBAM, field) for field in unused})

    @property
    def label(self) -> str:
        """A name out of `GATES`, with the fields that are other than that gate's."""
        named = (name for name, gate in GATES.items() if gate.kind == self.kind)
        name = next(named, "cbam")
        known = asdict(GATES[name])
        other = (f"{key} {value}" for key, value in asdict(self).items() if value != known[key])
        return ", ".join([name, *other])


CBAM = GateSpec()
SE = GateSpec(channel_pool="avg", spatial="none", arrangement="channel")

GATES: dict[str, GateSpec] = {
    "cbam": CBAM,
    "cbam-linear": GateSpec(channel_pool="avg", mixer="linear"),
    "cbam-parallel": GateSpec(arrangement="parallel"),
    "se": SE,
    "se-silu": replace(SE, activation="silu"),
    "se-hard": replace(SE, channel_gate="hard_sigmoid"),
    "ese": replace(SE, mixer="linear", channel_gate="hard_sigmoid"),
    "eca": replace(SE, mixer="conv"),
    "scse": GateSpec(channel_pool="avg", spatial="conv1x1", kernel_size=1, arrangement="sum"),
}
"""Gates by the names they are known by: that of Ultralytics' CBAM is ``cbam-linear``, that of
EfficientNet ``se-silu``, that of MobileNetV3 ``se-hard``, that of VoVNet and RTMDet ``ese``."""


def parse_gate(text: str) -> GateSpec:
    """The gate that ``[NAME,]field=value,...`` describes.

    NAME is one of `GATES`; fields left out are that gate's, without a name those of `CBAM`.

    Raises:
        BadInput: a name or field is unknown, or a value outside the table.
    """
    known = [field.name for field in fields(GateSpec)]
    items = [item.strip() for item in text.split(",")]
    named = items.pop(0) if items[0] in GATES else "cbam"
    given: dict[str, Any] = {}
    for item in items:
        field, equals, value = item.partition("=")
        if field not in known or not equals:
            raise BadInput(
                f"gate {item!r}",
                f"give one of {', '.join(GATES)}, or FIELD=VALUE of {', '.join(known)}",
            )
        counts = isinstance(getattr(CBAM, field), int)
        if counts and not (value.isdecimal() and len(value) < 10):
            raise BadInput(f"gate {item}: {value!r} is not a number up to 999999999", "give one")
        given[field] = int(value) if counts else value
    try:
        return replace(GATES[named], **given)
    except ValueError as error:
        raise BadInput(f"gate {text}: {error}", "choose another value") from error
