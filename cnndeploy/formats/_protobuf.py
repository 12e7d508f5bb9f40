"""Protobuf's wire format, read without a copy, and with every length checked against the file.

Source: protobuf.dev, "Encoding".
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator
from pathlib import Path

from cnndeploy.limits import require_small

Message = memoryview | bytes
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_MAX_FIELDS = 1_000_000


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[Message]:
    """Map a file into memory; raise ValueError for an empty one, which cannot be mapped."""
    with path.open("rb") as file:
        yield memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


# If a field that should appear once appears twice, protobuf takes the last.


def text_of(message: Message, wanted: int) -> str:
    """Return a text field, empty if it is missing; raise BeyondLimit for a long one."""
    text = message_of(message, wanted)
    require_small(len(text))
    return bytes(text).decode()


def message_of(message: Message, wanted: int) -> Message:
    """Return a field that is a message or bytes, empty if it is missing."""
    return [b"", *messages_of(message, wanted)][-1]


def number_of(message: Message, wanted: int) -> int | None:
    """Return a field that is a whole number."""
    numbers = (value for number, value in fields(message) if number == wanted and isinstance(value, int))
    return [None, *numbers][-1]


def messages_of(message: Message, *wanted: int) -> Iterator[Message]:
    """Yield the fields with these numbers that are messages or bytes."""
    return (value for number, value in fields(message) if number in wanted and not isinstance(value, int))


def fields(message: Message) -> Iterator[tuple[int, int | Message]]:
    """Yield field numbers and values: an int for a varint, a view for anything else."""
    position = count = 0
    while position < len(message):
        count += 1
        tag, position = varint(message, position)
        number, wire_type = tag >> 3, tag & 7
        if number == 0 or count > _MAX_FIELDS:
            raise ValueError("a field without a number, or more fields than any model has")
        if wire_type == _VARINT:
            value, position = varint(message, position)
            yield number, value
            continue
        if wire_type == _LENGTH:
            length, position = varint(message, position)
        elif wire_type in (_FIXED32, _FIXED64):
            length = 4 if wire_type == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire_type} is not used in ONNX")
        if position + length > len(message):
            raise ValueError("the message ends before its field does")
        yield number, message[position : position + length]
        position += length


def varint(message: Message, position: int) -> tuple[int, int]:
    """Return the number at a position, and the position behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            break
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number has too many bytes")
