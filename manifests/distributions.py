"""The numeric columns of clips as distributions: which there are, and in which round steps each is cut.

A column travels to the page not as numbers but as codes: between which two of some hundred round numbers (marks) a
clip's value lies, or on which. A bound at a mark then keeps exactly the clips that the same bound keeps over the
Parquet, ties and strict signs included, at two bytes a clip.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manifests.accounting import without_numbers
from manifests.schema import Clip, schema

MOST_MARKS, MOST_BARS = 800, 56
NULL = 65535
# Names and places within a source, and the track's number: numbers, but not what a clip is like.
_NO_METRICS = {"shot", "start", "end", "start_ticks", "end_ticks", "track"}
# The heading above a column and those after it in the schema.
_GROUPS = {
    "duration": "Source",
    "binding_margin": "Who is heard",
    "faces_max": "Face",
    "yaw_abs": "Head pose",
    "head_rotation_speed": "Motion",
    "sync_c": "Lips and sound",
    "identity_min": "Identity",
    "speech_share": "Sound",
    "luminance": "Picture",
}


@dataclass(frozen=True)
class Metric:
    """A number that every clip has, or could have. parts: the columns of which it is the largest (else empty)."""

    name: str
    meaning: str
    unit: str
    source: str
    group: str
    whole: bool
    parts: tuple[str, ...] = ()


# The paper plots one "face rotation"; ours is the angle that a face turns at most, about whichever axis.
_ROTATED = ("yaw_p95", "pitch_p95", "roll_p95")
FACE_ROTATION = Metric("face_rotation", f"largest of {', '.join(_ROTATED)}", "degree", "", "Head pose", False, _ROTATED)
PAPER = ("sync_c", "sync_d", FACE_ROTATION.name, "face_ratio")
"""What the Hallo3 paper shows of its data in Fig. 5b: these come first."""


def metrics() -> list[Metric]:
    """Every numeric column of the clips that a bound makes sense on, and the face rotation, in the schema's order."""
    found, group = [], ""
    for field in schema(Clip):
        group = _GROUPS.get(field.name, group)
        if not (pa.types.is_integer(field.type) or pa.types.is_floating(field.type)) or field.name in _NO_METRICS:
            continue
        meaning, unit, source = (
            (field.metadata or {}).get(note, b"").decode() for note in (b"meaning", b"unit", b"source")
        )
        whole = pa.types.is_integer(field.type)
        found.append(Metric(field.name, meaning, unit, source, group or "Source", whole))
        if field.name == _ROTATED[-1]:
            found.append(FACE_ROTATION)
    return found


def values(clips: pa.Table, metric: Metric) -> np.ndarray:
    """A metric of all clips: float64 [N], NaN where it is null."""
    if metric.parts:
        return np.max([_numbers(clips[part]) for part in metric.parts], axis=0)  # NaN if one of them is
    return _numbers(clips[metric.name])


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    return pc.fill_null(pc.cast(column, pa.float64()), math.nan).to_numpy()


@dataclass(frozen=True)
class Scale:
    """Round numbers over the range of a column: (first + k) * step for k in 0..count-1, and `further` ones.

    digits: decimals of step. bar: steps that one bar of a histogram takes. Outliers lie outside: they are counted below
    the least mark or above the greatest.
    """

    first: int
    count: int
    step: float
    digits: int
    bar: int
    further: tuple[float, ...] = ()

    @property
    def marks(self) -> np.ndarray:
        """All marks in order: float64 [G]."""
        regular = [round(k * self.step, self.digits) for k in range(self.first, self.first + self.count)]
        return np.array(sorted({*regular, *self.further}))


def scale(values_N: np.ndarray, whole: bool = False, keep: Iterable[float] = ()) -> Scale:
    """The scale of a column: at most some 800 steps, and the numbers of `keep` among its marks whatever they are.

    values_N: float64, NaN is null. Beyond a range of three times the middle 98 % no marks are
    laid, so that one absurd value does not make all others one bar.
    """
    known = values_N[np.isfinite(values_N)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
    if len(known) > 50:
        inner_low, inner_high = (float(edge) for edge in np.quantile(known, [0.01, 0.99]))
        reach = inner_high - inner_low
        low, high = max(low, inner_low - reach), min(high, inner_high + reach)
    kept = list(keep)
    low, high = min([low, *kept]), max([high, *kept])
    step, digits = _round_step((high - low) / MOST_MARKS or max(abs(low), 1.0) / 100, whole)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    steps = max(last - first, 1)
    bar = math.ceil(steps / MOST_BARS)
    regular = Scale(first, math.ceil(steps / bar) * bar + 1, step, digits, bar)
    further = {*map(float, kept)} - set(regular.marks.tolist())
    return dataclasses.replace(regular, further=tuple(sorted(further)))


def _round_step(width: float, whole: bool) -> tuple[float, int]:
    """The least of 1, 2, 5 · 10ᵏ that is not under `width`, and its decimals."""
    exponent = math.floor(math.log10(width))
    for factor, more in ((1, 0), (2, 0), (5, 0), (1, 1)):
        step = float(f"{factor}e{exponent + more}")
        if step >= width * (1 - 1e-9):
            break
    return (max(step, 1.0), 0) if whole else (step, max(0, -(exponent + more)))


def codes(values_N: np.ndarray, marks_G: np.ndarray) -> np.ndarray:
    """Where each value lies among the marks: uint16 [N].

    0: below the least; 1 + 2i: on mark i; 2 + 2i: above mark i and below the next; NULL: NaN.
    """
    below = np.searchsorted(marks_G, values_N, side="right") - 1
    on = marks_G[np.maximum(below, 0)] == values_N
    found = np.where(below < 0, 0, 2 * below + 2 - on)
    return np.where(np.isnan(values_N), NULL, found).astype(np.uint16)


def missing(clips: pa.Table, reasons: int = 3) -> dict[str, list[tuple[str, int]]]:
    """Why columns are null: column -> the most frequent reasons, each with how many clips.

    Reads `unmeasured` (`column, column …: reason`; `all` stands for every metric) and `status`.
    """
    counted: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for entry in pc.list_flatten(clips["unmeasured"]).value_counts().to_pylist():
        names, _, reason = entry["values"].partition(": ")
        for name in names.split(", "):
            counted[name][without_numbers(reason or names)] += entry["counts"]
    for entry in clips["status"].value_counts().to_pylist():
        if entry["values"] is None:
            counted["all"]["not scored yet"] += entry["counts"]
    return {name: counts.most_common(reasons) for name, counts in counted.items()}


def why_missing(metric: Metric, reasons: dict[str, list[tuple[str, int]]]) -> list[tuple[str, int]]:
    """The reasons for which a metric is null, from `missing`."""
    found: collections.Counter[str] = collections.Counter()
    for name in (*(metric.parts or (metric.name,)), "all"):
        for reason, clips in reasons.get(name, ()):
            found[reason] = max(found[reason], clips)
    return found.most_common(3)


def within(codes_N: np.ndarray, marks_G: Sequence[float] | np.ndarray, sign: str, value: float) -> np.ndarray:
    """Which clips keep a bound at a mark, told from the codes alone as the page does: bool [N]; null keeps none."""
    on = 1 + 2 * int(np.flatnonzero(np.asarray(marks_G) == value)[0])
    measured = codes_N != NULL
    held = {">=": codes_N >= on, ">": codes_N > on, "<=": codes_N <= on, "<": codes_N < on}[sign]
    return held & measured
