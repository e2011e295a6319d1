"""What `gradcam` found, and where it was written."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cbam_deploy.report.tables import Group

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Answer:
    """What a network makes of one picture.

    Attributes:
        probability: P, the softmax of the logits at the true class; at the predicted one where the
            picture has no label.
        predicted: name of the class with the largest logit.
        right: whether that is the true class; None without a label.
    """

    probability: float
    predicted: str
    right: bool | None


@dataclass(frozen=True)
class Explained:
    """One network or file and its answers, in the order of the pictures.

    Attributes:
        name: model and attention, or the file.
        layer: the module whose output Grad-CAM explains; empty for a file.
        answers: for each picture.
    """

    name: str
    layer: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Agreement:
    """Spatial attention of one gate in one file against the same gate in the first file.

    Attributes:
        artefact: the file.
        gate: name of the node.
        size: height and width of the map.
        correlation: Pearson's over all pictures and positions; None where a map is constant.
        max_abs: largest difference; maps lie between 0 and 1.
    """

    artefact: str
    gate: str
    size: tuple[int, int]
    correlation: float | None
    max_abs: float


@dataclass(frozen=True)
class GradCamReport:
    """What was explained.

    Attributes:
        page: the page with everything in it.
        figures: the same pictures as PNG files.
        data: SOURCE.
        labels: true class of each picture, empty texts without labels.
        networks: by Grad-CAM.
        artefacts: by the attention of their gates; the first is what the others are compared with.
        agreements: of each further artefact, gate by gate.
        svgs: the figures by name, as `report.picture_grid` draws them; not in the JSON.
    """

    page: str
    figures: tuple[str, ...]
    data: str
    labels: tuple[str, ...]
    networks: tuple[Explained, ...]
    artefacts: tuple[Explained, ...]
    agreements: tuple[Agreement, ...]
    svgs: dict[str, str] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready data."""
        found = asdict(self)
        del found["svgs"]
        return {"schema": "cbam_deploy.gradcam", "schema_version": SCHEMA_VERSION, **found}

    def __rich__(self) -> Group:
        from cbam_deploy.report.tables import Group, Table

        which = "true" if any(self.labels) else "predicted"
        title = f"P of the {which} class"
        answers = Table(box=None, pad_edge=False, title=title, title_justify="left")
        answers.add_column("picture")
        for label in self.labels:
            answers.add_column(label, justify="right")
        for row in (*self.networks, *self.artefacts):
            shown = (_shown(answer) for answer in row.answers)
            answers.add_row(row.name, *shown)
        parts: list[Any] = [answers]
        for artefact in self.artefacts[1:]:
            worst = self.worst(artefact.name)
            parts.append(f"least agreement of {artefact.name}: {_agreement(worst)}")
        return Group(*parts, f"open {self.page}")

    def worst(self, artefact: str) -> Agreement:
        """The gate of `artefact` whose attention correlates least with the first file's."""
        own = [entry for entry in self.agreements if entry.artefact == artefact]
        return min(own, key=lambda entry: 1 if entry.correlation is None else entry.correlation)


def _shown(answer: Answer) -> str:
    mark = "" if answer.right in (True, None) else f" ({answer.predicted})"
    return f"{answer.probability:.3f}{mark}"


def _agreement(entry: Agreement) -> str:
    known = "constant" if entry.correlation is None else f"correlation {entry.correlation:.4f}"
    return f"{entry.gate}, {known}, largest difference {entry.max_abs:.3f}"
