"""What `bench` finds, as data: written to JSON, and read back to compare with a later run."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cbam_deploy.command_files import check_regular
from cbam_deploy.errors import BadInput
from cbam_deploy.json_data import parse, read
from cbam_deploy.report.result import Result
from cbam_deploy.report.units import Estimate

if TYPE_CHECKING:
    from cbam_deploy.report.content import Section


@dataclass(frozen=True)
class Subject:
    """What was measured, and what identifies it from one run to the next.

    Attributes:
        artefact: file name, or the path as given where two files share a name; ``pytorch`` for the
            PyTorch model.
        runtime: runtime and device, such as ``onnxruntime-cpu``.
        batch: images per run.
    """

    artefact: str
    runtime: str
    batch: int

    @property
    def key(self) -> tuple[str, str, int]:
        """Artefact, runtime and batch, to match entries by."""
        return (self.artefact, self.runtime, self.batch)

    @property
    def label(self) -> str:
        """The key in words."""
        return f"{self.artefact} ({self.runtime}) at batch {self.batch}"


@dataclass(frozen=True)
class Entry(Subject):
    """The figures of one artefact in one runtime at one batch size.

    Attributes:
        sha256: hash of the artefact's file, None for a PyTorch model.
        runs: number of timed runs.
        round_seconds: median duration of a run in each round; entries of the same batch size were
            measured side by side in the same rounds.
        median_seconds: of all runs; `p90_seconds`, `p95_seconds`, `p99_seconds` likewise.
        images_per_second: images done over the time they took, with its confidence interval.
        relative: duration over that of the baseline in the same rounds, None without a baseline.
        peak_memory_bytes: peak memory while running, None where it cannot be told.
        peak_memory_of: ``device`` for the GPU's memory as its runtime counts it; ``process`` for
            the growth of the resident memory of a process that loads and runs nothing else.
        settled: whether durations had settled when measuring began.
    """

    sha256: str | None
    runs: int
    round_seconds: tuple[float, ...]
    median_seconds: float
    p90_seconds: float
    p95_seconds: float
    p99_seconds: float
    images_per_second: Estimate
    relative: Estimate | None = None
    peak_memory_bytes: int | None = None
    peak_memory_of: Literal["device", "process"] | None = None
    settled: bool = True


@dataclass(frozen=True)
class Verdict(Subject):
    """How the duration of one entry compares: a ratio above 1 is slower; `held` if allowed."""

    ratio: Estimate
    held: bool


@dataclass(frozen=True)
class Comparison:
    """The verdicts on all entries that could be compared.

    Attributes:
        with_what: what the entries were compared with, in words.
        max_slowdown: allowed slowdown as a fraction.
        verdicts: one per entry.
        notes: what a reader must know to trust the verdicts, such as entries left out.
    """

    with_what: str
    max_slowdown: float
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...] = ()

    def outcome(self, verdict: Verdict) -> str:
        """A verdict in words: ``held``, ``slower``, or ``in doubt``, which passes too.

        In doubt is what the bound lies within the interval of: more rounds (a longer measurement)
        or a quieter machine would tell.
        """
        if not verdict.held:
            return "slower"
        return "held" if verdict.ratio.high <= 1 + self.max_slowdown else "in doubt"


@dataclass(frozen=True)
class BenchReport(Result):
    """The result of `bench`.

    Attributes:
        entries: in the order of artefacts as given, then of batch sizes.
        settings: the options that shape the figures, and what the inputs were.
        environment: the machine and the versions (`machine.environment`).
        clocks_before: processor clocks before the first round (`machine.clocks`).
        clocks_after: the same after the last round.
        relative_to: name of the baseline artefact, in its first runtime; None without one.
        comparison: None when nothing was to be compared.
        notes: what a reader must know to trust the figures.
    """

    title: ClassVar[str] = "Benchmark"
    schema: ClassVar[str] = "cbam_deploy.bench"

    entries: tuple[Entry, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    clocks_before: dict[str, Any] = field(default_factory=dict)
    clocks_after: dict[str, Any] = field(default_factory=dict)
    relative_to: str | None = None
    comparison: Comparison | None = None
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """False when an entry is slower than allowed, beyond doubt."""
        return self.comparison is None or all(v.held for v in self.comparison.verdicts)

    @property
    def judged_by_baseline(self) -> bool:
        """Whether the comparison is the one with the baseline of the same run."""
        return self.comparison is not None and self.comparison.with_what == self.relative_to

    def failure(self) -> tuple[str, str]:
        """Message and hint for a report that did not pass."""
        assert self.comparison is not None
        slow = [verdict for verdict in self.comparison.verdicts if not verdict.held]
        worst = max(slow, key=lambda verdict: verdict.ratio.low)
        others = f", and {len(slow) - 1} more" if len(slow) > 1 else ""
        allowed = 1 + self.comparison.max_slowdown
        return (
            f"{worst.label} against {self.comparison.with_what}: takes "
            f"{worst.ratio.value:.3f} times as long (95% interval {worst.ratio.low:.3f} to "
            f"{worst.ratio.high:.3f}), where {allowed:.3f} is allowed{others}",
            "find what made it slower, or raise --max-slowdown",
        )

    def baseline_of(self, entry: Entry) -> Entry | None:
        """The baseline's entry at the batch size of `entry`; None without one."""
        same = (e for e in self.entries if e.artefact == self.relative_to)
        return next((e for e in same if e.batch == entry.batch), None)

    @property
    def baseline_label(self) -> str:
        """The baseline, with its runtime where it was measured in several."""
        runtimes = [e.runtime for e in self.entries if e.artefact == self.relative_to]
        several = len(set(runtimes)) > 1
        return f"{self.relative_to} ({runtimes[0]})" if several else str(self.relative_to)

    @property
    def subtitle(self) -> str:
        """The artefacts."""
        return ", ".join(dict.fromkeys(entry.artefact for entry in self.entries))

    def sections(self) -> tuple[Section, ...]:
        """Latency and throughput, and the machine."""
        from cbam_deploy.benchmarking.section import bench_sections

        return bench_sections(self)


def read_report(path: str | Path) -> BenchReport:
    """Read a report that `bench` wrote; its comparison, if any, is left out.

    Raises:
        BadInput: `path` cannot be read, or is no such report.
    """
    hint = "give a JSON file that 'cbam-deploy bench --report' wrote"
    check_regular(path)
    try:
        data = parse(Path(path).read_bytes())
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})", hint) from error
    except ValueError as error:
        raise BadInput(f"{path}: is not JSON ({error})", hint) from error
    if not isinstance(data, dict) or data.get("schema") != BenchReport.schema:
        raise BadInput(f"{path}: is not a report of bench", hint)
    version = BenchReport.schema_version
    if data.get("schema_version") != version:
        raise BadInput(
            f"{path}: report of schema {data.get('schema_version')}, expected {version}",
            "measure again with this version of cbam-deploy",
        )
    try:
        known = {field.name for field in fields(BenchReport)} - {"comparison"}
        report = read(BenchReport, {name: data[name] for name in known & data.keys()})
        _check_values(report)
    except ValueError as error:
        raise BadInput(f"{path}: malformed report ({error})", hint) from None
    return report


def _check_values(report: BenchReport) -> None:
    """Raise ValueError unless the figures can be compared."""
    if len({entry.key for entry in report.entries}) != len(report.entries):
        raise ValueError("an entry occurs twice")
    for entry in report.entries:
        estimates = [e for e in (entry.images_per_second, entry.relative) if e is not None]
        positive = (
            *(entry.batch, entry.runs, len(entry.round_seconds), *entry.round_seconds),
            *(entry.median_seconds, entry.p90_seconds, entry.p95_seconds, entry.p99_seconds),
            *(end for e in estimates for end in (e.value, e.low, e.high)),
        )
        if min(positive) <= 0:
            raise ValueError(f"a figure of {entry.label} is not positive")
