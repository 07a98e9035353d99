"""The step of the packing job: the clips of one source, between the manifests and the staging folder."""

from __future__ import annotations

import contextlib
import functools
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation import shards
from curation.config import PackConfig
from curation.inputs import Source, local_copy, sha256
from curation.isolation import SetupError
from curation.place import FULL, Place, ShardError
from curation.plan import Window
from curation.shards import staged
from curation.steps import Step
from manifests.schema import Clip, Track, Video, columns
from manifests.store import ManifestStore, locate
from model import media


class PackStep(Step):
    """Clip by clip of a source: one that cannot be packed is a failure of its own."""

    name = "pack"
    revision = 3
    survives = True

    def __init__(self, config: PackConfig, orders: str) -> None:
        """orders: the file that says which windows of which clips go where."""
        super().__init__(config, config.resources, config.models(), "")
        self.orders = orders

    def builder(self) -> Callable[[], Callable[..., Any]]:
        return functools.partial(_packer, self.settings, self.limits.threads)

    def is_done(self, source: Source, video: Video | None) -> bool:
        """Whether all that was ordered is staged already: where Ray sends a source for the second time."""
        place = Place(self.settings.place)
        return all(
            shards.is_staged(place, shard, Window(clip.clip_id, int(first)).key)
            for clip, homes in self._orders(source)
            for first, shard in homes.items()
        )

    def tasks(self, store: ManifestStore, source: Source, video: Video | None) -> dict[str, tuple]:
        manifests = ManifestStore(self.settings.output)
        known = next(iter(manifests.read(Video, source.source_id)), None)
        orders = self._orders(source)
        videos = {clip.video_id for clip, _ in orders}
        now = {clip.clip_id: clip for video in videos for clip in manifests.read(Clip, video)}
        tracks = {(track.clip_id, track.track): track for video in videos for track in manifests.read(Track, video)}
        return {
            clip.clip_id: (known, clip, now.get(clip.clip_id), tracks.get((clip.clip_id, clip.track or 0)), homes)
            for clip, homes in orders
        }

    def save(self, store: ManifestStore, source: Source, video: Video | None, results: dict[str, Any]) -> Any:
        return _Saved()  # the samples are staged

    def _orders(self, source: Source) -> list[tuple[Clip, dict[str, str]]]:
        place = Place(self.settings.place)
        found = pq.read_table(
            place.path(self.orders), filesystem=place.filesystem, filters=pc.field("path") == source.path
        )
        homes = [json.loads(home) for home in found["homes"].to_pylist()]
        clips = [Clip(**row) for row in found.select(columns(Clip)).to_pylist()]
        return list(zip(clips, homes, strict=True))


@dataclass(frozen=True)
class _Saved:
    status: str = "packed"


# What runs in the workers' processes: the stage itself is built there.


def _packer(config: PackConfig, threads: int) -> Callable[..., int]:
    from curation import hallo3
    from curation.stages.pack import Pack, PackError

    stage, place = Pack(config, threads), Place(config.place)
    held = contextlib.ExitStack()
    begun = False
    at: tuple[str, Path] | None = None  # clips of one video come one after the other: copy and check it once

    def pack(known: Video | None, clip: Clip, now: Clip | None, track: Track | None, homes: Mapping[str, str]) -> int:
        nonlocal at, begun
        if stage.text is not None and not begun:
            with _stopping():  # before the first sample: where samples are staged, so is this
                shards.stage_nothing(place, stage.nothing)
        begun = True
        if track is None or clip != now:
            raise PackError("the manifests have changed since it was chosen: choose again with manifests/filter.py")
        if at is None or at[0] != clip.path:
            at = None
            held.close()
            unchanged(clip, known)
            at = clip.path, held.enter_context(local_copy(clip.path))
        with _room():
            if config.format == "hallo3":
                for name, content in hallo3.files(stage, at[1], clip, track):
                    _publish(place, name, content)
                line = json.dumps(hallo3.entry(place, clip, stage.captions(clip)))
                _publish(place, staged(homes["0"], Window(clip.clip_id, 0).key), line.encode())
                return 1
            for window, members in stage(at[1], clip, track, sorted(map(int, homes))):
                name = staged(homes[str(window.first)], window.key)
                _publish(place, name, shards.archived(window.key, members))
        return len(homes)

    return pack


def unchanged(clip: Clip, known: Video | None) -> None:
    """Raises PackError where the source is not the file that was curated; by its sha256, where its date is another."""
    from curation.stages.pack import PackError

    try:
        filesystem, inner = locate(clip.path)
        there = filesystem.get_file_info(inner)
        if known is not None and (there.size, there.mtime_ns) == (known.bytes, known.modified):
            return
        if sha256(clip.path) == clip.video_id:
            return
    except FileNotFoundError:
        raise PackError(f"{clip.path}: gone since it was curated") from None
    except OSError as error:
        raise PackError(f"{clip.path}: cannot be read: {error}") from error
    raise PackError(f"{clip.path}: another file than the one that was curated (sha256 {clip.video_id[:12]}…)")


def _publish(place: Place, name: str, content: bytes) -> None:
    with _stopping():
        place.publish(name, content)


@contextlib.contextmanager
def _stopping() -> Iterator[None]:
    """A place that takes no more stops the job."""
    try:
        yield
    except ShardError as error:
        raise SetupError(str(error)) from error


@contextlib.contextmanager
def _room() -> Iterator[None]:
    """A full folder for temporary files stops the job; else the clip would get the blame."""
    try:
        yield
    except (OSError, media.MediaError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if getattr(cause, "errno", None) in FULL:
            raise SetupError(
                f"{tempfile.gettempdir()}: no room left for temporary files; make room or set TMPDIR, and the same "
                "command goes on from here"
            ) from error
        raise
