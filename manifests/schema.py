"""Every table of the manifests: one frozen dataclass a table, one field a column.

The pyarrow schema is derived from the dataclass, so code and Parquet cannot disagree; each field's meaning, unit
and source travel in the Parquet field metadata. The first field is the table's key: rows are written and replaced
a key at a time. Times are seconds of the source's own clock: the presentation time of its first video frame is 0
(of its first sound sample, where there is no video).
"""

from __future__ import annotations

import dataclasses
import hashlib
import types
import typing
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

VERSION = "3"


def column(meaning: str, unit: str = "", source: str = "") -> Any:
    """A field of a table: what its number means, its unit, and where its definition comes from."""
    return dataclasses.field(metadata={"meaning": meaning, "unit": unit, "source": source})


class Row:
    """A row of the table that its class names."""

    table: ClassVar[str]


@dataclass(frozen=True)
class Video(Row):
    """One source file that could be opened."""

    table = "videos"
    source_id: str = column("hash of the path: names this row")
    video_id: str = column("sha256 of the file's content")
    path: str = column("where the file was read")
    bytes: int = column("size of the file", "byte")
    modified: int = column("modification time of the file", "ns since 1970")
    status: str = column(
        "how far it came: scanned, listened, proposed, scored; failed; `duplicate`: same content as an earlier path"
    )
    source_set: str = column("label of the collection: hdtf, youtube, movie, or any other")
    licence: str = column("licence as the input states it")
    url: str = column("where the footage was published")
    uploader: str = column("who published it")
    title: str = column("its title")
    asked: list[float] = column("spans asked for: start, end, start, end …; empty: the whole file", "s")
    container: str = column("container format", source="FFmpeg")
    duration: float = column("from the first frame's presentation to the end of the last", "s")
    time_base: str = column("length of one tick of the video stream", "s, as a fraction")
    width: int = column("width as shown: square pixels, rotation applied", "pixel")
    height: int = column("height as shown", "pixel")
    fps: float = column("mean frame rate", "1/s")
    frames: int | None = column("frames of the video stream; null: the container does not say", "frame")
    rotation: int = column("display rotation flag", "degree")
    video_codec: str = column("video codec", source="FFmpeg")
    audio_codec: str | None = column("audio codec; null: no sound", source="FFmpeg")
    sample_rate: int | None = column("sampling rate of the sound", "Hz")
    channels: int | None = column("channels of the sound")
    speakers: int | None = column("different voices found by diarization; null: not listened to")
    scan_mode: str = column("how the pictures were read: full or sparse")
    scan_version: str = column("hash of the settings and weights the scan was made with")
    listen_version: str = column("the same for listening; empty: not yet")
    propose_version: str = column("the same for proposing; empty: not yet")
    score_version: str = column("the same for scoring; empty: not yet")


@dataclass(frozen=True)
class Shot(Row):
    """Pictures between two cuts."""

    table = "shots"
    video_id: str = column("sha256 of the file's content")
    shot: int = column("number of the shot in its video, from 0")
    start: float = column("presentation time of its first frame", "s")
    end: float = column("presentation time of the next shot's first frame, or the end of the pictures", "s")
    start_ticks: int = column("start, in ticks of the video's time_base", "tick")
    end_ticks: int = column("end, in ticks of the video's time_base", "tick")
    start_frame: int = column("index of its first source frame", "frame")
    end_frame: int = column("index of the first frame after it", "frame")
    luminance: float = column("mean luma of its pictures, 0-255")
    sharpness: float = column("median over its looks: variance of luma's Laplacian, long side at 640 pixels")
    black_share: float = column("share of its time in which the picture is black")
    static_share: float = column("share of its time in which the picture is the one before")
    face_share: float = column("share of its looks that show a face")
    faces_max: int = column("most faces in one look")


@dataclass(frozen=True)
class Look(Row):
    """One search for faces, about once a second of a shot; the box is the largest face's."""

    table = "looks"
    video_id: str = column("sha256 of the file's content")
    shot: int = column("number of the shot in its video, from 0")
    time: float = column("presentation time of the picture", "s")
    faces: int = column("faces found")
    left: float | None = column("left edge of the largest face", "share of the width")
    top: float | None = column("top edge of the largest face", "share of the height")
    right: float | None = column("right edge of the largest face", "share of the width")
    bottom: float | None = column("bottom edge of the largest face", "share of the height")
    score: float | None = column("detector's confidence in the largest face, 0-1")


@dataclass(frozen=True)
class Turn(Row):
    """One speaker's turn, as diarization heard it; turns may overlap."""

    table = "turns"
    video_id: str = column("sha256 of the file's content")
    start: float = column("start of the turn", "s")
    end: float = column("end of the turn", "s")
    speaker: str = column("speaker within this video: S0, S1 … in order of first appearance")
    overlap: float = column("share of the turn in which others speak too")
    level: float = column("RMS level of the turn", "dBFS")
    clipped: float = column("share of samples at full scale")
    dnsmos_sig: float | None = column(
        "DNSMOS P.835 speech quality, 1-5, mean over 9 s windows; null: turn under 1 s", source="DNSMOS"
    )
    dnsmos_bak: float | None = column("DNSMOS P.835 freedom from background noise, 1-5", source="DNSMOS")
    dnsmos_ovr: float | None = column("DNSMOS P.835 overall quality, 1-5", source="DNSMOS")


@dataclass(frozen=True)
class Solo(Row):
    """A stretch in which one voice alone speaks: what clips are cut from."""

    table = "solos"
    video_id: str = column("sha256 of the file's content")
    start: float = column("start of the stretch", "s")
    end: float = column("end of the stretch", "s")
    speaker: str = column("speaker within this video")


@dataclass(frozen=True)
class Proposal(Row):
    """Where a clip lies and where it comes from."""

    video_id: str = column("sha256 of the source file's content")
    clip_id: str = column("hash of video, start, end and the proposal's settings")
    shot: int = column("number of the shot in its video, from 0")
    start: float = column("presentation time of the clip's start", "s")
    end: float = column("presentation time of the clip's end, exclusive", "s")
    start_ticks: int = column("start, in ticks of time_base", "tick")
    end_ticks: int = column("end, in ticks of time_base", "tick")
    time_base: str = column("length of one tick", "s, as a fraction")
    duration: float = column("end - start", "s")
    speaker: str = column("speaker within this video")
    faces_seen: int = column("most faces in one look of the scan")
    path: str = column("source file")
    source_set: str = column("label of the collection")
    licence: str = column("licence as the input states it")
    url: str = column("where the footage was published")
    width: int = column("source width as shown", "pixel")
    height: int = column("source height as shown", "pixel")
    fps: float = column("source's mean frame rate", "1/s")
    models: str = column("models that found it, each with the start of its sha256")


@dataclass(frozen=True)
class Metrics:
    """What a clip is like. Null: could not be measured, for the reason in `unmeasured`. See docs/metrics.md."""

    status: str | None = column("`scored`, `stopped` (by the cascade) or `failed`; null: not scored yet")
    unmeasured: list[str] = column("why columns are null: `column, column …: reason`")
    # Who is to be seen and to be heard
    track: int | None = column("number of the face track that the clip is bound to")
    person: str | None = column("that face within this video: P0, P1 … in order of first appearance")
    binding: str | None = column("how the face and the voice belong together: see docs/metrics.md")
    binding_margin: float | None = column("lip_sync of the bound track less that of the next best", "")
    speaker_person: str | None = column("whose mouth this speaker's voice fits elsewhere in the video")
    mouth_motion: float | None = column("standard deviation of the lips' opening", "mouth width")
    # The face
    faces_max: int | None = column("most faces in a frame")
    face_share: float | None = column("share of frames that show the main face")
    landmark_share: float | None = column("share of frames in which its landmarks were found")
    face_ratio: float | None = column("mean height of the face over the height of the picture")
    face_px: float | None = column("median height of the face", "pixel")
    crop: list[float] = column(
        "the box that holds the face throughout: left, top, right, bottom; empty: no face", "share"
    )
    yaw_abs: float | None = column("mean |yaw|; positive yaw: towards the subject's left", "degree")
    pitch_abs: float | None = column("mean |pitch|; positive pitch: up", "degree")
    roll_abs: float | None = column("mean |roll|; positive roll: towards the subject's left shoulder", "degree")
    yaw_p95: float | None = column("95th percentile of |yaw|", "degree")
    pitch_p95: float | None = column("95th percentile of |pitch|", "degree")
    roll_p95: float | None = column("95th percentile of |roll|", "degree")
    # Motion
    head_rotation_speed: float | None = column("mean angular speed of the head", "degree/s")
    head_travel_speed: float | None = column("speed of the face's centre, the camera's motion removed", "face height/s")
    camera_pan: float | None = column("speed of the background across the picture", "frame height/s")
    camera_zoom: float | None = column("speed at which the background grows or shrinks", "%/s")
    camera_roll: float | None = column("speed at which the background turns", "degree/s")
    subject_motion: float | None = column("mean flow in the person, the camera's motion removed", "frame height/s")
    background_motion: float | None = column("mean flow outside, the camera's motion removed", "frame height/s")
    # Lips and sound
    sync_c: float | None = column("SyncNet confidence: median - min of the distances", source="Chung & Zisserman 2016")
    sync_d: float | None = column("SyncNet distance: min over the shifts", source="Chung & Zisserman 2016")
    sync_offset: int | None = column("SyncNet offset; sound k frames late: -k", "frame at 25 fps")
    lip_sync: float | None = column("built-in lip/audio score; in sync from about 0.6, else below 0.5")
    lip_offset: float | None = column(
        "shift at which lips and sound fit best; sound k frames late: -k", "frame at 25 fps"
    )
    # Identity
    identity_min: float | None = column("least cosine similarity of the face to itself over the clip")
    identity_mean: float | None = column("mean of the same")
    # Sound
    speech_share: float | None = column("share of the time in which somebody speaks", source="diarization")
    overlap_share: float | None = column("share of the time in which several speak", source="diarization")
    speakers: int | None = column("different voices in the clip", source="diarization")
    level: float | None = column("RMS level of the sound", "dBFS")
    clipped: float | None = column("share of samples at full scale")
    music_share: float | None = column("share of the time in which there is music", source="FireRedVAD")
    dnsmos_sig: float | None = column("DNSMOS P.835 speech quality, 1-5", source="DNSMOS")
    dnsmos_bak: float | None = column("DNSMOS P.835 freedom from background noise, 1-5", source="DNSMOS")
    dnsmos_ovr: float | None = column("DNSMOS P.835 overall quality, 1-5", source="DNSMOS")
    # Picture
    luminance: float | None = column("mean luma, 0-255")
    sharpness: float | None = column("median variance of luma's Laplacian, long side at 640 pixels")
    face_sharpness: float | None = column("the same of the face, 224 pixels high")
    letterbox: float | None = column("share of the picture that is black bars")
    text_share: float | None = column("share of the picture that is writing, least of its looks", source="PaddleOCR")
    # To find copies
    picture_hash: list[int] = column("hash of a picture a second, 63 bits; -1: a flat one", source="pHash")
    sound_hash: list[int] = column("hash of the sound every 0.05 s, 32 bits; -1: none", source="Haitsma & Kalker 2002")


UNMEASURED = Metrics(**{field.name: [] if "list" in field.type else None for field in dataclasses.fields(Metrics)})  # type: ignore
"""The metrics of a clip before it is scored."""


@dataclass(frozen=True)
class Clip(Metrics, Proposal):
    """A candidate: one shot, one voice, a face on show; and what it is like."""

    table = "clips"


@dataclass(frozen=True)
class Track(Row):
    """One face through one clip, at 25 fps from the clip's start; NaN where it, or its landmarks, were lost."""

    table = "tracks"
    video_id: str = column("sha256 of the source file's content")
    clip_id: str = column("the clip")
    track: int = column("number of the track in its clip")
    person: str | None = column("whose face it is, within this video; null: seen too briefly")
    lip_sync: float | None = column("lip/audio score of this face")
    identity: list[np.float32] = column("mean face embedding; empty: none", source="identity backend")
    left: list[np.float32] = column("left edge of the face", "pixel of the source as shown")
    top: list[np.float32] = column("top edge", "pixel")
    right: list[np.float32] = column("right edge", "pixel")
    bottom: list[np.float32] = column("bottom edge", "pixel")
    yaw: list[np.float32] = column("positive: towards the subject's left", "degree")
    pitch: list[np.float32] = column("positive: up", "degree")
    roll: list[np.float32] = column("positive: towards the subject's left shoulder", "degree")
    lips_left: list[np.float32] = column("left edge of the lips", "pixel")
    lips_top: list[np.float32] = column("top edge of the lips", "pixel")
    lips_right: list[np.float32] = column("right edge of the lips", "pixel")
    lips_bottom: list[np.float32] = column("bottom edge of the lips", "pixel")
    points: list[np.float32] = column(
        "x, y of the subject's right eye, left eye, nose tip, right and left corner of the mouth, frame by frame",
        "pixel",
    )


@dataclass(frozen=True)
class Loss(Row):
    """A stretch of a video that is in no clip, and why. Clips and losses together cover each video once."""

    table = "losses"
    video_id: str = column("sha256 of the file's content")
    start: float = column("start of the stretch", "s")
    end: float = column("end of the stretch", "s")
    reason: str = column("why it is in no clip")
    stage: str = column("the stage that lost it")


@dataclass(frozen=True)
class Failure(Row):
    """Something that could not be done; the job went on without it."""

    table = "failures"
    failure_id: str = column("hash of stage and path: names this row")
    stage: str = column("the stage that failed")
    key: str = column("what it was working on: a source_id, or a clip_id")
    path: str = column("source file")
    bytes: int = column("size of the file", "byte")
    modified: int = column("modification time of the file", "ns since 1970")
    error: str = column("kind of error")
    message: str = column("what went wrong, for a person")
    attempts: int = column("how often it was tried")
    log: str = column("end of what the worker and its decoder wrote")


@dataclass(frozen=True)
class Run(Row):
    """One run of the job."""

    table = "runs"
    run_id: str = column("start time and process: names this row")
    started: str = column("start", "ISO 8601, UTC")
    seconds: float = column("wall time", "s")
    command: str = column("the command line")
    config: str = column("the whole configuration", "JSON")
    versions: str = column("versions of Python, talkreel and the libraries", "JSON")
    weights: str = column("sha256 of every model file used", "JSON")
    files: int = column("inputs worked on in this run")
    skipped: int = column("inputs that were done before")
    failed: int = column("inputs that failed in this run")
    core_seconds: str = column("CPU time of each stage", "JSON, s")


TABLES: tuple[type[Row], ...] = (Video, Shot, Look, Turn, Solo, Clip, Track, Loss, Failure, Run)

_ARROW = {str: pa.string(), float: pa.float64(), np.float32: pa.float32(), int: pa.int64(), bool: pa.bool_()}


def _arrow_type(hint: Any) -> tuple[pa.DataType, bool]:
    """Arrow type and nullability of a field's annotation."""
    if isinstance(hint, types.UnionType):
        (inner,) = [arm for arm in typing.get_args(hint) if arm is not types.NoneType]
        return _arrow_type(inner)[0], True
    if typing.get_origin(hint) is list:
        return pa.list_(_arrow_type(typing.get_args(hint)[0])[0]), False
    return _ARROW[hint], False


def _schema(row: type[Row]) -> pa.Schema:
    hints = typing.get_type_hints(row)
    fields = []
    for field in dataclasses.fields(row):  # type: ignore[arg-type]
        kind, nullable = _arrow_type(hints[field.name])
        notes = {name: text for name, text in field.metadata.items() if text}
        fields.append(pa.field(field.name, kind, nullable, metadata=notes))
    described = {"table": row.table, "about": (row.__doc__ or "").strip(), "schema_version": VERSION}
    return pa.schema(fields, metadata=described)


_SCHEMAS = {row: _schema(row) for row in TABLES}


def schema(row: type[Row]) -> pa.Schema:
    """The pyarrow schema of a table, with `meaning`, `unit` and `source` in each field's metadata."""
    return _SCHEMAS[row]


def columns(row: type[Row]) -> list[str]:
    """The column names of a table; the first is its key."""
    return _SCHEMAS[row].names


def short_hash(*parts: str | int) -> str:
    """16 hex digits that name a row: the sha256 of its parts."""
    return hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "surrogateescape")).hexdigest()[:16]
