"""An ONNX file without its weights: a hundredth of the bytes, all of the graph.

Checking a graph needs no weights, but parsing them costs as much as a tenth of a build. So the
protobuf message is copied with the `raw_data` of its initializers left out, by walking its fields:
https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from mmap import mmap

# Field numbers of onnx.proto: ModelProto.graph, GraphProto.initializer, TensorProto.raw_data.
GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9

Buffer = bytes | mmap

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Field:
    """One field of a message: `data[start:stop]` with its tag, `data[value:stop]` without."""

    number: int
    kind: int
    start: int
    value: int
    stop: int


def without_weights(data: Buffer, kept: int = -1) -> tuple[bytes, list[int | None]]:
    """A serialized `ModelProto` without its initializers' `raw_data`.

    Args:
        data: the model.
        kept: `raw_data` of up to so many bytes stays; by default none does.

    Returns:
        The model, and for each initializer the size of the `raw_data` that was left out; None where
        none was.

    Raises:
        ValueError: `data` is no protobuf message, or is cut off.
    """
    left_out: list[int | None] = []
    return _copy(data, 0, len(data), (GRAPH, INITIALIZER, RAW_DATA), kept, left_out), left_out


def _copy(
    data: Buffer,
    start: int,
    stop: int,
    path: tuple[int, ...],
    kept: int,
    left_out: list[int | None],
) -> bytes:
    """The message in `data[start:stop]` without the fields that `path` leads to."""
    parts = []
    if len(path) == 1:
        left_out.append(None)
    for field in _fields(data, start, stop):
        if field.number != path[0] or field.kind != BYTES:
            parts.append(data[field.start : field.stop])
        elif len(path) > 1:
            inner = _copy(data, field.value, field.stop, path[1:], kept, left_out)
            parts += [_varint_bytes(field.number << 3 | BYTES), _varint_bytes(len(inner)), inner]
        elif (size := field.stop - field.value) <= kept:
            left_out[-1] = None
            parts.append(data[field.start : field.stop])
        else:
            left_out[-1] = size
    return b"".join(parts)


def _fields(data: Buffer, start: int, stop: int) -> Iterator[Field]:
    while start < stop:
        tag, value = _varint(data, start, stop)
        kind = tag & 7
        if kind == VARINT:
            _, end = _varint(data, value, stop)
        elif kind == BYTES:
            size, value = _varint(data, value, stop)
            end = value + size
        elif kind in (FIXED32, FIXED64):
            end = value + (4 if kind == FIXED32 else 8)
        else:
            raise ValueError("not a protobuf message")
        if end > stop:
            raise ValueError("the file is cut off")
        yield Field(tag >> 3, kind, start, value, end)
        start = end


def _varint(data: Buffer, start: int, stop: int) -> tuple[int, int]:
    """The number that begins at `start`, seven bits a byte, and where it ends."""
    number = 0
    for index in range(min(10, stop - start)):
        byte = data[start + index]
        number |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return number, start + index + 1
    raise ValueError("the file is cut off")


def _varint_bytes(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)
