"""The result of `package`: what was written, and how it is served."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cbam_deploy.report.content import Section, Table
from cbam_deploy.report.result import Result
from cbam_deploy.report.units import size

_LINE = 76  # Letters of a command that stands in one line.


@dataclass(frozen=True)
class PackagedModel:
    """One model of a package.

    Attributes:
        name: as clients call it.
        artefact: what it was made of; empty for one that is made of other models.
        runs: what runs it: a backend of Triton, ``ensemble``, or ``nvinfer``.
        max_batch: largest batch; 0 where the batch is fixed.
        preferred_batches: what batches are filled up to.
        warm_up: what it runs before it is ready; empty where nothing says its sizes.
    """

    name: str
    artefact: str
    runs: str
    max_batch: int
    preferred_batches: tuple[int, ...] = ()
    warm_up: str = ""


@dataclass(frozen=True)
class Package(Result):
    """A package.

    Attributes:
        folder: where it is.
        server: ``Triton`` or ``DeepStream``.
        models: in the order they were written.
        files: places below the folder.
        bytes: size of all of them.
        command: words of the command that serves it.
        notes: what else its user must know.
    """

    title: ClassVar[str] = "Package"
    schema: ClassVar[str] = "cbam_deploy.package"

    folder: Path
    server: str
    models: tuple[PackagedModel, ...]
    files: tuple[str, ...]
    bytes: int
    command: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def sections(self) -> tuple[Section, ...]:
        """Where it is, what it holds, and how it is served."""
        facts = (
            ("package", f"{self.folder} ({len(self.files)} files, {size(self.bytes)})"),
            ("for", self.server),
        )
        columns = {
            "model": [one.name for one in self.models],
            "runs in": [one.runs for one in self.models],
            "batch up to": [
                str(one.max_batch) if one.max_batch else "fixed" for one in self.models
            ],
            "filled to": [", ".join(map(str, one.preferred_batches)) for one in self.models],
            "warm-up": [one.warm_up for one in self.models],
        }
        said = {heading: cells for heading, cells in columns.items() if any(cells)}
        models = Table(
            tuple(said),
            tuple(zip(*said.values(), strict=True)),
            text_columns=len(said),
            spare=("warm-up", "filled to"),
        )
        line = shlex.join(self.command)
        if len(line) > _LINE:
            line = " \\\n  ".join(map(shlex.quote, self.command))
        command = Table(("",), tuple((part,) for part in line.split("\n")), caption="To serve it:")
        tables = (Table.facts(facts), models, command)
        return (Section(self.title, tables=tables, notes=self.notes),)
