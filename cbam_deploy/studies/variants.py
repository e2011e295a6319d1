"""The variants of the gate that a study compares: the paper's, or any others.

Source: Woo, Park, Lee, Kweon, "CBAM: Convolutional Block Attention Module", ECCV 2018, section 4.1
(tables 1 to 3). A variant that several studies have is trained once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cbam_deploy.errors import BadInput
from cbam_deploy.gates.description import CBAM, GATES, SE, GateSpec, parse_gate


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
OTHERS = "other gates"


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


def chosen_variants(texts: Sequence[str] | None) -> tuple[Variant, ...]:
    """The network without gates, and the variants that `texts` name or describe; None for all.

    A text is a name out of `VARIANTS`, or what `parse_gate` takes: a name out of `GATES`, or
    ``field=value,...``.

    Raises:
        BadInput: a text is none of these, or two texts mean the same gate.
    """
    if texts is None:
        return VARIANTS
    by_name = {variant.name: variant for variant in VARIANTS}
    others = [by_name.get(text) or _described(text) for text in texts]
    chosen = dict.fromkeys((by_name["plain"], *others))
    if len({variant.gate for variant in chosen}) < len(chosen):
        raise BadInput(f"variants {', '.join(texts)}: two are the same gate", "give each once")
    return tuple(chosen)


def _described(text: str) -> Variant:
    try:
        gate = parse_gate(text)
    except BadInput as error:
        known = ", ".join(dict.fromkeys((*(variant.name for variant in VARIANTS), *GATES)))
        raise BadInput(
            f"variant {error.message.removeprefix('gate ')}", f"one of {known}, or FIELD=VALUE,..."
        ) from error
    return Variant(re.sub(r"[^a-z0-9_+-]+", "-", text.lower()), text, OTHERS, gate)
