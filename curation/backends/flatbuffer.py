"""Tables of a FlatBuffer without their classes (flatbuffers.dev/internals): fields found through a list of offsets."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Table:
    """A table of a FlatBuffer. Fields that are not there have their default."""

    data: bytes
    at: int

    def number(self, field: int, kind: str, default: int = 0) -> int:
        """kind: as of `struct`, of a scalar field."""
        place = self._place(field)
        return default if place is None else struct.unpack_from("<" + kind, self.data, place)[0]

    def table(self, field: int) -> Table:
        place = self._place(field)
        if place is None:
            raise ValueError(f"field {field} of a table is missing")
        return Table(self.data, place + self._offset(place))

    def tables(self, field: int) -> list[Table]:
        start, count = self._vector(field)
        return [Table(self.data, place + self._offset(place)) for place in range(start, start + 4 * count, 4)]

    def array(self, field: int, kind: Any) -> np.ndarray:
        start, count = self._vector(field)
        return np.frombuffer(self.data, kind, count, start)

    def _vector(self, field: int) -> tuple[int, int]:
        place = self._place(field)
        if place is None:
            return 0, 0
        start = place + self._offset(place)
        return start + 4, self._offset(start)

    def _offset(self, place: int) -> int:
        return int(struct.unpack_from("<I", self.data, place)[0])

    def _place(self, field: int) -> int | None:
        offsets = self.at - struct.unpack_from("<i", self.data, self.at)[0]
        size, entry = struct.unpack_from("<H", self.data, offsets)[0], 4 + 2 * field
        offset = struct.unpack_from("<H", self.data, offsets + entry)[0] if entry < size else 0
        return self.at + offset if offset else None


NOTHING = Table(struct.pack("<HHi", 4, 4, 4), 4)
"""A table without fields."""
