"""An ONNX file as what another one is held against, in ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbam_deploy.artefacts import OnnxFile, open_onnx
from cbam_deploy.errors import BadInput
from cbam_deploy.numerics.tensors import Feeds, TensorSpec
from cbam_deploy.runtimes.base import Runner
from cbam_deploy.runtimes.onnxruntime import OnnxRuntimeRunner

_HINT = "give the file that it was made from with --reference"


@dataclass(frozen=True)
class FileReference:
    """A file that runs, and how its inputs and outputs correspond to those of what is judged.

    Attributes:
        file: as it was opened.
        runner: of it.
        outputs: its names of the outputs of what is judged, in that order.
    """

    file: OnnxFile
    runner: Runner
    outputs: tuple[str, ...]

    @property
    def label(self) -> str:
        """What to call it in a report."""
        return str(self.file.path)

    def run(self, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Outputs in the order of what is judged, for its inputs in their order."""
        computed = self.runner.infer(self.feeds(inputs))
        return [computed[name] for name in self.outputs]

    def feeds(self, inputs: Sequence[NDArray[Any]]) -> Feeds:
        """`inputs` by this file's names, in its floating-point type."""
        return {
            spec.name: array.astype(spec.dtype) if _floats(array.dtype, spec.dtype) else array
            for spec, array in zip(self.runner.inputs, inputs, strict=True)
        }


def _floats(one: np.dtype[Any], other: str) -> bool:
    return np.issubdtype(one, np.floating) and other.startswith("float")


@contextmanager
def file_reference(
    path: Path, title: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> Iterator[FileReference]:
    """The file `path`, ready to be compared with what has these inputs and outputs.

    Outputs correspond by name where all names are the same, else by order; inputs by order.

    Raises:
        BadInput: the file cannot be read or run, or has other numbers of inputs or outputs.
    """
    file = open_onnx(path)
    for what, own, wanted in (
        ("inputs", file.inputs, inputs),
        ("outputs", file.outputs, outputs),
    ):
        if len(own) != len(wanted):
            raise BadInput(
                f"{title}: has {len(wanted)} {what}, the reference {path} has {len(own)}", _HINT
            )
    own_names, names = [spec.name for spec in file.outputs], [spec.name for spec in outputs]
    with OnnxRuntimeRunner.of(file, None, None) as runner:
        yield FileReference(
            file, runner, tuple(names if set(names) == set(own_names) else own_names)
        )


class FileProgram:
    """The values inside a file reference, on one batch; as `layers.ReferenceProgram`.

    Attributes:
        feeds: the batch, by the names of what is judged.
        names: of every value of the file.
        outputs: names of its outputs, in the order of what is judged.
    """

    def __init__(self, reference: FileReference, feeds: Feeds) -> None:
        self.feeds = feeds
        self._reference = reference
        graph = reference.file.model.graph
        values = (value.name for node in graph for value in node.outputs)
        self.names = frozenset(name for name in values if name)
        self.outputs = reference.outputs

    def watch(self, wanted: Collection[str], visit: Callable[[str, NDArray[Any]], None]) -> None:
        """Run once; call `visit(name, value)` for each wanted value."""
        file = self._reference.file
        with OnnxRuntimeRunner.of(file, None, None, sorted(wanted)) as runner:
            computed = runner.infer(self._reference.feeds(list(self.feeds.values())))
        for name in wanted:
            visit(name, computed[name])
