"""Bounds on columns, as people write them: `dnsmos_bak>=2.5`, `camera_pan<0.1`."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

_SIGNS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_BOUND = re.compile(r"\s*([a-z_0-9]+)\s*(>=|<=|>|<)\s*(-?[0-9.]+(?:e-?[0-9]+)?)\s*", re.IGNORECASE)


class BoundError(ValueError):
    """A bound that cannot be read, or is on a column that is not there: which, what to do."""


@dataclass(frozen=True)
class Bound:
    """A column's least or greatest value."""

    column: str
    sign: str
    value: float

    def holds(self, number: float) -> bool:
        """Whether a number keeps the bound."""
        return _SIGNS[self.sign](number, self.value)

    def __str__(self) -> str:
        return f"{self.column}{self.sign}{self.value:g}"


def bound(text: str, columns: Iterable[str]) -> Bound:
    """The bound that a text names. Raises BoundError when it names none, or a column that is not among `columns`."""
    match = _BOUND.fullmatch(text)
    if match is None:
        raise BoundError(f"{text!r} is no bound: write column>=number, with >=, <=, > or <")
    column, sign, value = match.groups()
    if column not in (known := list(columns)):
        raise BoundError(f"{text!r}: no such column here; there is {', '.join(known)}")
    return Bound(column, sign, float(value))
