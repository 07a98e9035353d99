"""The clips that are chosen from, counted by DuckDB: what each bound removes, in order and alone.

Only the columns that are asked about are read. A clip whose value is null or NaN does not keep a bound.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manifests.bounds import Bound
from manifests.recipe import Limit, Recipe
from manifests.schema import Clip, schema
from manifests.store import ManifestStore

_HOUR = 3_600_000_000
"""Time is added up in whole microseconds: sums of fractions depend on their order, and DuckDB's has none."""
_STATUS = (
    ("not scored yet", "status IS NULL"),
    ("stopped by the cascade", "status = 'stopped'"),
    ("could not be scored", "status NOT IN ('scored', 'stopped')"),
)


class SelectionError(ValueError):
    """A selection that cannot be made, found or read: what, where, what to do."""


@dataclass(frozen=True)
class Lost:
    """What one bound, or a status, costs.

    clips, hours: removed here, of those that what stands before it left. alone_*: what it would remove on its own.
    unmeasured: how many of those alone have no value in the column.
    """

    bound: str
    clips: int
    hours: float
    alone_clips: int
    alone_hours: float
    unmeasured: int


@dataclass(frozen=True)
class Funnel:
    """From all clips of the manifests to those chosen: `clips` = those lost, line by line, + `chosen_clips`."""

    clips: int
    hours: float
    lost: tuple[Lost, ...]
    chosen_clips: int
    chosen_hours: float

    def lines(self) -> list[str]:
        """The funnel as a table for people."""
        unit, scale = _unit(self.hours)

        def amount(hours: float, sign: str = "-") -> str:
            return f"{sign}{hours * scale:.1f}" if hours else "0"

        head = ("", "clips", unit, "alone", unit, "no value")
        rows = [("candidates", f"{self.clips}", amount(self.hours, ""), "", "", "")]
        for lost in self.lost:
            here = (f"-{lost.clips}" if lost.clips else "0", amount(lost.hours))
            alone = (f"-{lost.alone_clips}" if lost.alone_clips else "0", amount(lost.alone_hours))
            rows.append((f"  {lost.bound}", *here, *alone, f"{lost.unmeasured or ''}"))
        rows.append(("chosen", f"{self.chosen_clips}", amount(self.chosen_hours, ""), "", "", ""))
        first, *others = (max(len(row[n]) for row in (head, *rows)) for n in range(6))
        return [
            (
                f"{name:<{first}}" + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, others, strict=True))
            ).rstrip()
            for name, *cells in (head, *rows)
        ]


def duration(hours: float) -> str:
    """So many hours, for people: `12.3 h`, `4.0 min`, `9.7 s`."""
    unit, scale = _unit(hours)
    return f"{hours * scale:.1f} {unit}"


def _unit(hours: float) -> tuple[str, float]:
    """The unit in which so many hours are best told, and how many of it an hour has."""
    return ("h", 1.0) if hours >= 1 else ("min", 60.0) if hours >= 1 / 60 else ("s", 3600.0)


class Candidates:
    """Every clip of the manifests, with the columns that a recipe asks about."""

    def __init__(self, store: ManifestStore, recipe: Recipe, also: Sequence[str] = ()) -> None:
        """also: further columns to read. Raises SelectionError where there are no clips."""
        self.store, self.recipe = store, recipe
        names = dict.fromkeys(("video_id", "clip_id", "status", "duration", *recipe.columns, *also))
        self.table = store.arrow(Clip, list(names))
        if not self.table.num_rows:
            raise SelectionError(f"{store.folder(Clip)}: no clips there; make some with curation/run.py")
        self._database = duckdb.connect(config={"autoinstall_known_extensions": False})
        self.time = np.round(np.nan_to_num(self.table["duration"].to_numpy()) * 1e6).astype(np.int64)
        numbered = self.table.append_column("number", pa.array(np.arange(self.table.num_rows)))
        self._database.register("clips", numbered.append_column("us", pa.array(self.time)))

    def funnel(self) -> Funnel:
        """What the recipe leaves. Raises SelectionError for a column without a single value among scored clips."""
        limits, places = self.recipe.limits, len(_STATUS) + len(self.recipe.limits)
        out = _bits([*(test for _, test in _STATUS), *(_out(limit.bound) for limit in limits)])
        lacks = _bits([f"status = 'scored' AND {_missing(limit.bound)}" for limit in limits])
        # Clips that break the same bounds are counted together: there are few such groups, however many clips.
        query = f"SELECT out, lacks, count(*), sum(us) FROM (SELECT us, {out} AS out, {lacks} AS lacks FROM clips)"  # noqa: S608
        groups = self._database.execute(f"{query} GROUP BY out, lacks").fetchall()
        out_G, lacks_G, clips_G, us_G = (np.array(column, np.int64) for column in zip(*groups, strict=True))
        first_G = np.array([(bits & -bits).bit_length() - 1 for bits in out_G.tolist()])  # -1: none is broken

        def total(chosen_G: np.ndarray) -> tuple[int, float]:
            return int(clips_G[chosen_G].sum()), int(us_G[chosen_G].sum()) / _HOUR

        lost = []
        for place in range(places):
            alone_G = (out_G >> place & 1).astype(bool)
            lack_G = (lacks_G >> max(0, place - len(_STATUS)) & 1).astype(bool) & (place >= len(_STATUS))
            name = _STATUS[place][0] if place < len(_STATUS) else str(limits[place - len(_STATUS)].bound)
            line = Lost(name, *total(first_G == place), *total(alone_G), total(lack_G)[0])
            if line.alone_clips or place >= len(_STATUS):
                lost.append(line)
        scored = total(first_G >= len(_STATUS))[0] + total(first_G < 0)[0]
        if not scored:
            known = ", ".join(f"{line.clips} {line.bound}" for line in lost if line.clips)
            raise SelectionError(
                f"none of the {clips_G.sum()} clips is scored ({known}): run curation/run.py to its end"
            )
        for limit, line in zip(limits, lost[len(lost) - len(limits) :], strict=True):
            if line.unmeasured == scored:
                raise SelectionError(self._why_unmeasured(limit.bound, scored))
        return Funnel(*total(clips_G > 0), tuple(lost), *total(first_G < 0))

    def scored(self) -> np.ndarray:
        """Which rows of the table are scored clips: int64, ascending."""
        return self._rows("status = 'scored'")

    def kept(self) -> np.ndarray:
        """Which rows of the table keep every bound: int64, ascending."""
        return self._rows(_all_kept(self.recipe.limits))

    def hours(self, rows: np.ndarray) -> float:
        """How much the clips of some rows last, hours."""
        return int(self.time[rows].sum()) / _HOUR

    def threshold(self, along: Bound, hours: float) -> float | None:
        """The value at which a bound on this column keeps so many hours, or just more, of what the others leave.

        along: names column and side; its value does not count. None where even all of them are fewer.
        """
        others = [limit for limit in self.recipe.limits if not replaces(along, limit.bound)]
        value = f'abs("{along.column}")' if along.absolute else f'"{along.column}"'
        order = "DESC" if along.higher_is_kept else "ASC"
        query = (
            f"SELECT DISTINCT v FROM (SELECT v, sum(us) OVER (ORDER BY v {order}) AS total"  # noqa: S608
            f" FROM (SELECT us, CAST({value} AS DOUBLE) AS v FROM clips"
            f" WHERE {_all_kept(others)} AND NOT {_missing(along)}))"
            f" WHERE total >= {round(hours * _HOUR)} ORDER BY v {order} LIMIT 2"
        )
        found = [float(row[0]) for row in self._database.execute(query).fetchall()]
        return _shortest_between(found[0], found[1] if len(found) > 1 else None) if found else None

    def words(self, column: str) -> list[str]:
        """The words in a column, most frequent first."""
        query = f'SELECT "{column}" FROM clips WHERE "{column}" IS NOT NULL GROUP BY 1 ORDER BY count(*) DESC, 1'  # noqa: S608
        return [row[0] for row in self._database.execute(query).fetchall()]

    def _rows(self, condition: str) -> np.ndarray:
        query = f"SELECT number FROM clips WHERE {condition}"  # noqa: S608
        return np.sort(np.asarray(self._database.execute(query).fetchnumpy()["number"]))

    def _why_unmeasured(self, bound: Bound, scored: int) -> str:
        counts = Counter[str]()
        clips = self.store.arrow(Clip, ["status", "unmeasured"])
        for lines in clips.filter(pc.equal(clips["status"], "scored"))["unmeasured"].to_pylist():
            counts.update(reasons(bound.column, lines))
        why = "; ".join(f"{reason} ({count})" for reason, count in counts.most_common(3)) or "no reason is recorded"
        return (
            f"{bound}: {bound.column} is null in all {scored} scored clips: {why}. "
            "Give curation/run.py what it lacks and run it again, or leave this bound out"
        )


def replaces(along: Bound, other: Bound) -> bool:
    """Whether a bound takes the place of another: on the same column, on the same side."""
    return (along.subject, along.higher_is_kept) == (other.subject, other.higher_is_kept)


def _shortest_between(kept: float, dropped: float | None) -> float:
    """The number of fewest digits that keeps one value and drops another."""
    for digits in range(1, 17):
        short = float(f"{kept:.{digits}g}")
        if short == kept or (dropped is not None and min(kept, dropped) < short < max(kept, dropped)):
            return short
    return kept


def reasons(column: str, lines: Sequence[str]) -> list[str]:
    """Why a column is null: out of a clip's `unmeasured`, lines of `column, column: reason`."""
    split = [line.partition(": ") for line in lines]
    return [reason for columns, _, reason in split if column in columns.split(", ") or columns == "all"]


def _missing(bound: Bound) -> str:
    column = f'"{bound.column}"'
    fractions = pa.types.is_floating(schema(Clip).field(bound.column).type)
    return f"({column} IS NULL OR isnan({column}))" if fractions else f"({column} IS NULL)"


def _holds(bound: Bound) -> str:
    column = f'"{bound.column}"'
    if isinstance(bound.value, tuple):
        words = ", ".join("'" + word.replace("'", "''") + "'" for word in bound.value)
        return f"{column} {'IN' if bound.sign == '=' else 'NOT IN'} ({words})"
    return f"{f'abs({column})' if bound.absolute else column} {bound.sign} CAST({bound.value!r} AS DOUBLE)"


def _out(bound: Bound) -> str:
    return f"(status = 'scored' AND ({_missing(bound)} OR NOT ({_holds(bound)})))"


def _all_kept(limits: Sequence[Limit]) -> str:
    kept = [f"NOT {_missing(limit.bound)} AND {_holds(limit.bound)}" for limit in limits]
    return " AND ".join(["status = 'scored'", *kept])


def _bits(tests: Sequence[str]) -> str:
    """A number whose n-th bit, from the lowest, is the n-th test's outcome."""
    return " | ".join(["0::BIGINT", *(f"(coalesce({test}, FALSE)::BIGINT << {n})" for n, test in enumerate(tests))])
