"""What a sample is made of: the members of its stretch of a tar file, and the arrays in them.

Headers are parsed where they lie and refused where they are not what packing writes; nothing is unpickled or copied.
"""

from __future__ import annotations

import io
import math
from functools import lru_cache
from tokenize import TokenError

import numpy as np

_BLOCK = 512
_LONGEST = 10_000
"""Bytes within which an array's header must end (numpy's own bound)."""


class BrokenSampleError(Exception):
    """One sample that cannot be used, and why; others may be."""


def members(key: str, content: memoryview) -> dict[str, memoryview]:
    """The members of a sample, by ending. content: the members of a tar archive, as packing writes them.

    Raises BrokenSampleError for anything else: links, folders, names that are not the sample's own, cut off content.
    """
    found: dict[str, memoryview] = {}
    place = 0
    while place < len(content):
        name, size = _header(bytes(content[place : place + _BLOCK]), place)
        dot = name.find(".", len(key))
        if name[: dot + 1] != f"{key}." or "/" in name or not name[dot + 1 :]:
            raise BrokenSampleError(f"a member {name!r}, which is none of {key}'s files")
        place += _BLOCK
        if place + size > len(content):
            raise BrokenSampleError(f"{name} is cut off")
        found[name[dot + 1 :]] = content[place : place + size]
        place += size + -size % _BLOCK
    return found


def _header(block: bytes, place: int) -> tuple[str, int]:
    """Name and size of a tar archive's member (POSIX ustar; tarfile takes ten times as long for what else there is).

    Raises BrokenSampleError for anything but a plain file with a name of its own.
    """
    try:
        expected = int(block[148:156].strip(b"\0 "), 8)
        size = int(block[124:136].strip(b"\0 "), 8)
    except ValueError:
        expected = size = -1
    if len(block) < _BLOCK or size < 0 or expected != sum(block) - sum(block[148:156]) + 8 * 32:
        raise BrokenSampleError(f"no member of a tar archive at byte {place}")
    name = block[:100].split(b"\0", 1)[0].decode("utf-8", "backslashreplace")
    prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
    if block[156:157] not in (b"0", b"\0") or prefix:
        raise BrokenSampleError(f"a member {name!r} of kind {block[156:157]!r}, which is none of a sample's files")
    return name, size


def array(content: memoryview) -> np.ndarray:
    """The array of a .npy file, as a view of its bytes. Raises BrokenSampleError where it is none, or pickled."""
    try:
        start, shape, kind = _npy_header(bytes(content[: _npy_length(content)]))
    except ValueError as error:
        raise BrokenSampleError(str(error)) from error
    count = math.prod(shape)
    if count * kind.itemsize != len(content) - start:
        raise BrokenSampleError(f"{len(content) - start} bytes for an array {list(shape)} of {kind}")
    return np.frombuffer(content, kind, count, start).reshape(shape)


def _npy_length(content: memoryview) -> int:
    """Bytes of a .npy file's header. Raises ValueError where it does not begin like one."""
    if bytes(content[:6]) != b"\x93NUMPY" or len(content) < 12 or content[6] not in (1, 2):
        raise ValueError("not a .npy file")
    wide = content[6] == 2
    length = int.from_bytes(content[8 : 12 if wide else 10], "little") + (12 if wide else 10)
    if length > min(_LONGEST, len(content)):
        raise ValueError("the header of a .npy file is cut off, or too long")
    return length


@lru_cache(maxsize=1024)
def _npy_header(header: bytes) -> tuple[int, tuple[int, ...], np.dtype]:
    """Length of the header, shape and type: samples are alike, so most headers have been seen before."""
    source = io.BytesIO(header)
    version = np.lib.format.read_magic(source)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, by_columns, kind = read(source)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError, TokenError) as error:
        raise ValueError(f"the header of a .npy file is not readable: {str(error).splitlines()[0]}") from error
    if kind.hasobject:
        raise ValueError("a pickled array, which may run anything when it is read")
    if kind.kind not in "fiub" or not kind.isnative or by_columns or min(shape, default=0) < 0:
        raise ValueError(
            f"an array {list(shape)} of {kind}, by {'columns' if by_columns else 'rows'}, is not packed here"
        )
    return source.tell(), shape, kind
