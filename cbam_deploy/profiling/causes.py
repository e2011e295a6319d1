"""Why a lower precision is no faster, from the figures of a profile."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cbam_deploy.benchmarking.statistics import paired_ratio
from cbam_deploy.profiling.layers import Kind, Layer
from cbam_deploy.profiling.result import NetworkProfile
from cbam_deploy.report.units import Estimate, interval

LEAST_SHARE = 0.05  # Of the network's time, for a cause to be named.
_LOWER = ("int8", "fp8", "fp16", "bf16")
_PLURALS: dict[Kind, str] = {
    "product": "convolutions and matrix products", "gate": "gates", "other": "other layers",
}  # fmt: skip


def findings(networks: Sequence[NetworkProfile]) -> tuple[str, ...]:
    """A sentence for each artefact of 8 or 16 bits that is not shown to be faster than FP32.

    Both are compared in the same runtime, round by round. "No faster" is: the whole 95% interval of
    their ratio is 1 or more; "not shown" is that 1 lies in it.
    """
    sentences = []
    for low in networks:
        full = next(
            (n for n in networks if n.runtime == low.runtime and n.precision == "fp32"), None
        )
        if low.precision not in _LOWER or full is None:
            continue
        ratio = paired_ratio(np.array(low.round_seconds), np.array(full.round_seconds), seed=0)
        if ratio.high >= 1:
            sentences.append(_sentence(low, full, ratio))
    return tuple(sentences)  # fmt: skip


def fallback_layers(network: NetworkProfile) -> list[Layer]:
    """Layers that the file puts in its precision and that run in another."""
    return [
        layer
        for layer in network.layers
        if layer.asked == network.precision
        and layer.precision not in ("", layer.asked)
        and layer.kind in _PLURALS
    ]


def _sentence(low: NetworkProfile, full: NetworkProfile, ratio: Estimate) -> str:
    name = low.precision.upper()
    verdict = "is no faster" if ratio.low >= 1 else "is not shown to be faster"
    opening = (
        f"{name} {verdict} than FP32 in {low.runtime}: {low.artefact} takes {ratio.value:.2f} "
        f"times as long as {full.artefact} ({interval(ratio)})."
    )
    causes = [(seconds, text) for seconds, text in _causes(low, full)
              if seconds >= LEAST_SHARE * low.layers_seconds]  # fmt: skip
    if not causes:
        return f"{opening} The layers do not say why: none of them falls back or converts for long."
    causes.sort(key=lambda cause: -cause[0])
    said = "; ".join(f"{text} ({seconds / low.layers_seconds:.0%})" for seconds, text in causes)
    return f"{opening} Where its time goes instead: {said}."


def _causes(low: NetworkProfile, full: NetworkProfile) -> list[tuple[float, str]]:
    """Seconds of each cause there may be, and what it is."""
    name, causes = low.precision.upper(), []
    fallen = fallback_layers(low)
    if fallen:
        kinds = [
            f"{count} {plural}"
            for kind, plural in _PLURALS.items()
            if (count := sum(layer.kind == kind for layer in fallen))
        ]
        ran = " or ".join(sorted({layer.precision.upper() for layer in fallen}))
        text = f"{', '.join(kinds)} that the file puts in {name} run in {ran}"
        causes.append((_seconds(fallen), text))
    left = [layer for layer in low.layers if layer.kind == "quantize"]
    if left:
        weights = sum(layer.of_weights for layer in left)
        of_weights = f", {weights} of them of weights, run after run" if weights else ""
        text = f"{len(left)} quantizations and dequantizations that were not absorbed{of_weights}"
        causes.append((_seconds(left), text))
    moved, before = ([each for each in network.layers if each.kind == "reorder"]
                     for network in (low, full))  # fmt: skip
    if moved:
        text = f"{len(moved)} reorders and casts, where {full.artefact} has {len(before)}"
        causes.append((_seconds(moved) - _seconds(before), text))
    return causes


def _seconds(layers: Sequence[Layer]) -> float:
    return sum(layer.seconds for layer in layers)
