"""Protocol buffers are read as they were written, and what is cut off or none is refused."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.protobuf import Bytes, fields, message, values, varint, within

numbers = st.integers(1, 1 << 20)
contents = st.one_of(st.integers(0, (1 << 64) - 1), st.binary(max_size=300))


def test_a_message_is_read_as_it_was_written() -> None:
    inner = message((1, "name"), (3, 300))
    data = message((1, 5), (2, inner), (15, b"\xff" * 200), (16, -1))
    read = dict(fields(data))
    assert list(read) == [1, 2, 15, 16]
    assert varint(data, read[1][1])[0] == 5 and varint(data, read[16][1])[0] == (1 << 64) - 1
    _, start, end = read[2]
    name, number = (place for _, place in fields(data, start, end))
    assert data[name[1] : name[2]] == b"name" and varint(data, number[1])[0] == 300
    assert data[read[15][1] : read[15][2]] == b"\xff" * 200
    assert dict(values(data)) == {1: 5, 2: inner, 15: b"\xff" * 200, 16: (1 << 64) - 1}


@given(st.lists(st.tuples(numbers, contents), max_size=8), st.sampled_from([bytes, bytearray, memoryview]))
def test_whatever_is_written_comes_back_in_order(parts: list[tuple[int, int | bytes]], kind: type[Bytes]) -> None:
    assert list(values(kind(message(*parts)))) == parts


def test_numbers_of_fixed_size_are_read_as_their_bytes() -> None:
    single, double = struct.pack("<f", -1.5), struct.pack("<d", 0.25)
    data = bytes([2 << 3 | 5]) + single + bytes([3 << 3 | 1]) + double + message((4, 7))
    assert dict(values(data)) == {2: single, 3: double, 4: 7}


def test_fields_are_found_inside_fields_of_one_number() -> None:
    data = message((1, message((7, "a"), (8, "b"))), (2, message((7, "c"))), (1, message((7, "d"))))
    whole = [(0, 0, len(data))]
    found = within(data, within(data, whole, 1), 7)
    assert [data[start:end] for _, start, end in found] == [b"a", b"d"]


@given(st.integers(0, (1 << 64) - 1), st.integers(1, 40))
def test_a_message_that_is_cut_off_anywhere_within_a_field_is_refused(number: int, length: int) -> None:
    data = message((1, number), (2, b"x" * length))
    first = len(message((1, number)))
    for cut in range(1, len(data)):
        if cut != first:
            with pytest.raises(ValueError, match="cut off"):
                list(values(data[:cut]))


def test_a_field_that_reaches_beyond_its_message_is_refused() -> None:
    """The bytes behind the message are not its own, be they there or not."""
    data = message((1, b"abc")) + b"more"
    with pytest.raises(ValueError, match="cut off: 3 bytes wanted, 2 left"):
        list(fields(data, 0, 4))


@pytest.mark.parametrize("data", [b"\x0b", b"\x0c", b"{}", b"\xff" * 11])
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a protocol buffer"):
        list(values(data))
