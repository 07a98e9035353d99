"""Clips out of nothing: a table of their schema with the columns that a test is about, laid down as a job lays it."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from manifests.schema import Clip, Row, Video, schema
from manifests.store import ManifestStore, from_arrow, publish

HUNDREDTH = 36.0
"""Seconds in a hundredth of an hour: how long a clip is unless it is said."""


def clips(**columns: Any) -> pa.Table:
    """Scored clips of one video, a hundredth of an hour each, with these columns; lists of one length."""
    count = len(next(iter(columns.values())))
    plain: dict[str, Any] = {
        "video_id": ["v"] * count,
        "clip_id": [f"{n:016x}" for n in range(count)],
        "status": ["scored"] * count,
        "duration": [HUNDREDTH] * count,
    }
    return _table(Clip, count, {**plain, **columns})


def many(count: int, seed: int = 0, per_video: int = 10) -> pa.Table:
    """Scored clips as a large job would leave them: numbers in every column, some null, some clips failed."""
    random = np.random.default_rng(seed)
    video = np.arange(count) // per_video
    columns: dict[str, Any] = {}
    for field in schema(Clip):
        if pa.types.is_floating(field.type):
            columns[field.name] = pa.array(random.gamma(4, 0.25, count), mask=_some(random, count, 0.03, field))
        elif pa.types.is_integer(field.type):
            columns[field.name] = pa.array(random.integers(0, 12, count), mask=_some(random, count, 0.03, field))
    ids = random.integers(0, 2**63, count, dtype=np.int64)
    names = np.array([uuid.UUID(int=int(n)).hex * 2 for n in range(video[-1] + 1)])
    columns |= {
        "clip_id": [f"{number:016x}" for number in ids],
        "video_id": names[video],
        "path": np.char.add(np.char.add("/raw/set/", names[video]), ".mp4"),
        "duration": random.uniform(1.96, 20, count),
        "status": random.choice(["scored"] * 18 + ["stopped", "failed"], count),
        "source_set": np.where(video % 3, "youtube", "hdtf"),
        "licence": ["CC-BY"] * count,
        "models": ["centerface@09189dea segmentation-3.0@640c3975 cam++@92f29b94 silero-vad@1a153a22"] * count,
        "binding": random.choice(["speaks", "undetermined", "dubbed"], count),
        "person": random.choice(["P0", "P1"], count),
        "crop": pa.ListArray.from_arrays(np.arange(0, 4 * count + 1, 4), random.random(4 * count)),
        "unmeasured": pa.ListArray.from_arrays(
            np.arange(count + 1, dtype=np.int32), pa.array(["sync_c, sync_d, sync_offset: a reason"] * count)
        ),
        "sync_c": random.gamma(9, 0.6, count),
        "sync_offset": random.integers(-9, 10, count),
    }
    return _table(Clip, count, columns)


def films(count: int) -> pa.Table:
    """Rows of the table `videos`."""
    names = [f"{n:016x}" for n in range(count)]
    versions = {name: ["0123456789abcdef"] * count for name in schema(Video).names if name.endswith("_version")}
    return _table(Video, count, {"source_id": names, "video_id": [name * 4 for name in names], **versions})


def lay(output: Path | str, table: pa.Table, row: type[Row] = Clip) -> ManifestStore:
    """Write rows as parts, a key at a time."""
    store = ManifestStore(str(output))
    rows: dict[str, list] = {}
    key = schema(row).names[0]
    for one in from_arrow(row, table):
        rows.setdefault(getattr(one, key), []).append(one)
    for name, those in rows.items():
        store.write(row, name, those)
    return store


def pack(output: Path | str, table: pa.Table, row: type[Row] = Clip) -> ManifestStore:
    """Write rows as the one pack that a compaction leaves."""
    store = ManifestStore(str(output))
    store._write_file(f"{store.folder(row)}/pack-0.parquet", table)
    publish(store.filesystem, f"{store.folder(row)}/_packs", b"pack-0.parquet")
    return store


def _table(row: type[Row], count: int, columns: dict[str, Any]) -> pa.Table:
    plain = {"string": "", "int64": 0, "double": 0.0}
    arrays = []
    for field in schema(row):
        values = columns.get(field.name)
        if values is None:
            nothing = [] if pa.types.is_list(field.type) else None if field.nullable else plain[str(field.type)]
            values = pa.repeat(pa.scalar(nothing, field.type), count)
        arrays.append(
            values if isinstance(values, pa.Array) and values.type == field.type else pa.array(values, field.type)
        )
    return pa.Table.from_arrays(arrays, schema=schema(row))


def _some(random: np.random.Generator, count: int, share: float, field: pa.Field) -> np.ndarray | None:
    return random.random(count) < share if field.nullable else None
