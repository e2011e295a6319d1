"""Accuracies over a set of pictures, as a section of a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cbam_deploy.report.content import KeyFigure, Section, Table
from cbam_deploy.report.units import digits, percent


def accuracy_section(accuracy: Mapping[str, Any]) -> Section:
    """Top-1 and top-5 of every network, and how far each differs from the first.

    Args:
        accuracy: as `AccuracyReport.to_json` gives it.
    """
    networks = accuracy["networks"]
    skipped = len(accuracy["skipped"])
    allowed = accuracy["max_drop"]
    ordered = [network["name"] for network in networks if network.get("classes") == "by order"]
    notes = []
    if skipped:
        notes.append(f"{skipped} pictures could not be read and were skipped.")
    if ordered:
        notes.append(
            f"Classes are matched to the folders by their order, not by name, for"
            f" {', '.join(ordered)}: no names are recorded there."
        )
    return Section(
        title="Accuracy",
        intro=f"{accuracy['images']:,} pictures of {accuracy['data']}.",
        passed=None if allowed is None else accuracy["passed"],
        key_figures=tuple(
            KeyFigure("Top-1 accuracy", percent(network["top1"]), _who(network))
            for network in networks[:3]
        ),
        tables=(_table(networks, allowed),),
        notes=tuple(notes),
    )


def _who(network: Mapping[str, Any]) -> str:
    return f"{network['name']} ({network['runtime']})"


def _table(networks: list[Mapping[str, Any]], allowed: float | None) -> Table:
    columns = ("network", "runtime", "top-1", "top-5", "difference", "disagreements", "images/s")
    rows = []
    for index, network in enumerate(networks):
        compared = (f"{0 - 100 * network['drop']:+.2f}", str(network["disagreements"]))
        rows.append(
            (
                network["name"],
                network["runtime"],
                percent(network["top1"]),
                percent(network["top5"]),
                *(compared if index else ("", "")),
                digits(network["images_per_second"]),
            )
        )
    return Table(
        columns=columns,
        rows=tuple(rows),
        caption="Difference: percentage points of top-1 against the first network. "
        "Disagreements: pictures for which it predicts another class than the first.",
        text_columns=2,
        emphasized=tuple(
            index
            for index, network in enumerate(networks)
            if allowed is not None and network["drop"] > allowed
        ),
    )
