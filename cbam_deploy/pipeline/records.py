"""What a run remembers of its steps, and why one of them has to run again."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cbam_deploy import json_data
from cbam_deploy.outputs import write_text
from cbam_deploy.pipeline.contents import Content, Contents

SCHEMA = "cbam_deploy.run_state"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """A step that was done.

    Attributes:
        line: the command with all its words.
        versions: of the packages, Python and GPUs that it ran with.
        inputs: what it read.
        outputs: paths of what it wrote.
        summary: its result as Markdown.
    """

    line: tuple[str, ...]
    versions: dict[str, str]
    inputs: dict[str, Content]
    outputs: tuple[str, ...]
    summary: str = ""


@dataclass(frozen=True)
class Written:
    """A file as a step left it."""

    content: Content
    step: str


@dataclass
class Records:
    """Of all steps of a run file, by their names, and of all files that they wrote, by path."""

    steps: dict[str, Record] = field(default_factory=dict)
    files: dict[str, Written] = field(default_factory=dict)

    def contents(self) -> Iterator[Content]:
        """All that are known."""
        for record in self.steps.values():
            yield from record.inputs.values()
        yield from (written.content for written in self.files.values())


def read_records(path: Path) -> Records:
    """What an earlier run left at `path`; nothing where there is none, or none that can be used."""
    try:
        data = json_data.parse(path.read_bytes())
        if not isinstance(data, dict) or data.pop("schema", None) != SCHEMA:
            raise ValueError("it has another schema")
        return json_data.read(Records, data)
    except FileNotFoundError:
        return Records()
    except (OSError, ValueError) as error:
        _log.warning("%s: cannot be used, so every step runs (%s)", path, error)
        return Records()


def write_records(path: Path, records: Records) -> None:
    """Put `records` in place at `path`, whole."""
    write_text(path, json.dumps({"schema": SCHEMA, **asdict(records)}, indent=1) + "\n")


@dataclass(frozen=True)
class Wanted:
    """A step as it would run now.

    Attributes:
        name: of the step.
        line: the command with all its words.
        versions: as in `Record`.
        inputs: paths that it reads.
        outputs: paths that it writes.
        later: names of the steps after it.
    """

    name: str
    line: tuple[str, ...]
    versions: dict[str, str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    later: tuple[str, ...] = ()


def written_by_name(wanted: Wanted, records: Records) -> set[str]:
    """What may lie in a folder that a step writes and is judged by itself."""
    return {*wanted.outputs, *records.files}


def not_read(wanted: Wanted, records: Records) -> set[str]:
    """What may lie in a folder that a step reads and is no input: its outputs, and later ones'."""
    record = records.steps.get(wanted.name)
    later = {path for path, file in records.files.items() if file.step in wanted.later}
    return {*wanted.outputs, *(record.outputs if record else ()), *later}


def why(wanted: Wanted, records: Records, contents: Contents) -> str:
    """Why a step has to run, in words; empty where all that it depends on is as it was."""
    record = records.steps.get(wanted.name)
    if record is None:
        return "has not run yet"
    if record.line != wanted.line:
        return f"its options changed: {_difference(record.line, wanted.line)}"
    if record.versions != wanted.versions:
        return _changed_versions(record.versions, wanted.versions)
    found = [
        *(_changed_inputs(wanted, record, records, contents)),
        *(_changed_outputs(wanted, record, records, contents)),
    ]
    return found[0] if found else ""


def _changed_inputs(
    wanted: Wanted, record: Record, records: Records, contents: Contents
) -> Iterator[str]:
    own = {*record.outputs, *wanted.outputs}  # A file replaced in place is judged as an output.
    apart = not_read(wanted, records)
    for path, before in record.inputs.items():
        if path not in own:
            now = contents.of(Path(path), apart)
            if now is None:
                yield f"{path} is gone"
            elif now.sha256 != before.sha256:
                yield f"{path} changed"
    yield from (f"{p} is new" for p in wanted.inputs if p not in record.inputs and p not in own)


def _changed_outputs(
    wanted: Wanted, record: Record, records: Records, contents: Contents
) -> Iterator[str]:
    apart = written_by_name(wanted, records)
    for path in record.outputs:
        now, written = contents.of(Path(path), apart), records.files.get(path)
        if now is None:
            yield f"{path} is missing"
        elif written is None or now.sha256 != written.content.sha256:
            yield f"{path} is not as the step left it"
        elif path in record.inputs and written.step not in (wanted.name, *wanted.later):
            yield f"{path} was written anew"


def _difference(before: Iterable[str], now: Iterable[str]) -> str:
    old = [word for word in before if word not in {*now}]
    new = [word for word in now if word not in {*before}]
    if not (old or new):
        return "their order"
    return f"{' '.join(new) or 'none'} instead of {' '.join(old) or 'none'}"


def _changed_versions(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    name = next(n for n in sorted({**before, **now}) if before.get(n) != now.get(n))
    return f"{name} is {now.get(name, 'gone')}, it was {before.get(name, 'not there')}"
