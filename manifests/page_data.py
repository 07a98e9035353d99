"""What the page's script works on: every clip's columns as codes in one compressed block, and the facts around them.

The block, little endian, zlib: per metric N low bytes, then N high bytes of its codes (see distributions.py); N bytes
of source set; per rule N bytes, 1 where a clip breaks it; N float32 durations in seconds. N is the number of clips.
"""

from __future__ import annotations

import base64
import dataclasses
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from manifests.contact_sheet import FPS, Preview
from manifests.distributions import (
    NULL,
    PAPER,
    Metric,
    codes,
    metrics,
    missing,
    scale,
    values,
    why_missing,
)

_MOST_SETS = 12
_BYTE = 255


@dataclass(frozen=True)
class Edge:
    """A recipe's bound that a slider can hold. source: where its number comes from."""

    column: str
    sign: str
    value: float
    source: str


@dataclass(frozen=True)
class Rule:
    """Anything else that drops clips: it can be switched off as a whole. broken_N: bool, the clips it drops.

    where: the bound as a command line takes it; empty: none does.
    """

    text: str
    source: str
    where: str
    broken_N: np.ndarray


@dataclass(frozen=True)
class Pick:
    """A clip on the contact sheet: its place among all clips, and its preview."""

    index: int
    preview: Preview


@dataclass(frozen=True)
class Unmeasured:
    """A metric that no clip has, and why: the most frequent reasons with how many clips."""

    metric: Metric
    reasons: list[tuple[str, int]]


@dataclass(frozen=True)
class PageData:
    """What travels: `facts` as JSON, `block` as base64 of the compressed columns; and what could not."""

    facts: dict[str, Any]
    block: str
    unmeasured: list[Unmeasured]


def page_data(
    clips: pa.Table, edges: Sequence[Edge], rules: Sequence[Rule], picks: Sequence[Pick], command: str
) -> PageData:
    """Everything that the script needs. clips: the table of all clips; command: what a selection begins with."""
    reasons = missing(clips)
    pieces: list[np.ndarray] = []
    facts: list[dict[str, Any]] = []
    unmeasured: list[Unmeasured] = []
    numbers: dict[str, np.ndarray] = {}
    for metric in sorted(metrics(), key=_place):
        values_N = values(clips, metric)
        known = int(np.isfinite(values_N).sum())
        if not known:
            unmeasured.append(Unmeasured(metric, why_missing(metric, reasons)))
            continue
        laid = scale(values_N, metric.whole, [edge.value for edge in edges if edge.column == metric.name])
        codes_N = codes(values_N, laid.marks)
        pieces += [(codes_N & _BYTE).astype(np.uint8), (codes_N >> 8).astype(np.uint8)]
        numbers[metric.name] = values_N
        why = why_missing(metric, reasons) if known < len(values_N) else []
        facts.append(
            {
                **dataclasses.asdict(metric),
                "paper": metric.name in PAPER,
                "known": known,
                "why": [f"{reason} ({count:,})" for reason, count in why],
                "scale": dataclasses.asdict(laid),
            }
        )
    names, sets_N = _sets(clips)
    pieces += [sets_N, *(rule.broken_N.astype(np.uint8) for rule in rules)]
    durations_N = values(clips, next(metric for metric in metrics() if metric.name == "duration"))
    raw = b"".join(piece.tobytes() for piece in pieces) + durations_N.astype("<f4").tobytes()
    whole = {
        "clips": clips.num_rows,
        "null": NULL,
        "metrics": facts,
        "sets": names,
        "edges": [dataclasses.asdict(edge) for edge in edges],
        "rules": [{"text": rule.text, "source": rule.source, "where": rule.where} for rule in rules],
        "cards": [_card(clips, pick, numbers) for pick in picks],
        "fps": float(FPS),
        "command": command,
    }
    return PageData(whole, base64.b64encode(zlib.compress(raw, 6)).decode(), unmeasured)


def _place(metric: Metric) -> int:
    """What the paper shows comes first; all else in the schema's order."""
    return PAPER.index(metric.name) if metric.name in PAPER else len(PAPER)


def _sets(clips: pa.Table) -> tuple[list[str], np.ndarray]:
    """The source sets, the largest first, and each clip's: uint8 [N]; beyond a dozen they are one."""
    counted = clips["source_set"].value_counts().to_pylist()
    ordered = [row["values"] for row in sorted(counted, key=lambda row: (-row["counts"], row["values"]))]
    names = ordered if len(ordered) <= _MOST_SETS else [*ordered[: _MOST_SETS - 1], "all others"]
    place = {name: min(index, len(names) - 1) for index, name in enumerate(ordered)}
    encoded = clips["source_set"].combine_chunks().dictionary_encode()
    table = np.array([place[name] for name in encoded.dictionary.to_pylist()], np.uint8)
    return names, table[encoded.indices.to_numpy()] if len(table) else np.zeros(0, np.uint8)


_SHOWN = ("clip_id", "path", "source_set", "start", "end", "speaker", "person", "binding", "status")


def _card(clips: pa.Table, pick: Pick, numbers: dict[str, np.ndarray]) -> dict[str, Any]:
    """A clip of the contact sheet: who it is, its exact numbers, its film."""
    row = {name: clips[name][pick.index].as_py() for name in _SHOWN}
    exact = {name: values_N[pick.index] for name, values_N in numbers.items()}
    preview = dataclasses.asdict(pick.preview)
    return {
        **row,
        "index": pick.index,
        "values": {name: float(f"{value:.6g}") for name, value in exact.items() if np.isfinite(value)},
        **preview,
        "film": base64.b64encode(pick.preview.film).decode(),
    }
