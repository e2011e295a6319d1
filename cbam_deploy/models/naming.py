"""Checkpoints of other people's CBAM networks, by the names and layouts of this package.

Published networks differ from the zoo's only in how a gate's weights are called and laid out; the
names around it are torchvision's everywhere:

    here                        authors                       ca / sa      timm
    gate.channel.reduce         cbam.ChannelGate.mlp.1        ca.fc.0      se.channel.fc1
                                                              ca.fc1       se.fc1 (SE)
    gate.channel.expand         cbam.ChannelGate.mlp.3        ca.fc.2      se.channel.fc2
                                                              ca.fc2       se.fc2 (SE)
    gate.spatial.conv           cbam.SpatialGate.spatial.conv sa.conv1     se.spatial.conv.conv
                                                              sa.conv
    gate.spatial.bn             cbam.SpatialGate.spatial.bn   none         se.spatial.conv.bn
    layers of the MLP           Linear                        1x1 Conv     1x1 Conv
    their biases                yes                           no           in SE only
    first channel of the conv   maximum                       mean         mean

Sources: MODELS/cbam.py of https://github.com/Jongchan/attention-module (the paper's authors);
model/resnet_cbam.py of https://github.com/luuuyi/CBAM.PyTorch; timm/layers/cbam.py and
squeeze_excite.py of https://github.com/huggingface/pytorch-image-models. ResNets without gates have
the same names in torchvision, in timm and here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_REDUCE, _EXPAND = ".gate.channel.reduce.", ".gate.channel.expand."
_CONV, _NORM = ".gate.spatial.conv.", ".gate.spatial.bn."
_EPSILON = 1e-5  # BatchNorm2d's.


@dataclass(frozen=True)
class Naming:
    """How one origin names and lays out a gate's weights.

    Attributes:
        title: what to call it.
        parts: parts of names there, each with its part here.
        mean_first: whether the spatial convolution's first channel is the mean.
    """

    title: str
    parts: Mapping[str, str]
    mean_first: bool


NAMINGS = (
    Naming(
        "the CBAM authors' repository",
        {
            ".cbam.ChannelGate.mlp.1.": _REDUCE,
            ".cbam.ChannelGate.mlp.3.": _EXPAND,
            ".cbam.SpatialGate.spatial.conv.": _CONV,
            ".cbam.SpatialGate.spatial.bn.": _NORM,
        },
        mean_first=False,
    ),
    Naming(
        "ca and sa",
        {
            ".ca.fc.0.": _REDUCE,
            ".ca.fc.2.": _EXPAND,
            ".ca.fc1.": _REDUCE,
            ".ca.fc2.": _EXPAND,
            ".sa.conv1.": _CONV,
            ".sa.conv.": _CONV,
        },
        mean_first=True,
    ),
    Naming(
        "timm",
        {
            ".se.channel.fc1.": _REDUCE,
            ".se.channel.fc2.": _EXPAND,
            ".se.fc1.": _REDUCE,
            ".se.fc2.": _EXPAND,
            ".se.spatial.conv.conv.": _CONV,
            ".se.spatial.conv.bn.": _NORM,
        },
        mean_first=True,
    ),
)


def recognise(state_dict: Mapping[str, Tensor]) -> Naming | None:
    """The naming of the gates in `state_dict`; None where they have none of `NAMINGS`."""
    for naming in NAMINGS:
        if any(part in name for part in naming.parts for name in state_dict):
            return naming
    return None


def in_our_names(state_dict: Mapping[str, Tensor], naming: Naming) -> dict[str, Tensor]:
    """`state_dict` of `naming` as the zoo's networks take it.

    Biases that are not there become zeros, and a BatchNorm that is not there becomes neutral.
    """
    renamed = {_renamed(name, naming): tensor for name, tensor in state_dict.items()}
    state: dict[str, Tensor] = {}
    for name, tensor in renamed.items():
        if name.endswith((f"{_REDUCE}weight", f"{_EXPAND}weight")):
            state[name] = tensor.flatten(1)  # A 1x1 convolution's has two axes more.
            state.setdefault(name.replace("weight", "bias"), tensor.new_zeros(len(tensor)))
        elif name.endswith(f"{_CONV}weight"):
            state[name] = tensor.flip(1) if naming.mean_first else tensor
            state.update(_norm(name.removesuffix(f"{_CONV}weight"), renamed))
        elif not name.endswith(f"{_CONV}bias") and _NORM not in name:
            state[name] = tensor
    return state


def _renamed(name: str, naming: Naming) -> str:
    for theirs, ours in naming.parts.items():
        name = name.replace(theirs, ours)
    return name


def _norm(block: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The BatchNorm of the gate of `block`, into which the bias before it is folded."""
    prefix = f"{block}{_NORM}"
    bias = state.get(f"{block}{_CONV}bias", torch.zeros(1))
    if f"{prefix}weight" not in state:
        # (x - 0) / sqrt(variance + epsilon) * 1 + bias is x + bias.
        return {
            f"{prefix}weight": torch.ones(1),
            f"{prefix}bias": bias,
            f"{prefix}running_mean": torch.zeros(1),
            f"{prefix}running_var": torch.full((1,), 1 - _EPSILON),
        }
    norm = {name: tensor for name, tensor in state.items() if name.startswith(prefix)}
    norm[f"{prefix}running_mean"] = norm[f"{prefix}running_mean"] - bias
    return norm
