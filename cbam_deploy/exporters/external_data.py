"""Weights that lie beside an ONNX file: which bytes it may claim, checked before they are read.

Format: https://onnx.ai/onnx/repo-docs/ExternalData.html
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
from onnx.external_data_helper import uses_external_data

from cbam_deploy.errors import BadInput
from cbam_deploy.exporters.well_formed import byte_count

_HINT = "keep the file together with its data, or export it again"


def external_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Tensors of `model`, at any depth, whose bytes are in another file."""
    for tensor in _tensors(model):
        if uses_external_data(tensor):
            yield tensor


def check_external_data(path: Path, model: onnx.ModelProto) -> None:
    """Make sure that every external tensor of the file `path` is there, whole, in its folder.

    Raises:
        BadInput: a tensor's bytes are outside the folder, missing, cut off, or of another size.
    """
    for tensor in external_tensors(model):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        size = _data_file(path, tensor.name, location).stat().st_size
        try:
            needed = byte_count(tensor)
            start = int(entries.get("offset", 0))
            claimed = int(entries.get("length", needed))
        except (ValueError, TypeError) as error:
            raise BadInput(f"{path}: weight {tensor.name} is misplaced ({error})", _HINT) from error
        if claimed != needed:
            raise BadInput(
                f"{path}: weight {tensor.name} needs {needed} bytes, not {claimed}", _HINT
            )
        if start < 0 or start + needed > size:
            raise BadInput(f"{path}: {location} is too short for weight {tensor.name}", _HINT)


def _data_file(path: Path, name: str, location: str) -> Path:
    """The file `location` beside `path`, after following links."""
    folder = path.parent.resolve()
    spellings = PurePosixPath(location), PureWindowsPath(location)
    strays = any(place.anchor or ".." in place.parts for place in spellings)
    data = folder if strays or "\0" in location else (folder / location).resolve()
    if data == folder or not data.is_relative_to(folder):
        raise BadInput(
            f"{path}: weight {name} lies outside the file's folder ({location or 'nowhere'})",
            "only data in the file's own folder is read",
        )
    if not data.is_file():
        raise BadInput(f"{path}: {location}, which holds weight {name}, is missing", _HINT)
    return data


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for graph in (attribute.g, *attribute.graphs):
                yield from _graph_tensors(graph)
