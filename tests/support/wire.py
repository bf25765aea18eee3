"""Messages sent through the real frames, as the recorder receives them."""

from typing import Any

from mlotel_cli.telemetry.span import Span
from mlotel_cli.wire import Message, PackedSpan, SpanMessage, encode, split_frames, unpack


def frame(*messages: Message | PackedSpan) -> bytes:
    """One frame; every message must be writable."""

    def fail(message: Message, error: Exception) -> None:
        raise AssertionError(f"{message} cannot be written: {error}")

    return encode(messages, lose=fail)


def message_of(span: Span) -> SpanMessage:
    """An ended span's fields by name."""
    return SpanMessage(*span.pack()[1:])


def read(data: bytes) -> list[Any]:
    """The messages of whole frames."""
    return [unpack(packed) for packed_frame in split_frames(bytearray(data)) for packed in packed_frame]


def received(message: Message | PackedSpan) -> Any:
    """What the recorder reads of one message."""
    (only,) = read(frame(message))
    return only
