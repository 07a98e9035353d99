"""Films with scored clips, written as curation writes them, and packing without Ray: for the tests of packing."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curation import pipeline, steps
from curation.backends.tracks import Tracker
from curation.config import PackConfig
from curation.inputs import _stat, sha256
from curation.isolation import Fault, Outcome, SetupError, made
from curation.pack_job import planned_job
from curation.packing import Outcome as Packed
from curation.packing import assembled, run
from curation.place import Place
from manifests import selection
from manifests.recipe import Recipe
from manifests.schema import Clip, Track, Video, short_hash
from manifests.store import ManifestStore
from model import media, weights
from model.encoders.detect import CenterFace
from tests.curation.clips import clip

SMALL: dict[str, Any] = {"width": 192, "height": 128, "frames": 9, "stride": 30, "upscale": True, "preset": "ultrafast"}
"""Settings with which a clip is packed in a moment."""


def curated(output: Path, films: dict[Path, Sequence[tuple[float, float]]]) -> ManifestStore:
    """Manifests with the spans of the films as clips, as the job writes them, but little measured beside the face."""
    store = ManifestStore(str(output))
    for path, spans in films.items():
        digest = sha256(str(path))
        clips, tracks = [], []
        for start, end in spans:
            whole = clip(path, start, end, short_hash(digest, repr(start), repr(end)))
            measured = {"status": "scored", "track": 0, "person": "P0", "face_share": 1.0}
            clips.append(dataclasses.replace(whole, video_id=digest, path=str(path), **measured))
            tracks.append(followed(path, clips[-1]))
        written(store, path, clips, tracks)
    return store


def written(store: ManifestStore, path: Path, clips: list[Clip], tracks: list[Track]) -> None:
    """Write the rows of one film."""
    source = _stat(str(path))
    video = steps._video(source, media.probe(path), clips[0].video_id, "scored", "full")
    store.write(Track, video.video_id, tracks)
    store.write(Clip, video.video_id, clips)
    store.write(Video, source.source_id, [video])


def select(output: Path, name: str = "all") -> selection.Selection:
    """A selection of every clip."""
    chosen = selection.choose(ManifestStore(str(output)), Recipe(name, "everything", ()), name=name)
    selection.write(str(output), chosen)
    return chosen


class Here:
    """Does the work in this very process: all of the job but Ray, and but the process that a stage has of its own."""

    def __enter__(self) -> None: ...

    def __exit__(self, *error: Any) -> None: ...

    def pack(self, step: Any, sources: Any, staging: str) -> Iterator[pipeline.Record]:
        worker = pipeline.Worker(step, staging, None, True)
        worker.cell = Bare(step.builder())  # type: ignore[assignment]
        for source in sources:
            yield worker.advance(pipeline.Record(source.to_json()))

    def assemble(self, place: str, wanted: Any, absent: set[str]) -> Callable[[], list]:
        return lambda: [assembled(place, shard, absent) for shard in wanted]


class Bare:
    """What isolation.Cell makes of a row, without a process: Python takes seconds to load what a stage needs."""

    def __init__(self, build: Callable[[], Callable[..., Any]]) -> None:
        self.build, self.stage = build, None

    def __call__(self, *row: Any) -> Outcome:
        self.stage = self.stage or made(self.build)
        try:
            return Outcome(self.stage(*row), None, 0.0)
        except SetupError:
            raise
        except Exception as error:
            return Outcome(None, Fault(type(error).__name__, str(error), 1, ""), 0.0)


def pack(output: Path | str, place: Path | str, **asked: Any) -> Packed:
    """Pack the selection `all`, small, without Ray."""
    return run(planned_job(config(output, place, **asked)), Here())


class Killed(BaseException):
    """No error of a clip: the end."""


def stopped(output: Path, place: Path, number: int, **asked: Any) -> bool:
    """Pack until the file of that number is to be written; whether that came before the job's own end."""
    written, left = Place._written, number

    def counting(self: Place, *rest: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed
        return written(self, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Place, "_written", counting)
        try:
            pack(output, place, **asked)
        except Killed:
            return True
    return False


def config(output: Path | str, place: Path | str, **asked: Any) -> PackConfig:
    return PackConfig(**{"output": str(output), "selection": "all", "shards": str(place), **SMALL, **asked})


def files(place: Path) -> dict[str, bytes]:
    """Every file of a finished folder."""
    return {str(path.relative_to(place)): path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}


def samples(place: Path) -> dict[str, dict[str, bytes]]:
    """Members of every sample, read with tarfile alone."""
    found: dict[str, dict[str, bytes]] = {}
    for shard in sorted(place.glob("*.tar")):
        with tarfile.open(shard) as archive:
            for member in archive:
                key, ending = member.name.split(".", 1)
                source = archive.extractfile(member)
                assert source is not None
                found.setdefault(key, {})[ending] = source.read()
    return found


def array(content: bytes) -> np.ndarray:
    return np.load(io.BytesIO(content), allow_pickle=False)


def facts(sample: dict[str, bytes]) -> dict[str, Any]:
    return json.loads(sample["json"])


def followed(path: Path, whole: Clip) -> Track:
    """The largest face of a film, followed as scoring does, without all that is measured of it."""
    find = CenterFace(weights.path("centerface"), (640,)).at
    tick = Fraction(whole.time_base)
    span = media.Span(whole.start_ticks * tick, whole.end_ticks * tick)
    sights = [seen for _, seen in Tracker(find)(media.frames(path, span, Fraction(25)))]
    sizes: dict[int, float] = {}
    for seen in sights:
        for number, sight in seen.items():
            sizes[number] = sizes.get(number, 0.0) + float(np.prod(sight.box[2:] - sight.box[:2]))
    main = max(sizes, key=lambda number: sizes[number])
    lost = np.full(4, np.nan), np.full((5, 2), np.nan)
    boxes_T4 = np.stack([seen[main].box if main in seen else lost[0] for seen in sights])
    points_T52 = np.stack([seen[main].points if main in seen else lost[1] for seen in sights])
    return track(whole, boxes_T4, points_T52)


def track(whole: Clip, boxes_T4: np.ndarray, points_T52: np.ndarray | None = None) -> Track:
    """A track of these boxes; lips in the lower half of the face."""
    if points_T52 is None:
        points_T52 = np.repeat(((boxes_T4[:, :2] + boxes_T4[:, 2:]) / 2)[:, None], 5, axis=1)
    middle_T, quarter_T = (boxes_T4[:, 1] + boxes_T4[:, 3]) / 2, (boxes_T4[:, 2] - boxes_T4[:, 0]) / 4
    lips_T4 = np.stack([boxes_T4[:, 0] + quarter_T, middle_T, boxes_T4[:, 2] - quarter_T, boxes_T4[:, 3]], axis=1)
    edges = ("left", "top", "right", "bottom")
    frames = dict(zip(edges, boxes_T4.astype(np.float32).T.tolist(), strict=True))
    frames |= {f"lips_{edge}": values for edge, values in zip(edges, lips_T4.T.tolist(), strict=True)}
    frames |= {name: [float("nan")] * len(boxes_T4) for name in ("yaw", "pitch", "roll")}
    return Track(
        video_id=whole.video_id,
        clip_id=whole.clip_id,
        track=0,
        person="P0",
        lip_sync=None,
        identity=[],
        **frames,
        points=points_T52.astype(np.float32).reshape(-1).tolist(),
    )
