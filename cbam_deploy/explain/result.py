"""What `gradcam` found, and where it was written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from cbam_deploy.report.result import Result

if TYPE_CHECKING:
    from cbam_deploy.report.content import Section


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
class GradCamReport(Result):
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

    title: ClassVar[str] = "Where the network looks"
    schema: ClassVar[str] = "cbam_deploy.gradcam"

    page: str
    figures: tuple[str, ...]
    data: str
    labels: tuple[str, ...]
    networks: tuple[Explained, ...]
    artefacts: tuple[Explained, ...]
    agreements: tuple[Agreement, ...]
    svgs: dict[str, str] = field(repr=False)

    @property
    def subtitle(self) -> str:
        """The pictures."""
        return f"Pictures of {self.data}"

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready data."""
        found = super().to_json()
        del found["svgs"]
        return found

    def sections(self) -> tuple[Section, ...]:
        """Grad-CAM of the networks and, where there are files, their attention."""
        from cbam_deploy.explain.section import gradcam_sections

        return gradcam_sections(self)
