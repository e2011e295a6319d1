"""What a part of the check is given: its time, its options, and a file for what it finds.

Findings are appended to the file as they come, one JSON object a line, so that a part that is ended
by force, or that takes its process down with it, leaves what it had found.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

Item = TypeVar("Item")

PASSED, FAILED, ERROR = "passed", "failed", "error"
INCOMPLETE, SKIPPED, DRY, RUNNING = "incomplete", "skipped", "dry run", "cut off"
_WORST = (FAILED, ERROR, INCOMPLETE, SKIPPED, RUNNING, DRY, PASSED)


class Failed(Exception):
    """A check that was carried out and did not hold; any other exception is an error instead."""


class Skipped(Exception):
    """This machine lacks what a part is about."""


@dataclass(frozen=True)
class Options:
    """What the person asked for.

    Attributes:
        dry: do all but launching kernels and timing; needs no GPU.
        every: take only every so-manieth case of each part.
        share: which of how many shares of these to take: a part may have several processes.
        engines: folder with TensorRT-RTX engines, or ONNX files to build them from.
    """

    dry: bool = False
    every: int = 1
    share: tuple[int, int] = (0, 1)
    engines: Path | None = None


@dataclass
class Job:
    """One run of one part."""

    file: Path
    options: Options
    seconds: float
    _started: float = field(default_factory=time.monotonic)
    _rows: int = 0

    @property
    def dry(self) -> bool:
        """Whether nothing may be launched or timed."""
        return self.options.dry

    @property
    def seconds_left(self) -> float:
        """Until this part has to end."""
        return self._started + self.seconds - time.monotonic()

    def row(self, **values: Any) -> int:
        """Add a row to the part's table; returns its number, for `extend`."""
        self._write({"row": values})
        self._rows += 1
        return self._rows - 1

    def extend(self, number: int, **values: Any) -> None:
        """Add values to a row."""
        self._write({"extend": number, "by": values})

    def note(self, text: str) -> None:
        """Add a sentence above the part's table."""
        self._write({"note": text})

    def each(self, items: Sequence[Item]) -> list[Item]:
        """The items that are to be looked at."""
        first, shares = self.options.share
        return list(items[:: self.options.every])[first::shares]

    def in_time(self, items: Sequence[Item]) -> Iterator[Item]:
        """Yield `items` while there is time; says so when some had to be left out."""
        for number, item in enumerate(items):
            if self.seconds_left <= 0:
                self._write({"incomplete": f"time ran out after {number} of {len(items)}"})
                return
            yield item

    def carry_out(self, run: Callable[[Job], None]) -> None:
        """Run the part, and write down how it ended."""
        try:
            run(self)
        except Failed as failure:
            self._end(FAILED, str(failure))
        except Skipped as reason:
            self._end(SKIPPED, str(reason))
        except Exception as error:
            traceback.print_exc()
            self._end(ERROR, f"{type(error).__name__}: {error}")
        else:
            self._end(DRY if self.dry else PASSED, "")

    def _end(self, status: str, reason: str) -> None:
        self._write({"end": status, "reason": reason})

    def _write(self, data: dict[str, Any]) -> None:
        with self.file.open("a") as file:
            file.write(json.dumps(data) + "\n")


@dataclass(frozen=True)
class Outcome:
    """What a part found and how it ended."""

    name: str
    status: str
    reason: str
    seconds: float | None
    notes: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]


def read_outcome(name: str, file: Path, seconds: float | None, ending: str) -> Outcome:
    """Read what a part wrote; `ending` says how its process ended, for when it could not itself."""
    text = file.read_text() if file.exists() else ""
    whole = text[: text.rfind("\n") + 1]  # the last line may be half written
    lines = [json.loads(line) for line in whole.splitlines()]
    found: dict[str, list[Any]] = {"row": [], "note": [], "incomplete": [], "end": []}
    for line in lines:
        for key in found:
            if key in line:
                found[key].append(line if key == "end" else line[key])
        if "extend" in line:
            found["row"][line["extend"]].update(line["by"])
    status, reason = ERROR, ending
    if found["end"]:
        status, reason = found["end"][-1]["end"], found["end"][-1]["reason"]
    if found["incomplete"] and status in (PASSED, DRY):
        status, reason = INCOMPLETE, found["incomplete"][-1]
    return Outcome(name, status, reason, seconds, tuple(found["note"]), tuple(found["row"]))


def together(outcomes: Sequence[Outcome]) -> Outcome:
    """What the processes of one part found, as bad as the worst of them."""
    worst = min(outcomes, key=lambda one: _WORST.index(one.status))
    return Outcome(
        worst.name,
        worst.status,
        worst.reason,
        max((one.seconds for one in outcomes if one.seconds is not None), default=None),
        tuple(dict.fromkeys(note for one in outcomes for note in one.notes)),
        tuple(row for one in outcomes for row in one.rows),
    )
