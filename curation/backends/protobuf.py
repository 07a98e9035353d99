"""Protobuf messages without their classes: where the fields of one lie, and new ones.

Encoding: protobuf.dev/programming-guides/encoding. Numbers of fields come from the .proto files that the callers name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

Bytes = bytes | bytearray | memoryview
Field = tuple[int, int, int]
"""Where a field's tag, its content and its end lie."""
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types; strings, messages and packed numbers are BYTES."""


def fields(data: Bytes, at: int = 0, end: int | None = None) -> Iterator[tuple[int, Field]]:
    """Number and place of each field of the message that lies there."""
    end = len(data) if end is None else end
    while at < end:
        tag = at
        key, at = varint(data, at)
        wire = key & 7
        if wire == BYTES:
            length, start = varint(data, at)
            at = start + length
        elif wire == VARINT:
            start = at
            _, at = varint(data, at)
        else:
            start, at = at, at + (4 if wire == FIXED32 else 8)
        yield key >> 3, (tag, start, at)


def within(data: Bytes, messages: Sequence[Field], number: int) -> list[Field]:
    """The fields of that number directly inside the messages."""
    return [field for _, start, end in messages for n, field in fields(data, start, end) if n == number]


def varint(data: Bytes, at: int) -> tuple[int, int]:
    """An integer, seven bits a byte, and where the next thing starts."""
    value = shift = 0
    while data[at] >= 128:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
    return value | data[at] << shift, at + 1


def message(*parts: tuple[int, int | str | Bytes]) -> bytes:
    """A message of fields: number and value."""
    return b"".join(_field(number, value) for number, value in parts)


def _field(number: int, value: int | str | Bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3 | VARINT) + _varint(value % (1 << 64))
    content = value.encode() if isinstance(value, str) else bytes(value)
    return _varint(number << 3 | BYTES) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 128:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])
