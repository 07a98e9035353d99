"""The steps of the job: each stage with what it reads from the manifests, what it writes, and when it is done.

A step is done for a source when the `videos` row of that source carries the step's version: a hash of its settings
and models, and of the step before it. That row is written last, so a step that was killed half way is done again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curation.config import CurationConfig, StageResources
from curation.inputs import InputError, Source, local_copy, sha256
from curation.isolation import Limits, made
from manifests.schema import Clip, Look, Loss, Metrics, Shot, Solo, Track, Turn, Video, short_hash
from manifests.store import ManifestStore
from model import media, weights

if TYPE_CHECKING:
    from model.encoders.detect import Face

LABELS = ("source_set", "licence", "url", "uploader", "title")


class Step:
    """One stage between the manifests that it reads and those that it writes."""

    name: str
    revision: int  # raised when the same settings come to give other results
    survives = False  # whether the source goes on when one of its tasks failed

    def __init__(self, settings: Any, resources: StageResources, models: list[str], before: str):
        """before: the version of the step whose work this one builds on."""
        self.settings, self.resources, self.models = settings, resources, models
        digests = [f"{name}={weights.entry(name).sha256}" for name in models]
        self.version = short_hash(self.name, self.revision, json.dumps(dataclasses.asdict(settings)), *digests, before)

    @property
    def limits(self) -> Limits:
        wanted = self.resources
        return Limits(wanted.seconds, wanted.memory_gb, wanted.attempts, max(1, round(wanted.cpus)))

    def is_done(self, source: Source, video: Video | None) -> bool:
        """Whether the manifests hold this step's work on the source as it is now."""
        return (
            video is not None
            and (video.bytes, video.modified, tuple(video.asked)) == (source.bytes, source.modified, source.asked)
            and getattr(video, f"{self.name}_version") == self.version
        )

    def builder(self) -> Callable[[], Callable[..., Any]]:
        """A picklable function that makes the stage, called once in each worker's process."""
        raise NotImplementedError

    def tasks(self, store: ManifestStore, source: Source, video: Video | None) -> dict[str, tuple]:
        """What the stage is called with, call by call, under the key that a failure is recorded by."""
        raise NotImplementedError

    def save(self, store: ManifestStore, source: Source, video: Video | None, results: dict[str, Any]) -> Video:
        """Write what the stage returned, task by task, and last the source's `videos` row, which is returned."""
        raise NotImplementedError

    def drop(self, store: ManifestStore, video: Video) -> None:
        """Take back what this step and those after it wrote when the file, or their settings, were others."""
        raise NotImplementedError


class ScanStep(Step):
    name = "scan"
    revision = 1

    def builder(self) -> Callable[[], Callable[..., Any]]:
        return functools.partial(_scan, self.settings, self.limits.threads)

    def tasks(self, store: ManifestStore, source: Source, video: Video | None) -> dict[str, tuple]:
        return {source.source_id: (source,)}

    def save(self, store: ManifestStore, source: Source, video: Video | None, results: dict[str, Any]) -> Video:
        found, shots, looks, losses = results[source.source_id]
        if video is not None and video.video_id != found.video_id:
            self.drop(store, video)
        if found.status != "duplicate":  # its rows are the original's
            store.write(Shot, found.video_id, shots)
            store.write(Look, found.video_id, looks)
            store.write(Loss, found.video_id, losses)
        found = dataclasses.replace(found, scan_version=self.version)
        store.write(Video, source.source_id, [found])
        return found

    def drop(self, store: ManifestStore, video: Video) -> None:
        store.forget(Video, video.source_id)
        if video.status != "duplicate":
            for table in (Track, Clip, Solo, Turn, Look, Shot, Loss):
                store.forget(table, video.video_id)


class ListenStep(Step):
    name = "listen"
    revision = 1

    def builder(self) -> Callable[[], Callable[..., Any]]:
        return functools.partial(_listen, self.settings, self.limits.threads)

    def tasks(self, store: ManifestStore, source: Source, video: Video | None) -> dict[str, tuple]:
        assert video is not None
        # Without sound, or without anybody to be seen, there is nothing to listen for.
        wanted = video.audio_codec is not None and any(shot.faces_max for shot in store.read(Shot, video.video_id))
        return {source.source_id: (video.video_id, source, wanted)}

    def save(self, store: ManifestStore, source: Source, video: Video | None, results: dict[str, Any]) -> Video:
        assert video is not None
        result = results[source.source_id]
        turns, solos = result or ([], [])
        store.write(Turn, video.video_id, turns)
        store.write(Solo, video.video_id, solos)
        speakers = None if result is None else len({turn.speaker for turn in turns})
        heard = dataclasses.replace(video, status="listened", speakers=speakers, listen_version=self.version)
        store.write(Video, source.source_id, [heard])
        return heard

    def drop(self, store: ManifestStore, video: Video) -> None:
        back = _set_back(video, "listen", "propose", "score")
        store.write(Video, video.source_id, [dataclasses.replace(back, speakers=None)])
        for table in (Track, Clip, Solo, Turn):
            store.forget(table, video.video_id)


class ProposeStep(Step):
    name = "propose"
    revision = 1

    def __init__(self, *args: Any, finders: str):
        """finders: the models behind the earlier steps, recorded with each clip."""
        super().__init__(*args)
        self.finders = finders

    def builder(self) -> Callable[[], Callable[..., Any]]:
        return functools.partial(_propose, self.settings, self.finders)

    def is_done(self, source: Source, video: Video | None) -> bool:
        labelled = video is not None and all(getattr(video, label) == getattr(source, label) for label in LABELS)
        return labelled and super().is_done(source, video)

    def tasks(self, store: ManifestStore, source: Source, video: Video | None) -> dict[str, tuple]:
        assert video is not None
        video = dataclasses.replace(video, **{label: getattr(source, label) for label in LABELS})
        found = [store.read(table, video.video_id) for table in (Shot, Look, Turn, Solo)]
        lost = [loss for loss in store.read(Loss, video.video_id) if loss.stage != self.name]
        return {source.source_id: (video, *found, lost)}

    def save(self, store: ManifestStore, source: Source, video: Video | None, results: dict[str, Any]) -> Video:
        assert video is not None
        clips, losses = results[source.source_id]
        only_labels = video.propose_version == self.version  # then scores stay
        if only_labels:
            known = {clip.clip_id: clip for clip in store.read(Clip, video.video_id)}
            clips = [_scored_before(clip, known.get(clip.clip_id)) for clip in clips]
        else:
            store.forget(Track, video.video_id)
            video = dataclasses.replace(video, score_version="")
        store.write(Clip, video.video_id, clips)
        store.write(Loss, video.video_id, losses)
        labels = {label: getattr(source, label) for label in LABELS}
        done = dataclasses.replace(video, **labels, status="proposed", propose_version=self.version)
        store.write(Video, source.source_id, [done])
        return done

    def drop(self, store: ManifestStore, video: Video) -> None:
        store.write(Video, video.source_id, [_set_back(video, "propose", "score")])
        for table in (Track, Clip):
            store.forget(table, video.video_id)


class ScoreStep(Step):
    """Clip by clip: one that cannot be scored is a failure of its own."""

    name = "score"
    revision = 2
    survives = True

    def builder(self) -> Callable[[], Callable[..., Any]]:
        return functools.partial(_score, self.settings, self.limits.threads)

    def tasks(self, store: ManifestStore, source: Source, video: Video | None) -> dict[str, tuple]:
        assert video is not None
        turns = store.read(Turn, video.video_id)
        clips = store.read(Clip, video.video_id)
        return {clip.clip_id: (source.path, clip, _during(turns, clip)) for clip in clips}

    def save(self, store: ManifestStore, source: Source, video: Video | None, results: dict[str, Any]) -> Video:
        from curation.stages.link import link

        assert video is not None
        clips, tracks = link(store.read(Clip, video.video_id), results)
        store.write(Track, video.video_id, tracks)
        store.write(Clip, video.video_id, clips)
        # With a clip that failed the video is not done: `retry=true` comes back to it.
        version = self.version if len(results) == len(clips) else ""
        done = dataclasses.replace(video, status="scored", score_version=version)
        store.write(Video, source.source_id, [done])
        return done

    def drop(self, store: ManifestStore, video: Video) -> None:
        store.write(Video, video.source_id, [_set_back(video, "score")])
        store.forget(Track, video.video_id)


def _scored_before(clip: Clip, known: Clip | None) -> Clip:
    """The clip with what an earlier run measured of it."""
    measured = {field.name: getattr(known or clip, field.name) for field in dataclasses.fields(Metrics)}
    return dataclasses.replace(clip, **measured)


def _set_back(video: Video, *steps: str) -> Video:
    """The row of a video that failed, as if the steps had never been done."""
    forgotten: dict[str, Any] = {f"{step}_version": "" for step in steps}
    return dataclasses.replace(video, status="failed", **forgotten)


def steps(config: CurationConfig) -> tuple[Step, ...]:
    """The steps of a job, in order."""
    resources = config.resources
    scanning = ScanStep(config.scan, resources.scan, config.scan.models(), "")
    listening = ListenStep(config.listen, resources.listen, config.listen.models(), scanning.version)
    used = [*scanning.models, *listening.models]
    finders = " ".join(f"{name}@{weights.entry(name).sha256[:8]}" for name in used)
    proposing = ProposeStep(config.propose, resources.propose, [], listening.version, finders=finders)
    scoring = ScoreStep(config.score, resources.score, config.score.models(), _after(proposing, config.score.files()))
    every = (scanning, listening, proposing, scoring)
    return every[: [step.name for step in every].index(config.until) + 1]


def _after(step: Step, files: Sequence[Path]) -> str:
    """The version of a step together with the contents of some files."""
    try:
        return short_hash(step.version, *(sha256(str(file)) for file in files))
    except OSError as error:
        raise InputError(f"a file that scoring needs cannot be read: {error}") from error


# What runs in the workers' processes: the stage itself is built there.


def _scan(settings: Any, threads: int) -> Callable[[Source], Any]:
    from curation.stages.scan import Scan

    stage = Scan(settings, threads=threads)

    def scan(source: Source) -> Any:
        with local_copy(source.path) as path:
            if source.duplicate_of:
                return _video(source, media.probe(path), sha256(source.path), "duplicate", ""), [], [], []
            asked = [media.Span(Fraction(start), Fraction(end)) for start, end in source.spans]
            found = stage(path, asked)
        video = _video(source, found.probe, found.sha256, "scanned", found.mode)
        shots = [Shot(found.sha256, number, **dataclasses.asdict(shot)) for number, shot in enumerate(found.shots)]
        looks = [_look(found.sha256, look.shot, look.time, look.faces) for look in found.looks]
        losses = [Loss(found.sha256, loss.start, loss.end, loss.reason, "scan") for loss in found.losses]
        return video, shots, looks, losses

    return scan


def _video(source: Source, probe: media.Probe, digest: str, status: str, mode: str) -> Video:
    pictures, sound = probe.video, probe.audio
    if pictures is None:
        raise media.MediaError(f"{source.path}: no video stream ({probe.container})")
    return Video(
        source_id=source.source_id,
        video_id=digest,
        path=source.path,
        bytes=source.bytes,
        modified=source.modified,
        status=status,
        source_set=source.source_set,
        licence=source.licence,
        url=source.url,
        uploader=source.uploader,
        title=source.title,
        asked=list(source.asked),
        container=probe.container,
        duration=float(probe.duration),
        time_base=str(pictures.time_base),
        width=pictures.width,
        height=pictures.height,
        fps=float(pictures.fps),
        frames=pictures.frames,
        rotation=pictures.rotation,
        video_codec=pictures.codec,
        audio_codec=sound.codec if sound else None,
        sample_rate=sound.sample_rate if sound else None,
        channels=sound.channels if sound else None,
        speakers=None,
        scan_mode=mode,
        scan_version="",
        listen_version="",
        propose_version="",
        score_version="",
    )


def _look(video_id: str, shot: int, time: float, faces: Sequence[Face]) -> Look:
    largest = max(faces, key=lambda face: face.bottom - face.top, default=None)
    box = ("left", "top", "right", "bottom", "score")
    values = {name: None if largest is None else getattr(largest, name) for name in box}
    return Look(video_id, shot, time, len(faces), **values)


def _listen(settings: Any, threads: int) -> Callable[[str, Source, bool], Any]:
    stage: Any = None

    def listen(video_id: str, source: Source, wanted: bool) -> Any:
        nonlocal stage
        if not wanted:
            return None
        if stage is None:  # not before there is something to hear: its models are large
            from curation.stages.listen import Listen

            stage = made(functools.partial(Listen, settings, threads))
        with local_copy(source.path) as path:
            return stage(video_id, path, source.asked)

    return listen


def _propose(settings: Any, finders: str) -> Callable[..., Any]:
    from curation.stages.propose import Propose

    return Propose(settings, finders)


def _during(turns: Sequence[Turn], clip: Clip) -> list[Turn]:
    return [turn for turn in turns if turn.start < clip.end and turn.end > clip.start]


def _score(settings: Any, threads: int) -> Callable[[str, Clip, list[Turn]], Any]:
    from curation.stages.score import Score

    stage = Score(settings, threads)
    held = contextlib.ExitStack()
    at: tuple[str, Path] | None = None  # clips of one video come one after the other: copy it once

    def score(path: str, clip: Clip, turns: list[Turn]) -> Any:
        nonlocal at
        if at is None or at[0] != path:
            held.close()
            at = path, held.enter_context(local_copy(path))
        return stage(at[1], clip, turns)

    return score
