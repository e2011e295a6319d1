"""The variants of the gate that the paper compares.

Source: Woo, Park, Lee, Kweon, "CBAM: Convolutional Block Attention Module", ECCV 2018, section 4.1
(tables 1 to 3). A variant that several studies have is trained once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cbam_deploy.gates.description import CBAM, SE, GateSpec


@dataclass(frozen=True)
class Variant:
    """One row of the study.

    Attributes:
        name: of its files.
        label: in words.
        study: the table it belongs to.
        gate: None for a network without gates.
    """

    name: str
    label: str
    study: str
    gate: GateSpec | None

    def options(self) -> dict[str, Any]:
        """As arguments of `train`, `export_onnx` and `complexity`."""
        if self.gate is None:
            return {"attention": "none"}
        return {"attention": "se" if self.gate == SE else "cbam", "gate": self.gate}


BASELINE, CHANNEL, SPATIAL, ARRANGEMENT = (
    "baseline",
    "channel pooling",
    "spatial descriptor",
    "arrangement",
)


def _channel(pool: Any) -> GateSpec:
    return GateSpec(channel_pool=pool, spatial="none", arrangement="channel")


VARIANTS = (
    Variant("plain", "no attention", BASELINE, None),
    Variant("se", "channel: avg (SE)", CHANNEL, SE),
    Variant("max", "channel: max", CHANNEL, _channel("max")),
    Variant("avg-max", "channel: avg+max", CHANNEL, _channel("avg+max")),
    Variant("pool-3", "avg+max, then pool, 3x3", SPATIAL, GateSpec(kernel_size=3)),
    Variant("cbam", "avg+max, then pool, 7x7 (CBAM)", SPATIAL, CBAM),
    Variant(
        "conv-3",
        "avg+max, then 1x1 convolution, 3x3",
        SPATIAL,
        GateSpec(spatial="conv1x1", kernel_size=3),
    ),
    Variant("conv-7", "avg+max, then 1x1 convolution, 7x7", SPATIAL, GateSpec(spatial="conv1x1")),
    Variant(
        "spatial-first",
        "spatial, then channel",
        ARRANGEMENT,
        GateSpec(arrangement="spatial-channel"),
    ),
    Variant("parallel", "both in parallel", ARRANGEMENT, GateSpec(arrangement="parallel")),
)
