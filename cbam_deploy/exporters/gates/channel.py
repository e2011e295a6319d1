"""Read the channel part of a gate: pools, mixer, gate function.

    logits   act(W0·mean + b0) ── W1 ─┐             act(W0·mean + b0) ─┐
             act(W0·max + b0) ─── W1 ─┴ Add ── σ    act(W0·max + b0) ──┴ Add ── W1 ── σ
    gates    act(W0·mean + b0) ── W1 ── σ ─┐
             act(W0·max + b0) ─── W1 ── σ ─┴ Add
    pools    0.5·mean + 0.5·max ── act(W0·v + b0) ── W1 ── σ

One layer C -> C, or a convolution along the channels, stands where W0, act and W1 stand here. The
mixer that both branches share may be stored as equal copies. As W1 is linear, it may also come
after the sum of the branches; b1 then counts once, and each branch gets half of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from cbam_deploy.exporters.gates.activations import FUSED, find_activation, said_of
from cbam_deploy.exporters.gates.layers import Layer, dense_kernel, is_layer, read_layer
from cbam_deploy.exporters.gates.matching import (
    Matched,
    Refused,
    Weights,
    input_of,
    is_constant,
    is_op,
)
from cbam_deploy.exporters.gates.pools import Map, Pool, read_pools
from cbam_deploy.exporters.gates.sigmoid import read_gate_function
from cbam_deploy.gates.description import SE, Activation, ChannelPool, GateSpec, Join, Mixer

_MIXERS = "W1·act(W0·v + b0) + b1, W·v + b and a convolution along the channels"
_CHANNEL_POOLS: dict[frozenset[Pool], ChannelPool] = {
    frozenset({"mean"}): "avg",
    frozenset({"maximum"}): "max",
    frozenset({"mean", "maximum"}): "avg+max",
}


@dataclass(frozen=True)
class Part:
    """A part of a gate.

    Attributes:
        gate: the description, with this part alone.
        weights: by the names they have as inputs.
    """

    gate: GateSpec
    weights: dict[str, Weights]


@dataclass(frozen=True)
class _Branch:
    """A mixer and the pools that it sees."""

    mixer: Mixer
    activation: Activation
    weights: dict[str, Weights] = field(compare=False)
    pools: frozenset[Pool] = field(compare=False)


def read_channel(attention: ir.Value, x: Map, matched: Matched) -> Part:
    """Read the channel part whose attention is [N, C, 1, 1] or a view of it.

    Raises:
        Refused: it is none of those above.
    """
    gates = _terms(attention, matched)
    read = [read_gate_function(term, matched) for term in gates]
    if len({function for function, _ in read}) > 1:
        raise matched.refused("its two branches have different gate functions")
    terms = [logits for _, logits in read]
    if len(terms) == 1:
        terms = _terms(terms[0], matched)
    branches = [branch for term in terms for branch in _branches(term, x, matched)]
    first, last = branches[0], branches[-1]
    if len(branches) > 2 or (len(gates) == 2 and len(branches) != 2):
        raise matched.refused(
            f"it adds {len(branches)} branches; fused are two at most, of mean and maximum"
        )
    if len(branches) == 2:
        if first.pools == last.pools or len(first.pools) > 1:
            what = " and ".join(sorted(first.pools))
            raise matched.refused(f"both of its branches pool the {what}")
        if first != last or not all(
            np.array_equal(array, last.weights[name]) for name, array in first.weights.items()
        ):
            raise matched.refused("the branches of mean and maximum have different weights")
    pools = first.pools | last.pools
    join: Join = "gates" if len(gates) == 2 else "pools" if len(first.pools) == 2 else "logits"
    gate = replace(
        SE,
        channel_pool=_CHANNEL_POOLS[pools],
        mixer=first.mixer,
        activation=first.activation,
        join=join,
        channel_gate=read[0][0],
    )
    return Part(gate, first.weights)


def _terms(value: ir.Value, matched: Matched) -> list[ir.Value]:
    """The terms of a sum of computed values; any other value alone."""
    inside = matched.behind_views(value)
    add = inside.producer()
    if add is None or not is_op(inside, "Add") or any(map(is_constant, add.inputs)):
        return [inside]
    matched.note(add)
    return [term for index in (0, 1) for term in _terms(input_of(add, index), matched)]


def _branches(logits: ir.Value, x: Map, matched: Matched) -> list[_Branch]:
    """What the logits of one last layer are made of."""
    last = read_layer(logits, matched)
    if last is None:
        raise matched.refused(_behind_last_layer(matched.behind_views(logits)))
    if last.w.ndim > 2:
        return [_along_channels(last, x, matched)]
    sources = _terms(last.source, matched)
    activated = [find_activation(source, scaled=True) for source in sources]
    hidden = [one for one in activated if one is not None]
    if not hidden:
        return [_one_layer(last, x, matched)]
    if len(hidden) < len(activated):
        raise matched.refused("of two branches, only one has an activation between its layers")
    if len({one.factor for one in hidden}) > 1:
        raise matched.refused("its two branches are scaled by different factors")
    w1 = last.w * np.float32(hidden[0].factor)
    branches = []
    b1 = last.b / np.float32(len(hidden))
    for one in hidden:
        matched.note(*one.nodes)
        layer = read_layer(one.argument, matched)
        if layer is None or not layer.is_linear:
            what = said_of(matched.behind_views(one.argument))
            raise matched.refused(f"its first layer is {what}, not W0·v + b0")
        pools, scale = read_pools(layer.source, x, x.position_axes, matched)
        w0 = layer.w * np.float32(scale) if scale != 1 else layer.w
        if last.w.shape != w0.shape[::-1]:
            shapes = f"{list(w0.shape)} and {list(last.w.shape)}"
            raise matched.refused(f"its layers are {shapes}, not [h, C] and [C, h]")
        weights = {"W0": w0, "B0": layer.b, "W1": w1, "B1": b1}
        branches.append(_Branch("mlp", one.activation, weights, pools))
    return branches


def _one_layer(layer: Layer, x: Map, matched: Matched) -> _Branch:
    """Read W·v + b."""
    source = matched.behind_views(layer.source)
    try:
        pools, scale = read_pools(source, x, x.position_axes, matched)
    except Refused as refusal:
        if is_layer(source):
            raise matched.refused("its two layers have no activation between them") from refusal
        inner = find_inner_layer(source)
        if inner:
            raise matched.refused(
                f"{said_of(source)} lies between its layers; fused are {FUSED}"
            ) from refusal
        raise
    w = layer.w * np.float32(scale) if scale != 1 else layer.w
    if w.shape[0] != w.shape[1]:
        raise matched.refused(f"its one layer is {list(w.shape)}, not [C, C]")
    return _Branch("linear", "relu", {"W1": w, "B1": layer.b}, pools)


def _along_channels(layer: Layer, x: Map, matched: Matched) -> _Branch:
    """Read a convolution along the channels, also one of two axes over a row or a column."""
    if layer.w.shape[:2] != (1, 1):
        raise matched.refused(f"it has a convolution of shape {list(layer.w.shape)}, not a 1x1 one")
    w = dense_kernel(layer, matched)
    if w.ndim == 4:
        dims = matched.shapes.dims(layer.source)
        a_row = w.shape[2] == 1 or (w.shape[3] != 1 and dims is not None and dims[2] == 1)
        w = w[:, :, w.shape[2] // 2, :] if a_row else w[:, :, :, w.shape[3] // 2]
    pools, scale = read_pools(layer.source, x, x.position_axes, matched)
    w = np.ascontiguousarray(w * np.float32(scale) if scale != 1 else w)
    return _Branch("conv", "relu", {"WC": w, "BC": layer.b}, pools)


def find_inner_layer(value: ir.Value) -> bool:
    """Whether a layer lies a few nodes behind `value`."""
    ahead = [value]
    for _ in range(12):
        if not ahead:
            break
        top = ahead.pop(0)
        if is_layer(top):
            return True
        node = top.producer()
        ahead += [one for one in node.inputs if one is not None] if node is not None else []
    return False


def _behind_last_layer(value: ir.Value) -> str:
    """A sentence of what stands between the last layer and the gate function."""
    node = value.producer()
    activated = find_activation(value)
    what = said_of(value)
    if activated is not None or (node is not None and find_inner_layer(value)):
        return f"{what} lies between its last layer and σ: σ({what}(W·v + b)); fused are {_MIXERS}"
    return f"σ is taken of {what}; fused are {_MIXERS}"
