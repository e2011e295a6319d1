"""The staged launches of each operator, and what passes between them.

Names are those of ``kernels/staged.cuh``; counts are what ``Gate`` of ``kernels/language.cuh``
derives too.
"""

from __future__ import annotations

from typing import Literal

from cbam_deploy.gates.operators import GateOperator, in_lower_case
from cbam_deploy.plugins.gate import Gate

Stage = Literal["fused", "channel_statistics", "channel_excitation", "spatial_statistics", "apply"]


def stages(operator: GateOperator, *, first_layer: bool = False) -> tuple[Stage, ...]:
    """The staged launches that compute `operator`, in order.

    Args:
        operator: what is computed.
        first_layer: whether the launch of the channels' statistics goes on to the first layer of
            the MLP; one of its own then computes the channel gate.
    """
    spec = operator.gate
    if spec.arrangement == "channel":
        return ("channel_statistics", "channel_excitation", "apply")
    if spec.arrangement == "spatial":
        return ("spatial_statistics", "apply")
    if spec.arrangement == "spatial-channel":
        return ("spatial_statistics", "channel_statistics", "channel_excitation", "apply")
    if first_layer or spec.mixer == "linear":  # C^2 weights are too many for every block
        return ("channel_statistics", "channel_excitation", "spatial_statistics", "apply")
    return ("channel_statistics", "spatial_statistics", "apply")


def buffers(
    operator: GateOperator, stage: Stage, *, first_layer: bool = False
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of what the launch of a stage reads and of what it writes, in order."""
    spec = operator.gate
    convolution = ("pooled", "ws", "bs") if spec.has_spatial else ()
    weights = in_lower_case(operator.channel_weights)
    excitation = ("partials", *(name for name in weights if not first_layer or name != "w0"))
    if stage == "fused":
        return in_lower_case(operator.inputs), ("y",)
    if stage == "channel_statistics":
        before = convolution if spec.arrangement == "spatial-channel" else ()
        return ("x", *before, *(("w0",) if first_layer else ())), ("partials",)
    if stage == "channel_excitation":
        return excitation, ("channel_gates",)
    if stage == "spatial_statistics":
        described = ("wd",) if spec.spatial == "conv1x1" else ()
        apart = "channel_excitation" in stages(operator, first_layer=first_layer)
        if apart or not spec.has_channel:
            gated = ("channel_gates",) if spec.arrangement == "channel-spatial" else ()
            return ("x", *gated, *described), ("pooled",)
        return ("x", *excitation, *described), ("channel_gates", "pooled")
    gates = ("channel_gates",) if spec.has_channel else ()
    return (*in_lower_case(operator.maps), *gates, *convolution), ("y",)


def workspace_shapes(
    gate: Gate, splits: int, *, first_layer: bool = False
) -> dict[str, tuple[int, ...]]:
    """Shapes, but for the batch, of the buffers between the staged launches; float32."""
    written = {name for one in stages(gate.operator) for name in buffers(gate.operator, one)[1]}
    shapes = {
        "partials": (
            (splits, gate.hidden, branches(gate))
            if first_layer
            else (splits, gate.stored, pools(gate))
        ),
        "channel_gates": (gate.stored,),
        "pooled": (gate.height, gate.width, described(gate)),
    }
    return {name: shape for name, shape in shapes.items() if name in written}


def pools(gate: Gate) -> int:
    """Statistics of each channel: sum, maximum, or both."""
    return 2 if gate.operator.gate.channel_pool == "avg+max" else 1


def branches(gate: Gate) -> int:
    """Statistics that go through the first layer side by side."""
    return 1 if gate.operator.gate.join == "pools" else pools(gate)


def logits(gate: Gate) -> int:
    """Logits of each channel, which have a gate each."""
    return pools(gate) if gate.operator.gate.join == "gates" else 1


def described(gate: Gate) -> int:
    """Numbers in the descriptor of a position."""
    return 2 if gate.operator.gate.spatial == "pool" else 1
