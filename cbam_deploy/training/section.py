"""A training run, as a section of a page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from cbam_deploy.report.content import Figure, KeyFigure, Section
from cbam_deploy.report.plots import curves_plot
from cbam_deploy.report.units import duration, percent


def training_section(training: Mapping[str, Any]) -> Section:
    """Accuracy reached, time taken, and both over the epochs.

    Args:
        training: as `TrainResult.to_json` gives it.

    Raises:
        MissingCapability: matplotlib is not installed.
    """
    epochs = training["epochs"]
    return Section(
        title="Training",
        key_figures=_key_figures(training),
        figures=(
            _curves(epochs, "accuracy", "top-1 accuracy in %", 100.0),
            _curves(epochs, "loss", "cross-entropy", 1.0),
        ),
    )


def _key_figures(training: Mapping[str, Any]) -> tuple[KeyFigure, ...]:
    epochs = training["epochs"]
    best = next(epoch for epoch in epochs if epoch["number"] == training["best_epoch"])
    figures = [KeyFigure("Training time", duration(training["seconds"]), f"{len(epochs)} epochs")]
    if best["val_accuracy"] is not None:
        note = f"held-out pictures, after epoch {best['number']}, whose weights were kept"
        figures.insert(0, KeyFigure("Top-1 accuracy", percent(best["val_accuracy"]), note))
    return tuple(figures)


def _curves(epochs: list[Mapping[str, Any]], figure: str, unit: str, scale: float) -> Figure:
    curves = {}
    for key, label in (("val", "held-out pictures"), ("train", "training pictures, augmented")):
        values = [epoch[f"{key}_{figure}"] for epoch in epochs]
        if any(value is not None for value in values):
            curves[label] = [math.nan if value is None else scale * value for value in values]
    return Figure(
        curves_plot([epoch["number"] for epoch in epochs], curves, xlabel="epoch", unit=unit),
        f"{figure.capitalize()} over {len(epochs)} epochs.",
        f"{figure.capitalize()} by epoch, from {_ends(curves)}.",
    )


def _ends(curves: Mapping[str, list[float]]) -> str:
    return "; ".join(
        f"{values[0]:.3g} to {values[-1]:.3g} on {label}" for label, values in curves.items()
    )
