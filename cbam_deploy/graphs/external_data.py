"""Weights that lie beside an ONNX file: which bytes it may claim, checked before they are read.

Format: https://onnx.ai/onnx/repo-docs/ExternalData.html
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
import onnx_ir as ir
from onnx.external_data_helper import uses_external_data

from cbam_deploy.errors import BadInput
from cbam_deploy.graphs.messages import messages
from cbam_deploy.graphs.well_formed import byte_count

_HINT = "keep the file together with its data, or export it again"


def external_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Tensors of `model`, at any depth, whose bytes are in another file."""
    for message in messages(model):
        if isinstance(message, onnx.TensorProto) and uses_external_data(message):
            yield message


def check_external_data(path: Path, model: onnx.ModelProto) -> None:
    """Make sure that every external tensor of the file `path` is there, whole, in its folder.

    A symbolic link in that folder is followed as far as the folder that `path` itself leads to,
    when it is a link too: a model hub keeps both as links into one store.

    Raises:
        BadInput: a tensor's bytes are outside these folders, missing, cut off, or of another size.
    """
    sizes: dict[str, int] = {}
    for tensor in external_tensors(model):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        if location not in sizes:
            sizes[location] = _data_file(path, tensor.name, location).stat().st_size
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
        if start < 0 or start + needed > sizes[location]:
            raise BadInput(f"{path}: {location} is too short for weight {tensor.name}", _HINT)


def map_links(model: ir.Model) -> None:
    """Map weights that lie behind links into memory, as onnx-ir would refuse to follow these.

    `model` is of a file that passed `check_external_data`.
    """
    links: dict[str, bool] = {}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            if tensor.path not in links:
                place = Path(tensor.path)
                links[tensor.path] = place.is_symlink() or place.stat().st_nlink > 1
            if links[tensor.path]:
                array = _Followed(
                    tensor.location,
                    tensor.offset,
                    tensor.length,
                    tensor.dtype,
                    shape=tensor.shape,
                    name=tensor.name or "",
                    base_dir=tensor.base_dir,
                ).numpy()
                value.const_value = ir.Tensor(array, tensor.dtype, name=tensor.name)


class _Followed(ir.ExternalTensor):
    """An external tensor whose place was checked before."""

    __slots__ = ()

    def _check_path_containment(self) -> None:
        pass


def _data_file(path: Path, name: str, location: str) -> Path:
    """The file `location` beside `path`, after following links."""
    folder = path.parent
    spellings = PurePosixPath(location), PureWindowsPath(location)
    strays = any(place.anchor or ".." in place.parts for place in spellings)
    if strays or "\0" in location or folder / location == folder:
        raise BadInput(
            f"{path}: weight {name} lies outside the file's folder ({location or 'nowhere'})",
            "only data in the file's own folder is read",
        )
    try:
        data = (folder / location).resolve()
        allowed = folder.resolve(), path.resolve().parent
        if not any(data.is_relative_to(place) for place in allowed):
            raise BadInput(
                f"{path}: {location}, which holds weight {name}, is a symbolic link to a place"
                " outside the file's folder",
                "put the data itself beside the file, or name the file that the link belongs to",
            )
        present = data.is_file()
    except (OSError, RuntimeError):  # A name too long, or links in a circle.
        present = False
    if not present:
        raise BadInput(f"{path}: {location}, which holds weight {name}, is missing", _HINT)
    return data
