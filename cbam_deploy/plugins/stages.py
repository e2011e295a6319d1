"""The staged launches of each operator, and what passes between them.

Names are those of ``kernels/staged.cuh``; counts are what ``Gate`` of ``kernels/language.cuh``
derives too.
"""

from __future__ import annotations

from typing import Literal

from cbam_deploy.gates.operators import GateOperator, in_lower_case
from cbam_deploy.plugins.gate import Gate

Stage = Literal["fused", "channel_statistics", "channel_excitation", "spatial_statistics", "apply"]


def stages(operator: GateOperator) -> tuple[Stage, ...]:
    """The staged launches that compute `operator`, in order."""
    spec = operator.gate
    if spec.arrangement == "channel":
        return ("channel_statistics", "channel_excitation", "apply")
    if spec.arrangement == "spatial":
        return ("spatial_statistics", "apply")
    if spec.arrangement == "spatial-channel":
        return ("spatial_statistics", "channel_statistics", "channel_excitation", "apply")
    if spec.mixer == "linear":  # ``Gate::excites_apart``
        return ("channel_statistics", "channel_excitation", "spatial_statistics", "apply")
    return ("channel_statistics", "spatial_statistics", "apply")


def buffers(operator: GateOperator, stage: Stage) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of what the launch of a stage reads and of what it writes, in order."""
    spec = operator.gate
    convolution = ("pooled", "ws", "bs") if spec.has_spatial else ()
    excitation = ("partials", *in_lower_case(operator.channel_weights))
    if stage == "fused":
        return in_lower_case(operator.inputs), ("y",)
    if stage == "channel_statistics":
        return ("x", *(convolution if spec.arrangement == "spatial-channel" else ())), ("partials",)
    if stage == "channel_excitation":
        return excitation, ("channel_gates",)
    if stage == "spatial_statistics":
        described = ("wd",) if spec.spatial == "conv1x1" else ()
        if "channel_excitation" in stages(operator) or not spec.has_channel:
            gated = ("channel_gates",) if spec.arrangement == "channel-spatial" else ()
            return ("x", *gated, *described), ("pooled",)
        return ("x", *excitation, *described), ("channel_gates", "pooled")
    gates = ("channel_gates",) if spec.has_channel else ()
    return (*in_lower_case(operator.maps), *gates, *convolution), ("y",)


def workspace_shapes(gate: Gate, splits: int) -> dict[str, tuple[int, ...]]:
    """Shapes, but for the batch, of the buffers between the staged launches; float32."""
    written = {name for one in stages(gate.operator) for name in buffers(gate.operator, one)[1]}
    shapes = {
        "partials": (splits, gate.stored, pools(gate)),
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
