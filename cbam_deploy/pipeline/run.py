"""Run the steps of a run file, each only when what it depends on has changed."""

from __future__ import annotations

import fcntl
import logging
import os
import shlex
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cbam_deploy.command_files import declare_output
from cbam_deploy.errors import BadInput, DeployError
from cbam_deploy.machine import PACKAGES, gpus
from cbam_deploy.outputs import check_place, write_errors
from cbam_deploy.pipeline.contents import Content, Contents
from cbam_deploy.pipeline.records import (
    Record,
    Records,
    Wanted,
    Written,
    not_read,
    read_records,
    why,
    write_records,
    written_by_name,
)
from cbam_deploy.pipeline.result import RunReport, State, StepOutcome
from cbam_deploy.pipeline.run_file import Step, read_run_file
from cbam_deploy.progress import announce
from cbam_deploy.provenance import package_versions

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ParsedStep:
    """A step whose line its command has taken.

    Attributes:
        line: the command with all its words.
        inputs: files and folders that it reads, as far as they are there.
        outputs: files that it writes.
        call: runs it; returns its result, and the error that ended it.
        companions: the files that are read along with one.
    """

    line: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    call: Callable[[], tuple[Any, DeployError | None]]
    companions: Callable[[Path], tuple[Path, ...]]


Parse = Callable[[Step], ParsedStep]


def run_steps(
    path: str | Path, parse: Parse, *, dry_run: bool = False, force: bool = False
) -> RunReport:
    """Run what `path` declares, in its folder, in its order, up to the first step that fails.

    A step is left out when its words, what it reads and wrote, and the versions of the packages are
    those of the time it was done. That is kept in ``NAME.state.json`` beside the file, after each
    step, so that a run that was interrupted goes on where it was.

    Args:
        path: of the run file.
        parse: gives a step's line to its command; raises `DeployError` where that refuses it.
        dry_run: say what would run and why; run and write nothing.
        force: run every step.

    Raises:
        BadInput: the file is wrong, a command refuses its step, or another run is at work.
        MissingCapability: what reads the file is not installed.
    """
    given = str(path)
    steps = read_run_file(Path(path))
    if not dry_run:
        declare_output(Path(path).with_name(_state_name(path)), "what is known of the steps")
    with _inside(Path(path)) as state, nullcontext() if dry_run else _claimed(Path(path).name):
        for step in steps:  # A mistake in the last one shall not show after hours of the first.
            parse(step)
        records = read_records(state)
        contents = Contents(records.contents(), apart=(state,))
        session = _Session(steps, parse, records, contents, force, state)
        if dry_run:
            return RunReport(given, tuple(session.plan()))
        check_place(state)
        outcomes, error = session.run()
        return RunReport(given, tuple(outcomes), error)


@dataclass
class _Session:
    """A run under way."""

    steps: tuple[Step, ...]
    parse: Parse
    records: Records
    contents: Contents
    force: bool
    state: Path

    def __post_init__(self) -> None:
        self.versions = versions()

    def wanted(self, number: int, parsed: ParsedStep) -> Wanted:
        """Step `number` as it would run now."""
        step = self.steps[number]
        return Wanted(
            name=step.name,
            line=parsed.line,
            versions=self.versions,
            inputs=(*parsed.inputs, *step.reads),
            outputs=parsed.outputs,
            later=tuple(other.name for other in self.steps[number + 1 :]),
        )

    def reason(self, wanted: Wanted) -> str:
        """Why it has to run; empty where it has not."""
        return "--force" if self.force else why(wanted, self.records, self.contents)

    def plan(self) -> Iterator[StepOutcome]:
        """What would become of each step."""
        anew: dict[str, str] = {}  # Step that will have written a file, by its path.
        for number, step in enumerate(self.steps):
            parsed = self.parse(step)
            wanted = self.wanted(number, parsed)
            reason = self.reason(wanted)
            read = [(p, made) for p in wanted.inputs for made in anew if _one_holds(p, made)]
            record = self.records.steps.get(step.name)
            outputs = (*parsed.outputs, *(record.outputs if record else ()))
            if reason or read:
                anew.update(dict.fromkeys(outputs, step.name))
            line = shlex.join(parsed.line)
            if reason:
                yield StepOutcome(step.name, line, "would run", reason)
            elif read:
                path, made = read[0]
                because = f"{path} may change, which {anew[made]} writes"
                yield StepOutcome(step.name, line, "may run", because)
            else:
                yield StepOutcome(step.name, line, "unchanged")

    def run(self) -> tuple[list[StepOutcome], DeployError | None]:
        """Run what has to run; what became of each step, and the error that ended the run."""
        outcomes: list[StepOutcome] = []
        error: DeployError | None = None
        for number, step in enumerate(self.steps):
            if error is None:
                outcome, error = self._step(number, step)
            else:
                outcome = StepOutcome(step.name, shlex.join(self.parse(step).line), "not reached")
            outcomes.append(outcome)
        self._save()  # Statuses of files whose bytes were as before.
        return outcomes, error

    def _step(self, number: int, step: Step) -> tuple[StepOutcome, DeployError | None]:
        parsed = self.parse(step)
        wanted = self.wanted(number, parsed)
        reason, line = self.reason(wanted), shlex.join(parsed.line)
        if not reason:
            self._refresh(wanted)
            kept = self.records.steps[step.name].summary
            return StepOutcome(step.name, line, "unchanged", summary=kept), None
        announce(f"[{number + 1}/{len(self.steps)}] {line}")
        begin = time.perf_counter()
        for output in parsed.outputs:
            with write_errors(Path(output)):
                Path(output).parent.mkdir(parents=True, exist_ok=True)
        # Before it runs: what changes meanwhile makes it run again.
        apart = not_read(wanted, self.records)
        found = {path: self.at(path, apart) for path in self._read(wanted, parsed)}
        inputs = {path: content for path, content in found.items() if content is not None}
        missing = next((read for read in step.reads if self.at(read) is None), None)
        result, error = parsed.call() if missing is None else (None, _not_there(missing))
        seconds = time.perf_counter() - begin
        announce(f"    {seconds:.1f} s")
        summary = "" if result is None else result.markdown(step.name)
        if error is None:
            self._done(wanted, parsed, inputs, summary)
        else:
            self.records.steps.pop(step.name, None)
            self._save()
            reason = error.message
            error = type(error)(f"step {step.name}: {reason}", error.hint)
        state: State = "done" if error is None else "failed"
        return StepOutcome(step.name, line, state, reason, seconds, result, summary), error

    def at(self, path: str, apart: Collection[str] = ()) -> Content | None:
        """What is at `path` now, without what lies `apart` in a folder."""
        return self.contents.of(Path(path), apart)

    def _read(self, wanted: Wanted, parsed: ParsedStep) -> list[str]:
        beside = [str(more) for path in wanted.inputs for more in parsed.companions(Path(path))]
        return list(dict.fromkeys((*wanted.inputs, *beside)))

    def _done(
        self, wanted: Wanted, parsed: ParsedStep, inputs: dict[str, Content], summary: str
    ) -> None:
        beside = [str(more) for path in parsed.outputs for more in parsed.companions(Path(path))]
        apart = written_by_name(wanted, self.records)
        outputs = {p: self.at(p, apart) for p in dict.fromkeys((*parsed.outputs, *beside))}
        written = {path: content for path, content in outputs.items() if content is not None}
        self.records.steps[wanted.name] = Record(
            wanted.line, wanted.versions, inputs, tuple(written), summary
        )
        for path, content in written.items():
            self.records.files[path] = Written(content, wanted.name)
        self._save()

    def _refresh(self, wanted: Wanted) -> None:
        """Take the status of files whose bytes are as before, so that they are not read again."""
        record, apart = self.records.steps[wanted.name], not_read(wanted, self.records)
        for path in record.inputs:
            if (content := self.at(path, apart)) is not None and path not in record.outputs:
                record.inputs[path] = content
        apart = written_by_name(wanted, self.records)
        for path in record.outputs:
            written = self.records.files[path]
            now = self.at(path, apart) or written.content
            self.records.files[path] = Written(now, written.step)

    def _save(self) -> None:
        """Write what is known of the steps there are."""
        names = {step.name for step in self.steps}
        for name in self.records.steps.keys() - names:
            del self.records.steps[name]
        write_records(self.state, self.records)


def _one_holds(path: str, other: str) -> bool:
    """Whether two paths are the same, or one is a folder that holds the other."""
    one, two = (Path(os.path.realpath(p)) for p in (path, other))
    return one.is_relative_to(two) or two.is_relative_to(one)


def _not_there(path: str) -> BadInput:
    return BadInput(f"reads names {path}, and nothing is there", "name a file or a folder")


def versions() -> dict[str, str]:
    """Of everything installed that a step's result may depend on."""
    import platform

    found = {**package_versions(*PACKAGES), "python": platform.python_version()}
    names = ", ".join(gpu.name for gpu in gpus())
    return {**found, "gpu": names} if names else found


def _state_name(path: str | Path) -> str:
    return f"{Path(path).stem}.state.json"


@contextmanager
def _inside(path: Path) -> Iterator[Path]:
    """Work in the folder of the run file, where its paths begin; yield where its state is kept."""
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        yield Path(_state_name(path))
    finally:
        os.chdir(before)


@contextmanager
def _claimed(name: str) -> Iterator[None]:
    """Keep other runs of the same file out; raises `BadInput` where one is at work."""
    with Path(name).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(f"{name}: another run is at work", "let it finish") from None
        except OSError:
            pass  # A file system without locks keeps nobody out.
        yield
