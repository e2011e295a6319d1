"""ONNX files: read so that no malformed one gets further than this, written whole or not at all."""

from __future__ import annotations

import filecmp
import re
import secrets
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from cbam_deploy.command_files import check_regular
from cbam_deploy.errors import BadInput, in_one_line
from cbam_deploy.gates.operators import is_lowered
from cbam_deploy.graphs.external_data import (
    check_external_data,
    external_tensors,
    map_links,
)
from cbam_deploy.graphs.well_formed import check_model
from cbam_deploy.outputs import atomic_output, behind_links, put_in_place, temporary_beside
from cbam_deploy.provenance import METADATA_KEY, Provenance

# Protobuf messages end at 2 GiB; the graph around the weights is far below the rest.
MAX_EMBEDDED_BYTES = 2**31 - 2**26
_HINT = "export the model again, or check the path"
_WEIGHTS_ALONE_SINCE = 4  # version of the file format from which weights need not be inputs
_PATH = "cbam_deploy.path"  # Where a model was read from; like the next one, not written.
_DATA_BESIDE = "cbam_deploy.data_beside"  # Whether any of its tensors lies in another file.


def read_model(path: str | Path, *, lowered: bool = False) -> ir.Model:
    """Read and check an ONNX file; weights stay on disk until they are used.

    The model's inputs are what a caller must feed. Files of IR version 3 list their weights there
    too; later ones that do so let a caller feed others, which nobody here does.

    Args:
        path: the file.
        lowered: take also one whose gates are nodes of TensorRT's plugin, which nothing but
            TensorRT's builder runs.

    Raises:
        BadInput: the file is missing, a directory, no ONNX file, damaged, refused by the ONNX
            checker, or has weights outside its folder, missing or cut off; or it is lowered.
    """
    path = Path(path)
    proto = _parse(path)
    check_external_data(path, proto)
    try:
        check_model(proto)
        model = ir.from_proto(proto)
    except Exception as error:  # onnx and onnx-ir answer what they do not know in many ways.
        reason = in_one_line(error, 200)
        raise BadInput(f"{path}: is no valid ONNX model ({reason})", _HINT) from error
    if any(value.is_initializer() for value in model.graph.inputs):
        model.graph.inputs[:] = [v for v in model.graph.inputs if not v.is_initializer()]
        model.ir_version = max(model.ir_version, _WEIGHTS_ALONE_SINCE)
    ir.external_data.set_base_dir(model.graph, path.parent)
    map_links(model)
    model.meta[_PATH] = path
    model.meta[_DATA_BESIDE] = any(external_tensors(proto))
    if not lowered and any(map(is_lowered, model.graph)):
        raise _is_for_tensorrt(path, read_provenance(model))
    return model


def _is_for_tensorrt(path: Path, provenance: Provenance | None) -> BadInput:
    record = provenance.lowered if provenance else None
    source = f"{record.source}, which it was lowered from" if record else "what it was lowered from"
    return BadInput(
        f"{path}: its gates are lowered to a plugin, which TensorRT's builder alone runs",
        f"use {source}",
    )


def has_data_beside(model: ir.Model) -> bool:
    """Whether the file that `model` was read from needs others beside it."""
    return bool(model.meta.get(_DATA_BESIDE))


def data_files(path: Path) -> set[Path]:
    """The files that hold external weights of the graph at `path`; none where it is no graph."""
    try:
        tensors = external_tensors(_parse(path))
    except BadInput:
        return set()
    entries = (entry for tensor in tensors for entry in tensor.external_data)
    locations = {entry.value for entry in entries if entry.key == "location"}
    # Text that is not UTF-8 comes as bytes, and is refused wherever the file is read.
    return {path.parent / location for location in locations if isinstance(location, str)}


def write_model(
    model: ir.Model, path: str | Path, verify: Callable[[Path], None] | None = None
) -> None:
    """Check `model` and put it in place as one file; an earlier `path` is lost only on success.

    Weights are embedded, or lie in ``<path>.data`` when they are too many for one ONNX file. Where
    that name is taken they get one of their own, ``<path>.1a2b3c4d.data``, and the data of the file
    that was replaced goes: whenever the process is killed, every graph has its own weights.

    Args:
        model: the model; its weights may still be external, also in the file at `path`.
        path: where to.
        verify: called with the finished file under a temporary name; what it raises prevents that
            the file is put in place.

    Raises:
        BadInput: `path` cannot be written.
    """
    path = behind_links(Path(path))
    weights = [value.const_value for value in model.graph.initializers.values()]
    embedded = sum(tensor.nbytes for tensor in weights if tensor is not None) <= MAX_EMBEDDED_BYTES
    with atomic_output(path) as temporary:
        if embedded:
            _save(ir.external_data.load_to_model(model), temporary)
            _verify(temporary, verify)
            return
        with temporary_beside(path) as data:
            _save_with_data(model, temporary, data)
            _verify(temporary, verify)
            beside = _data_path(path, data)
            _rename_data(temporary, beside.name)
            put_in_place(data, beside)
        earlier = _earlier_data(path, beside, model.meta.get(_PATH))
    for unused in earlier:
        unused.unlink(missing_ok=True)


def read_provenance(source: str | Path | ir.Model) -> Provenance | None:
    """The provenance of an ONNX file or of a model read from one; None where it has none.

    Raises:
        BadInput: the file is no ONNX file, or its provenance is malformed or of another version.
    """
    if isinstance(source, ir.Model):
        return _provenance(source.meta.get(_PATH), source.metadata_props.get(METADATA_KEY))
    texts = (e.value for e in _parse(Path(source)).metadata_props if e.key == METADATA_KEY)
    return _provenance(Path(source), next(texts, None))


def _provenance(path: Path | None, text: str | None) -> Provenance | None:
    try:
        return None if text is None else Provenance.loads(text)
    except BadInput as error:
        raise BadInput(f"{path}: {error.message}", error.hint) from error


def set_provenance(model: ir.Model, provenance: Provenance) -> None:
    """Record `provenance` in the model's metadata, in place of what was there."""
    model.metadata_props[METADATA_KEY] = provenance.dumps()


def _parse(path: Path) -> onnx.ModelProto:
    if not path.exists():
        raise BadInput(f"{path}: no such file", "check the path")
    if path.is_dir():
        raise BadInput(f"{path}: is a directory, not an ONNX file", "name the .onnx file in it")
    check_regular(path)
    try:
        proto: onnx.ModelProto = onnx.ModelProto.FromString(path.read_bytes())
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})", "check the file") from error
    except DecodeError as error:
        raise BadInput(f"{path}: is no ONNX file, or is damaged", _HINT) from error
    if not proto.HasField("graph"):
        raise BadInput(f"{path}: is no ONNX file (it holds no graph)", _HINT)
    return proto


def _save(model: ir.Model, path: Path) -> None:
    path.write_bytes(ir.to_proto(model).SerializeToString(deterministic=True))


def _save_with_data(model: ir.Model, path: Path, data: Path) -> None:
    """Write the weights to `data`, beside `path`, and the rest to `path`."""
    # Axes and shapes stay: runtimes need their values to infer shapes, and read no other file then.
    values = [
        value
        for value in model.graph.initializers.values()
        if value.const_value is not None and value.const_value.dtype != ir.DataType.INT64
    ]
    tensors = ir.external_data.convert_tensors_to_external(
        [value.const_value for value in values if value.const_value is not None],
        base_dir=data.parent,
        relative_path=data.name,
    )
    for value, tensor in zip(values, tensors, strict=True):
        value.const_value = tensor
    _save(model, path)


def _data_path(path: Path, data: Path) -> Path:
    """Where the weights in `data` go: to a file of that content, or one no graph refers to yet."""
    place = path.with_name(f"{path.name}.data")
    while place.exists() and not filecmp.cmp(place, data, shallow=False):
        place = path.with_name(f"{path.name}.{secrets.token_hex(4)}.data")
    return place


def _earlier_data(path: Path, beside: Path, source: Path | None) -> list[Path]:
    """Data that nothing refers to once `path` is replaced by a graph with its weights in `beside`.

    Files of a name that only `write_model` gives go whether the earlier graph names them or a
    killed run left them; what the model's `source` still refers to stays.
    """
    ours = re.compile(rf"{re.escape(path.name)}\.[0-9a-f]{{8}}\.data")
    found = {file for file in path.parent.iterdir() if ours.fullmatch(file.name)}
    found |= data_files(path) & {path.with_name(f"{path.name}.data")}
    if source is not None and not (path.exists() and path.samefile(source)):
        found -= data_files(source)
    return sorted(found - {beside})


def _rename_data(path: Path, name: str) -> None:
    """Make the external weights of the file `path` refer to the file `name`."""
    proto = _parse(path)
    for tensor in external_tensors(proto):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = name
    path.write_bytes(proto.SerializeToString(deterministic=True))


def _verify(path: Path, verify: Callable[[Path], None] | None) -> None:
    onnx.checker.check_model(str(path))
    if verify is not None:
        verify(path)
