"""Where networks look, as sections of a page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cbam_deploy.report.content import Figure, Section, Table
from cbam_deploy.report.html import render_page
from cbam_deploy.report.units import MISSING, digits

if TYPE_CHECKING:
    from cbam_deploy.explain.result import GradCamReport


def gradcam_page(path: str | Path, report: GradCamReport) -> None:
    """Write what `gradcam` found as one page.

    Raises:
        BadInput: `path` cannot be written.
    """
    subtitle = f"Pictures of {report.data}"
    sections = gradcam_sections(report)
    render_page("Where the network looks", sections, path=path, subtitle=subtitle)


def gradcam_sections(report: GradCamReport) -> list[Section]:
    """Grad-CAM of the networks and, where there are files, their attention."""
    found = report.to_json()
    sections = [_cam_section(found, report.svgs["gradcam"])]
    if report.artefacts:
        sections.append(_attention_section(found, report.svgs))
    return sections


def _cam_section(report: Mapping[str, Any], svg: str) -> Section:
    """The paper's figure with P, and the numbers behind it."""
    names = ", ".join(network["name"] for network in report["networks"])
    which = _which(report)
    layers = ", ".join(dict.fromkeys(network["layer"] for network in report["networks"]))
    return Section(
        title="Grad-CAM",
        intro=(
            f"Positions that speak for the {which} class, by the output of {layers}: from blue,"
            " where nothing does, to red, the most in that picture. P is the softmax of that class."
        ),
        figures=(
            Figure(
                svg,
                f"From above: pictures{', with their class' * (which == 'true')}; {names}.",
                f"Pictures with the Grad-CAM of {names}.",
            ),
        ),
        tables=(_answers(report, report["networks"]),),
        notes=(
            "Each map is on its own scale: colours tell where, not how much.",
            "Grad-CAM is no finer than the feature map it explains; between its positions the"
            " picture is interpolated.",
        ),
    )


def _attention_section(report: Mapping[str, Any], svgs: Mapping[str, str]) -> Section:
    artefacts = [entry["name"] for entry in report["artefacts"]]
    figures = tuple(
        Figure(
            svg,
            f"M_s of {name.removeprefix('attention-')}, all files on the scale of the first.",
            f"Pictures with the spatial attention of {name.removeprefix('attention-')}.",
        )
        for name, svg in svgs.items()
        if name != "gradcam"
    )
    tables = [_answers(report, report["artefacts"])]
    if report["agreements"]:
        tables.append(_agreements(report["agreements"], artefacts[0]))
    return Section(
        title="Attention of the deployed files",
        intro=(
            "The spatial attention M_s that each file itself computes inside its gates, in its own"
            " precision: whether conversion moved where the network looks."
        ),
        figures=figures,
        tables=tuple(tables),
        notes=("Shown is the last gate of each map size; the table has all of them.",),
    )


def _which(report: Mapping[str, Any]) -> str:
    return "true" if any(report["labels"]) else "predicted"


def _answers(report: Mapping[str, Any], rows: list[Mapping[str, Any]]) -> Table:
    return Table(
        columns=("", *(label or MISSING for label in report["labels"])),
        rows=tuple((row["name"], *map(_answer, row["answers"])) for row in rows),
        caption=f"P of the {_which(report)} class, picture by picture.",
    )


def _answer(answer: Mapping[str, Any]) -> str:
    shown = f"{answer['probability']:.3f}"
    return f"{shown} (says {answer['predicted']})" if answer["right"] is False else shown


def _agreements(agreements: list[Mapping[str, Any]], first: str) -> Table:
    rows = []
    for entry in agreements:
        known = entry["correlation"]
        rows.append(
            (
                entry["artefact"],
                entry["gate"],
                "x".join(map(str, entry["size"])),
                MISSING if known is None else f"{known:.4f}",
                digits(entry["max_abs"]),
            )
        )
    return Table(
        columns=("file", "gate", "map", "correlation", "largest difference"),
        rows=tuple(rows),
        caption=f"Against {first}, over all pictures and positions; maps lie between 0 and 1.",
        text_columns=2,
    )
