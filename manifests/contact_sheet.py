"""A few clips to look at: a fair sample, and of each a short film with sound, the faces' boxes and the head's pose."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from manifests.schema import Track, Video
from manifests.store import ManifestError, ManifestStore, locate
from model.media import MediaError, Span, audio, encode, frames

SECONDS = Fraction(3)
FPS = Fraction(25, 2)  # every second frame of a track
TRACK_FPS = 25
SOUND_RATE = 12000
_AREA = 256 * 160
_QUALITY = 29


def sample(values_N: np.ndarray, kept_N: np.ndarray, count: int, seed: int = 0) -> list[int]:
    """Indices of at most `count` clips: half of the kept, half of the dropped ones, each half spread along a metric.

    values_N: float64, NaN is null. Each half is sorted (null last), cut into as many equal stretches as it may give
    clips, and one is drawn of every stretch; where one half is short, the other gives more.
    """
    random = np.random.default_rng(seed)
    kept, dropped = np.flatnonzero(kept_N), np.flatnonzero(~np.asarray(kept_N, bool))
    half = max(min(len(kept), (count + 1) // 2), count - len(dropped))
    chosen: list[int] = []
    for group, share in ((kept, half), (dropped, count - half)):
        ordered = group[np.argsort(values_N[group], kind="stable")]
        if stretches := min(share, len(ordered)):
            chosen += [int(random.choice(stretch)) for stretch in np.array_split(ordered, stretches)]
    return chosen


Overlay: TypeAlias = list[list[float | None] | None]
"""A face, frame by frame: left, top, right, bottom (shares of the picture), yaw, pitch, roll (degrees; None where its
landmarks were lost); None where the face was."""


@dataclass(frozen=True)
class Preview:
    """A clip's short film, and what is drawn over it.

    film: an mp4 at `fps`, or empty where there is none, and then `why`. size: width, height of the film.
    bound: the face that the clip is bound to; others: the other faces in it.
    """

    film: bytes
    why: str
    size: tuple[int, int]
    bound: Overlay
    others: list[Overlay]


def previews(store: ManifestStore, clips: pa.Table, moving: bool = True) -> Iterator[Preview]:
    """The preview of each clip, in order; a clip whose footage is not there has one without a film."""
    faces = _faces(store, clips)
    sizes = _file_sizes(store, clips)
    for row in clips.select(["clip_id", "video_id", "path", "start", "end", "width", "height", "track"]).to_pylist():
        film, why = b"", ""
        size = _size(row["width"], row["height"])
        first, count = _window(row["start"], row["end"], moving)
        try:
            with _footage(row["path"], sizes.get(row["video_id"])) as source:
                film = _film(source, Fraction(row["start"]) + Fraction(first, TRACK_FPS), count, size, sound=moving)
        except (MediaError, ManifestError, OSError) as error:
            why = str(error)
        drawn = {face.track: _overlay(face, first, count) for face in faces[row["clip_id"]]}
        bound = drawn.pop(row["track"], [])
        yield Preview(film, why, size, bound, list(drawn.values()))


def _window(start: float, end: float, moving: bool) -> tuple[int, int]:
    """The first track frame and the number of preview frames: the clip's middle three seconds, or its middle frame."""
    total = max(1, math.ceil((end - start) * TRACK_FPS - 1e-3))
    count = min(int(SECONDS * FPS), (total + 1) // 2) if moving else 1
    return max(0, (total - 2 * count) // 2), count


def _size(width: int, height: int) -> tuple[int, int]:
    """Even sizes of the same shape and a fixed area."""
    shrink = min(1.0, math.sqrt(_AREA / max(1, width * height)))
    return max(2, round(width * shrink / 2) * 2), max(2, round(height * shrink / 2) * 2)


@contextlib.contextmanager
def _footage(path: str, expected_bytes: int | None) -> Iterator[str | BinaryIO]:
    """The source file, local or in a bucket. Raises MediaError when it is not there or not the one that was scored."""
    filesystem, inner = locate(path)
    found = filesystem.get_file_info(inner)
    if found.type != fs.FileType.File:
        raise MediaError("the footage is not there")
    if expected_bytes is not None and found.size != expected_bytes:
        raise MediaError("the footage has changed since it was curated")
    if isinstance(filesystem, fs.LocalFileSystem):
        yield inner
        return
    with filesystem.open_input_file(inner) as stream:
        yield cast(BinaryIO, stream)


def _film(source: str | BinaryIO, start: Fraction, count: int, size: tuple[int, int], sound: bool) -> bytes:
    """An mp4 of `count` frames from `start` on. Raises MediaError."""
    span = Span(start, start + count / FPS)
    images = list(frames(source, span, FPS, size))
    if not images:
        raise MediaError("no picture of the clip can be decoded")
    samples = audio(source, span, SOUND_RATE) if sound else None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "preview.mp4")
        rate = SOUND_RATE if sound else None
        encode(path, images, FPS, samples, rate, crf=_QUALITY, preset="slow")
        return path.read_bytes()


@dataclass(frozen=True)
class _Face:
    """One face through one clip, at 25 fps: boxes as shares of the picture, angles in degrees; NaN where lost."""

    track: int
    boxes_T4: np.ndarray
    pose_T3: np.ndarray


_EDGES, _ANGLES = ("left", "top", "right", "bottom"), ("yaw", "pitch", "roll")


def _faces(store: ManifestStore, clips: pa.Table) -> dict[str, list[_Face]]:
    """The faces of these clips by clip_id."""
    shapes = {row["clip_id"]: row for row in clips.select(["clip_id", "width", "height"]).to_pylist()}
    wanted = ["video_id", "clip_id", "track", *_EDGES, *_ANGLES]
    found: dict[str, dict[int, _Face]] = {clip: {} for clip in shapes}
    packed = False
    for video in pc.unique(clips["video_id"]).to_pylist():
        if store.filesystem.get_file_info(f"{store.folder(Track)}/{video}.parquet").type == fs.FileType.File:
            rows = [vars(track) for track in store.read(Track, video)]
            _gather(found, shapes, rows)
        else:
            packed = True
    if packed:  # one pass over the packs rather than one a video
        clip_ids = pa.array(list(shapes), pa.string())
        for batch in store.batches(Track, wanted):
            _gather(found, shapes, batch.filter(pc.is_in(batch["clip_id"], clip_ids)).to_pylist())
    return {clip: list(faces.values()) for clip, faces in found.items()}


def _gather(found: dict[str, dict[int, _Face]], shapes: dict[str, dict], rows: Iterable[dict[str, Any]]) -> None:
    for row in rows:
        if (shape := shapes.get(row["clip_id"])) is not None:
            boxes_T4 = np.array([row[edge] for edge in _EDGES], np.float64).T
            boxes_T4 = boxes_T4 / np.tile([shape["width"], shape["height"]], 2)
            pose_T3 = np.array([row[angle] for angle in _ANGLES], np.float64).T
            found[row["clip_id"]][row["track"]] = _Face(row["track"], boxes_T4, pose_T3)


def _file_sizes(store: ManifestStore, clips: pa.Table) -> dict[str, int]:
    """The size in bytes of the files that these clips were cut from, when they were scanned."""
    videos = store.arrow(Video, ["video_id", "path", "bytes"])
    videos = videos.filter(pc.is_in(videos["path"], pc.unique(clips["path"])))
    return dict(zip(videos["video_id"].to_pylist(), videos["bytes"].to_pylist(), strict=True))


def _overlay(face: _Face, first: int, count: int) -> Overlay:
    """Box and pose of a face in the preview's frames."""
    drawn: Overlay = []
    for index in range(first, first + 2 * count, 2):
        if index >= len(face.boxes_T4) or not np.isfinite(face.boxes_T4[index]).all():
            drawn.append(None)
            continue
        drawn.append([*_rounded(face.boxes_T4[index], 3), *_rounded(face.pose_T3[index], 0)])
    return drawn


def _rounded(numbers: np.ndarray, digits: int) -> list[float | None]:
    return [round(float(number), digits) if math.isfinite(number) else None for number in numbers]
