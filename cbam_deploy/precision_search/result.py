"""What `search` finds, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from cbam_deploy.exporters.conversion_result import ConvertResult
from cbam_deploy.exporters.int8.budget import within
from cbam_deploy.exporters.mixed_precision import QUANTIZED, Choice
from cbam_deploy.exporters.precision_groups import Group
from cbam_deploy.precision_search.trials import Trial
from cbam_deploy.report.result import Result
from cbam_deploy.report.units import MetricUnit

if TYPE_CHECKING:
    from cbam_deploy.report.content import Section


@dataclass(frozen=True)
class Sensitivity:
    """What one group does to the network when it takes a step and nothing else does.

    Attributes:
        step: such as ``int8``.
        group: path of the PyTorch module, scope in the nodes' names, or name of the first node.
        gate: whether it is a fused attention gate.
        nodes: names of the nodes that take the step.
        drop: how far the metric falls, on few pictures.
        noise: of the outputs, 0 to 1 (`evaluation`).
    """

    step: str
    group: str
    gate: bool
    nodes: tuple[str, ...]
    drop: float
    noise: float


@dataclass(frozen=True)
class KeptGroup:
    """Nodes of one group that are in a higher precision than they could be in.

    Attributes:
        group: as of `Sensitivity`.
        gate: whether it is a fused attention gate.
        precision: what the nodes compute in.
        steps: the precisions that they do not take, though they could.
        nodes: their names.
        sensitivities: what the group did by itself, at those of the steps where it was measured.
        reason: what the range check of FP16 or BF16 says of them, without a full stop; empty where
            it is silent.
    """

    group: str
    gate: bool
    precision: str
    steps: tuple[str, ...]
    nodes: tuple[str, ...]
    sensitivities: tuple[Sensitivity, ...]
    reason: str


@dataclass(frozen=True)
class Candidate:
    """A whole choice that was tried.

    Attributes:
        choice: which nodes do not take which step.
        trial: what it came to.
        holds: whether the metric stays within what is allowed.
    """

    choice: Choice
    trial: Trial
    holds: bool


@dataclass(frozen=True)
class SearchResult(Result):
    """The result of `search`.

    Attributes:
        conversion: the file that was written.
        data: SOURCE that trials were judged on.
        metric: what by: of `validation.metrics`, or ``fidelity``.
        unit: how its values are written.
        images: number of pictures.
        baseline: the original's value.
        max_drop: how far it may fall.
        value: the file's.
        noise: of the file's outputs (`evaluation`).
        choice: of the file.
        kept: groups in a higher precision, in the graph's order.
        sensitivities: of every group, where groups were measured; the most sensitive first.
        candidates: all whole choices that were tried.
        runtime: that they were timed in; None where they were not.
        measured: number of judgements and timings made.
        remembered: number of those that an earlier search had made.
        complete: whether the search ended before its time limit.
        seconds: duration of it all.
        environment: the machine and the versions (`machine.environment`).
        notes: what a reader must know.
    """

    title: ClassVar[str] = "Precision search"
    schema: ClassVar[str] = "cbam_deploy.search"

    conversion: ConvertResult
    data: str
    metric: str
    unit: MetricUnit
    images: int
    baseline: float
    max_drop: float
    value: float
    noise: float
    choice: Choice
    kept: tuple[KeptGroup, ...]
    sensitivities: tuple[Sensitivity, ...]
    candidates: tuple[Candidate, ...]
    runtime: str | None
    measured: int
    remembered: int
    complete: bool
    seconds: float
    environment: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def subtitle(self) -> str:
        """The file."""
        return str(self.conversion.path)

    @property
    def passed(self) -> bool:
        """Whether the metric holds."""
        return within(self.baseline, self.value, self.max_drop)

    def failure(self) -> tuple[str, str]:
        """What to tell a person when not even a file without lower precision holds."""
        return (
            f"{self.conversion.path}: {self.unit.label} is {self.unit.text(self.value)}, more than"
            f" {self.unit.points(self.max_drop)} below the original's"
            f" {self.unit.text(self.baseline)}, with every operation in a higher precision",
            "leave --io-dtype fp32, or allow a larger --max-drop",
        )

    @property
    def undominated(self) -> tuple[Candidate, ...]:
        """The choices that none beats in both metric and time, the fastest first.

        Where nothing was timed, fewer operations in higher precision count as faster.
        """
        found: list[Candidate] = []
        for one in sorted(self.candidates, key=lambda one: (cost(one), -one.trial.value)):
            if not found or one.trial.value > found[-1].trial.value:
                found.append(one)
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready data: every field, and the choices that none beats."""
        undominated = self.undominated
        data = super().to_json()
        for one, entry in zip(self.candidates, data["candidates"], strict=True):
            entry["undominated"] = one in undominated
        return data

    def sections(self) -> tuple[Section, ...]:
        """The file, what is kept and why, how sensitive groups are, and the choices."""
        from cbam_deploy.precision_search.section import search_sections

        return search_sections(self)


def cost(candidate: Candidate) -> float:
    """Time relative to the original, or where that was not measured, operations kept."""
    relative = candidate.trial.relative
    return float(candidate.choice.operations) if relative is None else relative.value


def kept_groups(
    groups: Sequence[Group],
    candidates: Mapping[str, Sequence[str]],
    types: Mapping[str, str],
    choice: Choice,
    sensitivities: Sequence[Sensitivity],
    conversion: ConvertResult,
) -> tuple[KeptGroup, ...]:
    """What of each group is in a higher precision than it could be in.

    Args:
        groups: of the graph.
        candidates: names of the nodes that can take a step, by step, from FP32 down.
        types: what floats nodes give in the file, by their names.
        choice: of the file.
        sensitivities: as measured.
        conversion: the file.
    """
    ruled = {one.node: one.reason for one in conversion.kept_fp32 if one.node not in choice.fp32}
    measured = {(one.step, one.group, one.gate): one for one in sensitivities}
    able = {step: frozenset(nodes) for step, nodes in candidates.items()}
    found: dict[tuple[Group, str, tuple[str, ...]], list[str]] = {}
    for group in groups:
        for node in group.nodes:
            can = [step for step, nodes in able.items() if node in nodes]
            takes = [
                step
                for step in can
                if node not in choice.above(step) and (step in QUANTIZED or node not in ruled)
            ]
            if takes[-1:] != can[-1:]:
                refused = tuple(step for step in can if step not in takes)
                found.setdefault((group, types[node], refused), []).append(node)
    return tuple(
        KeptGroup(
            group=group.name,
            gate=group.gate,
            precision=precision,
            steps=steps,
            nodes=tuple(nodes),
            sensitivities=tuple(
                measured[step, group.name, group.gate]
                for step in steps
                if (step, group.name, group.gate) in measured
            ),
            reason=next((ruled[node] for node in nodes if node in ruled), ""),
        )
        for (group, precision, steps), nodes in found.items()
    )
