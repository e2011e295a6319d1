"""Everything in an ONNX file, message by message, as protobuf has it."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.message import Message  # type: ignore[import-untyped]


def messages(message: Message) -> Iterator[Message]:
    """`message` and those in it, at any depth, which protobuf bounds at 100."""
    yield message
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for inner in (value,) if isinstance(value, Message) else value:
                yield from messages(inner)


def texts(message: Message) -> Iterator[str | bytes]:
    """All text in `message`, at any depth; bytes where it is not UTF-8."""
    for inner in messages(message):
        for field, value in inner.ListFields():
            if field.type == field.TYPE_STRING:
                yield from (value,) if isinstance(value, str | bytes) else value
