"""Where networks look, as content."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from cbam_deploy.explain.result import Agreement, Explained, GradCamReport
from cbam_deploy.report.content import Figure, Section, Table
from cbam_deploy.report.units import MISSING, digits


def gradcam_sections(report: GradCamReport) -> tuple[Section, ...]:
    """Grad-CAM of the networks and, where there are files, their attention."""
    attention = (_attention_section(report),) if report.artefacts else ()
    return (_cam_section(report), *attention)


def _cam_section(report: GradCamReport) -> Section:
    """The paper's figure with P, and the numbers behind it."""
    names = ", ".join(network.name for network in report.networks)
    which = _which(report)
    layers = ", ".join(dict.fromkeys(network.layer for network in report.networks))
    return Section(
        title="Grad-CAM",
        intro=(
            f"Positions that speak for the {which} class, by the output of {layers}: from blue,"
            " where nothing does, to red, the most in that picture. P is the softmax of that class."
        ),
        figures=(
            Figure(
                partial(report.svgs.__getitem__, "gradcam"),
                f"From above: pictures{', with their class' * (which == 'true')}; {names}.",
                f"Pictures with the Grad-CAM of {names}.",
            ),
        ),
        tables=(_answers(report, report.networks),),
        notes=(
            "Each map is on its own scale: colours tell where, not how much.",
            "Grad-CAM is no finer than the feature map it explains; between its positions the"
            " picture is interpolated.",
        ),
    )


def _attention_section(report: GradCamReport) -> Section:
    figures = tuple(
        Figure(
            partial(report.svgs.__getitem__, name),
            f"M_s of {name.removeprefix('attention-')}, all files on the scale of the first.",
            f"Pictures with the spatial attention of {name.removeprefix('attention-')}.",
        )
        for name in report.svgs
        if name != "gradcam"
    )
    tables = [_answers(report, report.artefacts)]
    if report.agreements:
        tables.append(_agreements(report.agreements, report.artefacts[0].name))
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


def _which(report: GradCamReport) -> str:
    return "true" if any(report.labels) else "predicted"


def _answers(report: GradCamReport, explained: Sequence[Explained]) -> Table:
    answers = [
        (entry.name, str(number), label or MISSING, answer)
        for entry in explained
        for number, (label, answer) in enumerate(zip(report.labels, entry.answers, strict=True), 1)
    ]
    return Table(
        columns=("by", "picture", "class", "predicted", "P"),
        rows=tuple((*who, said.predicted, f"{said.probability:.3f}") for *who, said in answers),
        caption=f"P of the {_which(report)} class, picture by picture.",
        text_columns=4,
    )


def _agreements(agreements: Sequence[Agreement], first: str) -> Table:
    return Table(
        columns=("file", "gate", "map", "correlation", "largest difference"),
        rows=tuple(
            (
                entry.artefact,
                entry.gate,
                "x".join(map(str, entry.size)),
                MISSING if entry.correlation is None else f"{entry.correlation:.4f}",
                digits(entry.max_abs),
            )
            for entry in agreements
        ),
        caption=f"Against {first}, over all pictures and positions; maps lie between 0 and 1.",
        text_columns=2,
        spare=("map",),
    )
