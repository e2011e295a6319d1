"""What a run did, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cbam_deploy.report.content import Section, Table
from cbam_deploy.report.result import Result
from cbam_deploy.report.units import duration

if TYPE_CHECKING:
    from cbam_deploy.errors import DeployError

State = Literal["done", "unchanged", "failed", "not reached", "would run", "may run"]


@dataclass(frozen=True)
class StepOutcome:
    """What became of one step.

    Attributes:
        name: of the step.
        line: the command as one would type it.
        state: ``done``, ``unchanged``, ``failed`` or ``not reached``; without running anything
            ``would run``, or ``may run`` where that depends on what an earlier step writes.
        reason: why it runs, or what failed.
        seconds: wall-clock time; None where it did not run.
        result: what the command returned; None where it did not run.
        summary: the result as Markdown, an earlier one's where it did not run.
    """

    name: str
    line: str
    state: State
    reason: str = ""
    seconds: float | None = None
    result: Any = None
    summary: str = field(default="", repr=False)


@dataclass(frozen=True)
class RunReport(Result):
    """What a run did.

    Attributes:
        path: of the run file, as given.
        steps: in its order.
        error: what ended the run early; None where nothing did.
    """

    title: ClassVar[str] = "Run"
    schema: ClassVar[str] = "cbam_deploy.run"

    path: str
    steps: tuple[StepOutcome, ...]
    error: DeployError | None = None

    @property
    def subtitle(self) -> str:
        """The run file."""
        return self.path

    @property
    def passed(self) -> bool:
        """Whether no step failed."""
        return self.error is None

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready data."""
        found = super().to_json()
        return {**found, "error": None if self.error is None else self.error.message}

    def sections(self) -> tuple[Section, ...]:
        """The steps, and the results of those that ran."""
        shown = [step for step in self.steps if step.result is not None]
        return (
            self._overview(),
            *(
                replace(section, title=f"{step.name}: {section.title}")
                for step in shown
                for section in step.result.sections()
            ),
        )

    def markdown(self, heading: str = "") -> str:
        """The steps, and the results of all of them, also of those that had not to run."""
        own = replace(self, steps=tuple(replace(step, result=None) for step in self.steps))
        overview = super(RunReport, own).markdown(heading)
        return "\n".join((overview, *(step.summary for step in self.steps if step.summary)))

    def _overview(self) -> Section:
        planned = any(step.state in ("would run", "may run") for step in self.steps)
        columns: dict[str, Sequence[str]] = {
            "step": [step.name for step in self.steps],
            "state": [step.state for step in self.steps],
            "time": ["" if s.seconds is None else duration(s.seconds) for s in self.steps],
            "because": [step.reason for step in self.steps],
        }
        columns = {heading: cells for heading, cells in columns.items() if any(cells)}
        table = Table(
            columns=tuple(columns),
            rows=tuple(zip(*columns.values(), strict=True)),
            text_columns=len(columns),
            emphasized=tuple(i for i, step in enumerate(self.steps) if step.state == "failed"),
        )
        passed = None if planned else self.passed
        return Section(title=f"Steps of {self.path}", passed=passed, tables=(table,))
