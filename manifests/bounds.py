"""Bounds on columns, as people write them: `dnsmos_bak>=2.5`, `abs(sync_offset)<=6`, `binding=speaks`."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pyarrow as pa

_SIGNS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_EQUAL, _UNEQUAL = "=", "!="
_BOUND = re.compile(r"\s*(?:(abs)\(\s*([a-z_0-9]+)\s*\)|([a-z_0-9]+))\s*(>=|<=|!=|>|<|=)\s*(.*?)\s*", re.IGNORECASE)
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?", re.IGNORECASE)


class BoundError(ValueError):
    """A bound that cannot be read, or is on a column that is not there: which, what to do."""


@dataclass(frozen=True)
class Bound:
    """A column's least or greatest value; or the words, or whole number, that it has to be (=) or not to be (!=).

    absolute: it is the column's magnitude that is bounded.
    """

    column: str
    sign: str
    value: float | tuple[str, ...]
    absolute: bool = False

    @property
    def subject(self) -> str:
        """What is bounded: `sync_c`, `abs(sync_offset)`."""
        return f"abs({self.column})" if self.absolute else self.column

    @property
    def higher_is_kept(self) -> bool | None:
        """Which side of the value is kept; None where it is not a side."""
        return {">": True, "<": False}.get(self.sign[0])

    def holds(self, value: float | str) -> bool:
        """Whether a value keeps the bound; NaN keeps none."""
        if isinstance(value, float) and value != value:
            return False
        if isinstance(value, str):
            same = isinstance(self.value, tuple) and value in self.value
        else:
            number = abs(value) if self.absolute else value
            if self.sign in _SIGNS:
                assert isinstance(self.value, float)
                return _SIGNS[self.sign](number, self.value)
            same = number == self.value
        return same if self.sign == _EQUAL else not same

    def __str__(self) -> str:
        value = "|".join(self.value) if isinstance(self.value, tuple) else _shortest(self.value)
        return f"{self.subject}{self.sign}{value}"


def bound(text: str, columns: pa.Schema | Iterable[str]) -> Bound:
    """The bound that a text names.

    columns: a schema, by which words are told from numbers; or names, of columns that all hold numbers with fractions.
    Raises BoundError when it names none, or a column that is not there, or what its column cannot be.
    """
    kinds = columns if isinstance(columns, pa.Schema) else pa.schema([(name, pa.float64()) for name in columns])
    match = _BOUND.fullmatch(text)
    if match is None:
        raise BoundError(f"{text!r} is no bound: write column>=number, with >=, <=, > or <, or column=word")
    magnitude, inner, plain, sign, value = match.groups()
    column = inner or plain
    if column not in kinds.names:
        raise BoundError(f"{text!r}: no such column here; {_nearest(column, kinds.names)}")
    kind = kinds.field(column).type
    if pa.types.is_string(kind):
        if sign in _SIGNS or magnitude:
            raise BoundError(f"{text!r}: {column} holds words: write {column}=word, or {column}=word|word, or !=")
        return Bound(column, sign, tuple(word.strip() for word in value.split("|")))
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise BoundError(f"{text!r}: {column} holds lists, which cannot be bounded")
    if not _NUMBER.fullmatch(value):
        raise BoundError(f"{text!r} is no bound: {column} holds numbers, {value!r} is none")
    if sign not in _SIGNS and pa.types.is_floating(kind):
        raise BoundError(f"{text!r} is no bound: {column} has fractions, so write >=, <=, > or <")
    return Bound(column, sign, float(value), bool(magnitude))


def _nearest(column: str, names: list[str]) -> str:
    near = difflib.get_close_matches(column, names, 1, 0.6)
    return f"did you mean {near[0]!r}?" if near else f"there is {', '.join(names)}"


def _shortest(number: float) -> str:
    """The number in the fewest digits that read back as the same."""
    short = f"{number:g}"
    return short if float(short) == number else repr(number)
