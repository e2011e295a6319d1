"""The files of a package: what each holds, and how they come into a folder, one whole at a time."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from cbam_deploy.artefacts import Artefact
from cbam_deploy.graphs.onnx_file import data_files
from cbam_deploy.outputs import atomic_output, write_errors

# Content by place below the folder, in the order of writing: a text, bytes, or a file to copy. A
# place that ends in a slash is a folder.
Files = dict[str, str | bytes | Path]


def artefact_files(artefact: Artefact, place: str) -> Files:
    """The artefact at `place`, and the weights that it has in other files beside it."""
    path = artefact.path
    folder = place.rpartition("/")[0]
    beside = sorted(data_files(path)) if path.suffix == ".onnx" else []
    files: Files = {
        "/".join(filter(None, (folder, one.relative_to(path.parent).as_posix()))): one
        for one in beside
    }
    return {**files, place: path}


def label_lines(labels: Sequence[str]) -> str:
    """One class in a line, in the order of the outputs."""
    return "".join(f"{' '.join(label.split())}\n" for label in labels)


def write_files(folder: Path, files: Files) -> None:
    """Write everything below `folder`, which need not be there yet.

    Raises:
        BadInput: something cannot be written.
    """
    for place, content in files.items():
        path = folder / place
        parent = path if place.endswith("/") else path.parent
        with write_errors(parent):
            parent.mkdir(parents=True, exist_ok=True)
        if not place.endswith("/"):
            with atomic_output(path) as temporary:
                if isinstance(content, Path):
                    shutil.copyfile(content, temporary)
                else:
                    data = content.encode() if isinstance(content, str) else content
                    temporary.write_bytes(data)
