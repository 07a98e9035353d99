"""Protocol buffers without their classes: where the fields of a message lie, what they hold, and new ones.

Encoding: protobuf.dev/programming-guides/encoding. Numbers of fields come from the .proto files that the callers name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

Bytes = bytes | bytearray | memoryview
Field = tuple[int, int, int]
"""Where a field's tag, its content and its end lie."""
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types; strings, messages and packed numbers are BYTES."""
_LONGEST = 10  # bytes of a varint


def fields(data: Bytes, at: int = 0, end: int | None = None) -> Iterator[tuple[int, Field]]:
    """Number and place of each field of the message that lies there.

    Raises ValueError where it is cut off, or is none.
    """
    end = len(data) if end is None else end
    while at < end:
        tag = at
        key, at = varint(data, at)
        wire = key & 7
        start, size = at, 0
        if wire == BYTES:
            size, start = varint(data, at)
        elif wire == VARINT:
            _, after = varint(data, at)
            size = after - at
        elif wire in (FIXED32, FIXED64):
            size = 4 if wire == FIXED32 else 8
        else:
            raise ValueError(f"not a protocol buffer (field of kind {wire})")
        at = start + size
        if at > end:
            raise ValueError(f"cut off: {size} bytes wanted, {max(0, end - start)} left")
        yield key >> 3, (tag, start, at)


def within(data: Bytes, messages: Sequence[Field], number: int) -> list[Field]:
    """The fields of that number directly inside the messages."""
    return [field for _, start, end in messages for n, field in fields(data, start, end) if n == number]


def values(data: Bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field of a message: an int of a varint, else the bytes. Raises ValueError as above."""
    for number, (tag, start, end) in fields(data):
        is_varint = varint(data, tag)[0] & 7 == VARINT
        yield number, varint(data, start)[0] if is_varint else bytes(data[start:end])


def varint(data: Bytes, at: int) -> tuple[int, int]:
    """An integer, seven bits a byte, and where the next thing starts. Raises ValueError where it does not end."""
    value = 0
    for shift, place in enumerate(range(at, min(at + _LONGEST, len(data)))):
        value |= (data[place] & 127) << 7 * shift
        if data[place] < 128:
            return value, place + 1
    raise ValueError("cut off, or not a protocol buffer")


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
