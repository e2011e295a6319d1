"""How published checkpoints name the tensors of their attention gates, and what these are here.

Outside the gates, the residual networks of the zoo bear torchvision's names, as do those of timm
and of every repository below. Inside a block (``layer1.0.``) each has names of its own; `NAMINGS`
is the table of them. What a naming leaves out is filled in such that it has no effect: biases are
zero, BatchNorm is the identity.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from cbam_deploy.errors import BadInput

# What has to be done to a tensor on the way: nothing; take the [h, C, 1, 1] of a 1x1 convolution
# as the [h, C] of a linear layer; or exchange the two planes that the spatial convolution sees,
# where the mean comes before the maximum.
Change = Literal["as is", "flatten", "exchange planes"]

OWN = "cbam-deploy"
PLAIN = "plain (torchvision, timm)"
# Matches the names of a gate's tensors in the networks of the zoo.
GATE = re.compile(r"(^|\.)gate\d?\.(channel|spatial)\.")
_BLOCK = re.compile(r"(layer\d+\.\d+)\.(.+)")
_BN_EPS = 1e-5
_BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Naming:
    """One way to name the tensors of a CBAM gate within its block.

    Attributes:
        name: for reports.
        source: where it comes from.
        rows: their name, ours below ``gate.``, and what to do to the tensor.
    """

    name: str
    source: str
    rows: tuple[tuple[str, str, Change], ...]


@dataclass(frozen=True)
class NamedState:
    """A state dict by the names of this package.

    Attributes:
        naming: name of the naming it came in.
        state_dict: tensors by our names; those that no table knows keep theirs.
        has_gates: whether any of them is of an attention gate.
    """

    naming: str
    state_dict: dict[str, Tensor]
    has_gates: bool


def _each(theirs: str, ours: str, parts: tuple[str, ...]) -> tuple[tuple[str, str, Change], ...]:
    return tuple((f"{theirs}.{part}", f"{ours}.{part}", "as is") for part in parts)


_LINEAR = ("weight", "bias")

NAMINGS = (
    # The planes are (max, mean), as here.
    Naming(
        "cbam.ChannelGate (the paper's authors)",
        "https://github.com/Jongchan/attention-module, MODELS/cbam.py",
        (
            *_each("cbam.ChannelGate.mlp.1", "channel.reduce", _LINEAR),
            *_each("cbam.ChannelGate.mlp.3", "channel.expand", _LINEAR),
            ("cbam.SpatialGate.spatial.conv.weight", "spatial.conv.weight", "as is"),
            *_each("cbam.SpatialGate.spatial.bn", "spatial.bn", _BN),
        ),
    ),
    # The planes are (mean, max); there is no BatchNorm, so its bias is the convolution's.
    Naming(
        "ca/sa (luuuyi/CBAM.PyTorch and its many copies)",
        "https://github.com/luuuyi/CBAM.PyTorch, model/resnet_cbam.py",
        (
            ("ca.fc.0.weight", "channel.reduce.weight", "flatten"),
            ("ca.fc.0.bias", "channel.reduce.bias", "as is"),
            ("ca.fc.2.weight", "channel.expand.weight", "flatten"),
            ("ca.fc.2.bias", "channel.expand.bias", "as is"),
            ("ca.fc1.weight", "channel.reduce.weight", "flatten"),
            ("ca.fc1.bias", "channel.reduce.bias", "as is"),
            ("ca.fc2.weight", "channel.expand.weight", "flatten"),
            ("ca.fc2.bias", "channel.expand.bias", "as is"),
            ("sa.conv1.weight", "spatial.conv.weight", "exchange planes"),
            ("sa.conv1.bias", "spatial.bn.bias", "as is"),
            ("sa.conv.weight", "spatial.conv.weight", "exchange planes"),
            ("sa.conv.bias", "spatial.bn.bias", "as is"),
        ),
    ),
    # The planes are (mean, max).
    Naming(
        "se.channel (timm, attn_layer='cbam')",
        "https://github.com/huggingface/pytorch-image-models, timm/layers/cbam.py",
        (
            ("se.channel.fc1.weight", "channel.reduce.weight", "flatten"),
            ("se.channel.fc1.bias", "channel.reduce.bias", "as is"),
            ("se.channel.fc2.weight", "channel.expand.weight", "flatten"),
            ("se.channel.fc2.bias", "channel.expand.bias", "as is"),
            ("se.spatial.conv.conv.weight", "spatial.conv.weight", "exchange planes"),
            *_each("se.spatial.conv.bn", "spatial.bn", _BN),
        ),
    ),
)


def own_names(state_dict: Mapping[str, Tensor], path: str | Path) -> NamedState:
    """Recognise how `state_dict` names its gates, and give its tensors the names used here.

    Args:
        state_dict: tensors by name, without a wrapper's prefix.
        path: the file they come from, for messages.

    Raises:
        BadInput: names of several namings occur, two names mean the same tensor, or the spatial
            convolution does not see two planes.
    """
    matching = [naming for naming in NAMINGS if _occurs(naming, state_dict)]
    if not matching:
        own = any(GATE.search(name) for name in state_dict)
        return NamedState(OWN if own else PLAIN, dict(state_dict), own)
    if len(matching) > 1:
        names = " and ".join(naming.name for naming in matching)
        raise BadInput(
            f"{path}: names gates in several ways: {names}", "save the weights of one network"
        )
    return NamedState(matching[0].name, _translated(matching[0], state_dict, path), True)


def _occurs(naming: Naming, state_dict: Mapping[str, Tensor]) -> bool:
    theirs = {row[0] for row in naming.rows}
    return any((found := _BLOCK.fullmatch(name)) and found[2] in theirs for name in state_dict)


def _translated(
    naming: Naming, state_dict: Mapping[str, Tensor], path: str | Path
) -> dict[str, Tensor]:
    table = {theirs: (ours, change) for theirs, ours, change in naming.rows}
    result: dict[str, Tensor] = {}
    blocks: set[str] = set()
    for name, tensor in state_dict.items():
        found = _BLOCK.fullmatch(name)
        ours = name
        if found and found[2] in table:
            inner, change = table[found[2]]
            blocks.add(found[1])
            ours = f"{found[1]}.gate.{inner}"
            tensor = _changed(tensor, change, f"{path}: {name}")
        if ours in result:
            raise BadInput(
                f"{path}: {name} is there twice, under another name too",
                "save the weights of one network",
            )
        result[ours] = tensor
    for block in sorted(blocks):
        _fill(result, f"{block}.gate.")
    return result


def _changed(tensor: Tensor, change: Change, where: str) -> Tensor:
    if change == "flatten" and tensor.ndim == 4:
        return tensor.flatten(1)
    if change == "exchange planes":
        if tensor.ndim != 4 or tensor.shape[1] != 2:
            raise BadInput(
                f"{where} is {list(tensor.shape)}: its gate does not see maximum and mean side by "
                "side",
                "such gates (timm's lightcbam is one) are not of the zoo: give the network as a "
                "factory",
            )
        return tensor.flip(1)
    return tensor


def _fill(state_dict: dict[str, Tensor], gate: str) -> None:
    """Add what has no effect: biases of zero, and a BatchNorm that changes nothing.

    BatchNorm divides by sqrt(variance + eps), so the variance that changes nothing is 1 - eps.
    """
    for layer in ("channel.reduce", "channel.expand"):
        weight = state_dict.get(f"{gate}{layer}.weight")
        if weight is not None:
            state_dict.setdefault(f"{gate}{layer}.bias", weight.new_zeros(weight.shape[0]))
    conv = state_dict.get(f"{gate}spatial.conv.weight")
    if conv is not None:
        one = torch.ones(1, dtype=conv.dtype)
        for part, value in (
            ("weight", one),
            ("bias", one * 0),
            ("running_mean", one * 0),
            ("running_var", one - _BN_EPS),
        ):
            state_dict.setdefault(f"{gate}spatial.bn.{part}", value)
