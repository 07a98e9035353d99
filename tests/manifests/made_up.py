"""Made-up manifests of any size: clips with plausible numbers and gaps, their videos, losses and failures."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from manifests.schema import Clip, Failure, Loss, Row, Track, Video, schema
from manifests.store import ManifestStore
from model.media import encode

SETS = ("hdtf", "youtube", "movie")
NEVER = ("sync_c", "sync_d", "sync_offset")
LACKING = "sync_c, sync_d, sync_offset: no SyncNet weights"


def row(table: type[Row], **known: object) -> Row:
    """A row of a table; what is not given is empty or zero."""
    empty = {"string": "", "double": 0.0, "int64": 0, "bool": False, "list": []}
    values = {}
    for field in schema(table):
        kind = "list" if pa.types.is_list(field.type) else str(field.type)
        values[field.name] = None if field.nullable else empty[kind]
    return table(**{**values, **known})


def clip_table(count: int, videos: int, seed: int = 0, synced: bool = False) -> pa.Table:
    """`count` scored clips of `videos` videos, in the order of the videos; synced: with SyncNet's columns."""
    random = np.random.default_rng(seed)
    video_N = np.sort(random.integers(0, videos, count))
    place = {
        "video_id": np.array([f"{number:064x}" for number in range(videos)])[video_N],
        "clip_id": np.array([f"{number:016x}" for number in range(count)]),
        "path": np.array([f"/footage/{number:05d}.mp4" for number in range(videos)])[video_N],
        "source_set": np.array(SETS)[video_N % len(SETS)],
        "start": random.uniform(0, 600, count),
        "duration": random.gamma(4, 1.5, count) + 1.96,
        "time_base": np.full(count, "1/12800"),
        "width": np.full(count, 1280),
        "height": np.full(count, 720),
        "fps": random.choice([23.976, 25.0, 29.97], count),
        "status": np.full(count, "scored"),
        "binding": random.choice(["speaks", "undetermined", "dubbed"], count, p=[0.7, 0.2, 0.1]),
        "faces_max": random.choice([1, 2, 3], count, p=[0.8, 0.15, 0.05]),
        "speakers": random.choice([1, 2], count, p=[0.9, 0.1]),
        "level": random.normal(-23, 5, count),
        "lip_offset": random.normal(0, 2, count),
        "luminance": random.normal(110, 30, count).clip(0, 255),
        "sharpness": random.lognormal(5, 1, count),
    }
    place["end"] = place["start"] + place["duration"]
    if synced:
        place |= {"sync_c": random.gamma(6, 1, count), "sync_d": random.normal(8, 1.5, count)}
        place["sync_offset"] = np.round(random.normal(0, 2, count))
    columns = []
    for field in schema(Clip):
        if field.name == "unmeasured":
            column = pa.array([[] if synced else [LACKING]] * count, field.type)
        elif pa.types.is_list(field.type):
            column = pa.array([[]] * count, field.type)
        elif field.name in place:
            column = pa.array(place[field.name]).cast(field.type)
        elif field.name in NEVER:
            column = pa.nulls(count, field.type)
        elif pa.types.is_string(field.type):
            column = pa.array(["S0"] * count)
        elif pa.types.is_integer(field.type):
            column = pa.array(random.integers(0, 5, count))
        else:
            gaps = random.random(count) < (0.1 if field.nullable else 0)
            column = pa.array(np.where(gaps, 0, random.beta(3, 2, count)), field.type, mask=gaps)
        columns.append(column)
    return pa.table(columns, schema(Clip))


def manifests(output: Path, count: int, videos: int = 8, seed: int = 0, synced: bool = False) -> ManifestStore:
    """Manifests of `count` made-up clips, as curation writes them: a part a video."""
    store = ManifestStore(str(output))
    clips = clip_table(count, videos, seed, synced)
    Path(store.folder(Clip)).mkdir(parents=True, exist_ok=True)
    names = clips["video_id"].to_numpy()
    for number in range(videos):
        name = f"{number:064x}"
        first, last = np.searchsorted(names, name), np.searchsorted(names, name, side="right")
        own = clips.slice(first, last - first)
        pq.write_table(own, f"{store.folder(Clip)}/{name}.parquet")
        spent = float(np.sum(own["duration"].to_numpy()))
        lost = [
            row(Loss, video_id=name, start=spent, end=spent + 30.0, reason="no face", stage="scan"),
            row(Loss, video_id=name, start=spent + 30, end=spent + 45, reason="no speech", stage="listen"),
        ]
        store.write(Loss, name, lost)
        path = f"/footage/{number:05d}.mp4"
        film = row(
            Video,
            source_id=f"{number:016x}",
            video_id=name,
            path=path,
            title=f"Film {number}",
            duration=spent + 45,
            status="scored",
            source_set=SETS[number % len(SETS)],
        )
        store.write(Video, film.source_id, [film])
    return store


def failure(store: ManifestStore, number: int, message: str, path: str = "", log: str = "") -> None:
    """A failure of a file that could not be opened."""
    path = path or f"/footage/broken{number}.mp4"
    name = f"failed{number:010x}"
    found = row(Failure, failure_id=name, stage="scan", path=path, error="MediaError", message=message, log=log)
    store.write(Failure, name, [found])


def film(path: Path, seconds: float = 4.0, size: tuple[int, int] = (320, 180)) -> None:
    """A film whose picture grows brighter second by second, with a tone."""
    width, height = size
    shades = np.linspace(40, 220, round(seconds * 25)).astype(np.uint8)
    images = (np.full((height, width, 3), shade, np.uint8) for shade in shades)
    tone = 0.1 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * 16000)) / 16000)
    path.parent.mkdir(parents=True, exist_ok=True)
    encode(path, images, Fraction(25), tone.astype(np.float32), 16000, preset="ultrafast")


def filmed(output: Path, folder: Path, clips: int = 3, name: str = "talk.mp4") -> ManifestStore:
    """Manifests of one real film, `clips` clips of it, with a face that moves to the right and turns its head."""
    path = folder / name
    film(path)
    store = ManifestStore(str(output))
    video_id = f"{7:064x}"
    video = row(
        Video,
        source_id=f"{7:016x}",
        video_id=video_id,
        path=str(path),
        bytes=path.stat().st_size,
        title=name,
        duration=4.0,
        width=320,
        height=180,
        fps=25.0,
        status="scored",
        source_set="hdtf",
    )
    store.write(Video, video.source_id, [video])
    rows, tracks = [], []
    for number in range(clips):
        start, duration = 0.2 * number, 3.2
        known = {
            "video_id": video_id,
            "clip_id": f"{number:016x}",
            "path": str(path),
            "start": start,
            "end": start + duration,
            "duration": duration,
            "width": 320,
            "height": 180,
            "fps": 25.0,
            "status": "scored",
            "source_set": "hdtf",
            "track": 0,
            "face_ratio": 0.3 + 0.1 * number,
            "lip_sync": 1.0 - 0.3 * number,
        }
        rows.append(row(Clip, **known, unmeasured=[LACKING]))
        steps = np.arange(80, dtype=np.float32)
        lines = {"left": 60 + steps, "right": 140 + steps, "top": 0 * steps + 40, "bottom": 0 * steps + 120}
        angles = {"yaw": steps / 2, "pitch": 0 * steps, "roll": 0 * steps}
        lists = {column: numbers.tolist() for column, numbers in {**lines, **angles}.items()}
        tracks.append(row(Track, video_id=video_id, clip_id=known["clip_id"], track=0, **lists))
    store.write(Clip, video_id, rows)
    store.write(Track, video_id, tracks)
    return store
