"""score: one clip in; all its metrics, and its faces frame by frame, out. One decode, at 25 fps by the clock.

Nothing is left out here. What cannot be measured is null, and the clip says why. docs/metrics.md has the definitions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from curation.backends.landmarks import Landmarker
from curation.backends.lips import LipSync
from curation.backends.music import MusicDetector
from curation.backends.sound import Dnsmos
from curation.backends.syncnet import SyncNet
from curation.backends.text import TextDetector
from curation.backends.tracks import Tracker
from curation.config import ScoreConfig
from curation.measures.camera import camera_motion
from curation.measures.fingerprint import picture_hash, sound_hash
from curation.measures.identity import likeness
from curation.measures.lips import LipScore
from curation.measures.motion import head_travel
from curation.measures.pose import angles, pose
from curation.measures.sound import SILENCE, clipped_share, level
from curation.stages.cast import Face, prominent
from curation.stages.link import Scored
from curation.stages.viewing import FPS, Viewing
from manifests.bounds import bound
from manifests.schema import UNMEASURED, Clip, Metrics, Track, Turn
from model import media, weights
from model.encoders.detect import CenterFace
from model.encoders.face import DlibFace, FaceEncoder, InsightFace
from model.encoders.speech import WhisperEncoder

RATE = 16_000
SYNC_SEEN = 0.9
"""Share of the frames that has to show a face for SyncNet to judge it."""
RATED_SECONDS = 1.0
"""Shorter sound is not rated: DNSMOS repeats it until it fills its window, which rates the repetition."""

Lips = LipScore | str
"""The score of a mouth, or why it has none."""


class Score:
    """Scores one clip at a time."""

    def __init__(self, config: ScoreConfig, threads: int = 1) -> None:
        """Raises BoundError for a cascade on other columns than the sound's."""
        self.samples = config.identity_samples
        self.cascade = [bound(text, SOUND_COLUMNS) for text in config.cascade]
        self.find = CenterFace(weights.path("centerface"), (640,), config.face_score, threads).at
        self.landmarks = Landmarker(weights.path("face-landmarker"))
        self.lips = LipSync(WhisperEncoder(weights.path("whisper-tiny.en"), threads), config.files()[0])
        self.rate = Dnsmos(weights.path("dnsmos"), threads, every=9)
        self.recognise = _face_encoder(config, threads)
        self.text = TextDetector(weights.path("text-detection"), threads) if config.text else None
        self.music = MusicDetector(Path(config.music), threads) if config.music else None
        self.syncnet = SyncNet(Path(config.syncnet), config.device, threads) if config.syncnet else None
        cv2.setNumThreads(threads)

    def __call__(self, source: Path, clip: Clip, turns: Sequence[Turn]) -> Scored:
        """turns: who speaks during the clip, as diarization heard it, in seconds of the source's clock.

        Raises MediaError when the pictures cannot be decoded.
        """
        tick = Fraction(clip.time_base)
        span = media.Span(clip.start_ticks * tick, clip.end_ticks * tick)
        sheet = Sheet()
        sound = _sound(source, span)
        self._hear(sheet, clip, turns, sound)
        for wanted in self.cascade:
            if (number := sheet.number(wanted.column)) is not None and not wanted.holds(number):
                sheet.put(status="stopped")
                sheet.lack(
                    f"not looked at, as {wanted.column} is {number:.3g} and {wanted} was asked for", "the picture"
                )
                return Scored(sheet.metrics(), [], [], self.recognise.same)
        frames = math.ceil((span.end - span.start) * FPS)
        crops = self.syncnet is not None
        view = Viewing(frames, self.landmarks, self.recognise, self.samples, self.text, crops)
        for image, sights in Tracker(self.find)(media.frames(source, span, Fraction(FPS))):
            view.see(image, sights)
        heard = "no sound" if sound is None else self.lips.hear(sound)
        faces = view.cast.faces()
        speech = sheet.number("speech_share") or 0.0
        lips = {face.number: self.lips.compare(face.mouth_TD, heard, speech) for face in faces}
        main = _bound(faces, lips)
        _picture(sheet, view)
        if main is None:
            sheet.lack("no face", *FACE_COLUMNS)
        else:
            _face(sheet, main, view)
            _lips(sheet, main, lips)
            self._sync(sheet, main, sound)
        tracks = [_track(clip, face, lips[face.number]) for face in faces]
        return Scored(sheet.metrics(), tracks, [face.embeddings_KD for face in faces], self.recognise.same)

    def _hear(self, sheet: Sheet, clip: Clip, turns: Sequence[Turn], sound: np.ndarray | None) -> None:
        sheet.put(**_voices(clip, turns))
        if sound is None:
            sheet.lack("no sound", "level", "clipped", "music_share", *RATED)
            return
        sheet.put(level=level(sound), clipped=clipped_share(sound), sound_hash=sound_hash(sound).tolist())
        sheet.put("score.music names no network", music_share=self.music(sound) if self.music else None)
        if len(sound) < RATED_SECONDS * RATE:
            sheet.lack(f"shorter than {RATED_SECONDS:g} s", *RATED)
        elif level(sound) <= SILENCE:
            sheet.lack("silent", *RATED)
        else:
            sheet.put(**dict(zip(RATED, self.rate(sound), strict=True)))

    def _sync(self, sheet: Sheet, face: Face, sound: np.ndarray | None) -> None:
        columns = ("sync_c", "sync_d", "sync_offset")
        seen = float(face.seen_T.mean())
        if self.syncnet is None:
            return sheet.lack("score.syncnet names no weights", *columns)
        if sound is None:
            return sheet.lack("no sound", *columns)
        if seen < SYNC_SEEN:
            return sheet.lack(f"the face is on show in {seen:.0%} of the frames, {SYNC_SEEN:.0%} needed", *columns)
        found = self.syncnet(face.crops, sound[int(face.seen_T.argmax()) * RATE // FPS :])
        if found is None:
            return sheet.lack("shorter than SyncNet's window", *columns)
        sheet.put(sync_c=found.confidence, sync_d=found.distance, sync_offset=found.offset)


class Sheet:
    """The metrics of a clip as they are found. What is not a number stays null."""

    def __init__(self) -> None:
        self._found: dict[str, Any] = {"status": "scored"}
        self._lacks: dict[str, list[str]] = {}

    def put(self, lack: str = "", /, **found: Any) -> None:
        """Set columns. lack: why those are not known that are None or NaN."""
        for column, value in found.items():
            if value is None or (isinstance(value, float) and math.isnan(value)):
                self.lack(lack or "cannot be told", column)
            else:
                self._found[column] = value

    def lack(self, reason: str, *columns: str) -> None:
        """Say why columns stay null."""
        self._lacks.setdefault(reason, []).extend(columns)

    def number(self, column: str) -> float | None:
        """What was found for a column, if anything was."""
        return self._found.get(column)

    def metrics(self) -> Metrics:
        """All columns, those that were not found null."""
        lines = [f"{', '.join(columns)}: {reason}" for reason, columns in self._lacks.items()]
        return Metrics(**{**vars(UNMEASURED), **self._found, "unmeasured": lines})


RATED = ("dnsmos_sig", "dnsmos_bak", "dnsmos_ovr")
SOUND_COLUMNS = ("speech_share", "overlap_share", "speakers", "level", "clipped", "music_share", *RATED)
FACE_COLUMNS = (
    *("face_share", "landmark_share", "face_ratio", "face_px", "face_sharpness", "yaw_abs", "pitch_abs", "roll_abs"),
    *("yaw_p95", "pitch_p95", "roll_p95", "head_rotation_speed", "head_travel_speed", "subject_motion"),
    *("identity_min", "identity_mean", "mouth_motion", "lip_sync", "lip_offset", "sync_c", "sync_d", "sync_offset"),
)


def _bound(faces: Sequence[Face], lips: Mapping[int, Lips]) -> Face | None:
    """The face that the clip is about: of those on show most of the time, the one whose lips fit the sound best.

    Where no lips can be scored, the largest.
    """
    if not faces:
        return None
    present = prominent(faces)
    scores = {face.number: score.confidence for face in present if isinstance(score := lips[face.number], LipScore)}
    if scores:
        return max((face for face in present if face.number in scores), key=lambda face: scores[face.number])
    return present[0]


def _picture(sheet: Sheet, view: Viewing) -> None:
    sheet.put(faces_max=view.cast.faces_max, picture_hash=picture_hash(np.array(view.thumbnails)).tolist())
    camera = camera_motion(view.steps_T33, FPS)
    sheet.put("the picture is black throughout", luminance=view.luminance, letterbox=view.letterbox)
    sheet.put("no pictures", sharpness=float(np.median(view.sharpness)) if view.sharpness else None)
    # What is burnt in stays: writing that is filmed, or a flicker that is taken for writing, does not.
    sheet.put("score.text=true looks for it", text_share=min(view.text) if view.text else None)
    sheet.put(
        f"the background can be followed in {camera.known:.0%} of the frames",
        camera_pan=camera.pan,
        camera_zoom=camera.zoom,
        camera_roll=camera.roll,
        background_motion=view.flow.background,
    )


def _face(sheet: Sheet, face: Face, view: Viewing) -> None:
    height, width = view.shape
    seen, marked = float(face.seen_T.mean()), float(face.marked_T.mean())
    edges = np.concatenate([np.nanmin(face.boxes_T4[:, :2], axis=0), np.nanmax(face.boxes_T4[:, 2:], axis=0)])
    sheet.put(
        track=face.number,
        face_share=seen,
        landmark_share=marked,
        face_ratio=float(np.nanmean(face.heights_T)) / height,
        face_px=float(np.nanmedian(face.heights_T)),
        crop=np.clip(edges / (width, height, width, height), 0, 1).tolist(),
    )
    sheet.put("never on show when it is measured", face_sharpness=_median(face.sharpness))
    posed = pose(face.rotations_T33, FPS)
    sheet.put(
        f"landmarks in {marked:.0%} of the frames",
        **{f"{angle}_{what}": getattr(posed, f"{angle}_{what}") for angle in _ANGLES for what in ("abs", "p95")},
        head_rotation_speed=posed.rotation_speed,
        mouth_motion=_spread(face.opening_T),
    )
    travel = head_travel(face.centres_T2(view.shape), face.heights_T / height, view.steps_T33, FPS)
    sheet.put(
        "the background cannot be followed while the face is on show",
        head_travel_speed=travel,
        subject_motion=view.flow.subject,
    )
    taken = len(face.embeddings_KD)
    sheet.put(f"{taken} face embeddings, 2 needed", **vars(likeness(face.embeddings_KD)))


_ANGLES = ("yaw", "pitch", "roll")


def _lips(sheet: Sheet, face: Face, lips: Mapping[int, Lips]) -> None:
    score = lips[face.number]
    if isinstance(score, str):
        sheet.lack(score, "lip_sync", "lip_offset")
        return
    others = [
        other.confidence for number, other in lips.items() if number != face.number and not isinstance(other, str)
    ]
    sheet.put(lip_sync=score.confidence, lip_offset=score.offset)
    if others:
        sheet.put(binding_margin=score.confidence - max(others))


def _voices(clip: Clip, turns: Sequence[Turn]) -> dict[str, Any]:
    """Shares of the clip in which somebody, and in which several, speak; and how many do."""
    spoken = [(max(turn.start, clip.start), min(turn.end, clip.end)) for turn in turns]
    edges = sorted({clip.start, clip.end, *(edge for span in spoken for edge in span)})
    counts = [
        (after - before, sum(start <= before and after <= end for start, end in spoken))
        for before, after in itertools.pairwise(edges)
    ]
    length = clip.end - clip.start
    return {
        "speech_share": sum(seconds for seconds, voices in counts if voices) / length,
        "overlap_share": sum(seconds for seconds, voices in counts if voices > 1) / length,
        "speakers": len({turn.speaker for turn in turns}),
    }


def _sound(source: Path, span: media.Span) -> np.ndarray | None:
    """The clip's sound, or None where the file has none."""
    if media.probe(source).audio is None:
        return None
    return media.audio(source, span, RATE)


def _track(clip: Clip, face: Face, score: Lips) -> Track:
    turned = [angles(rotation_33) if np.isfinite(rotation_33).all() else None for rotation_33 in face.rotations_T33]
    mean = face.embeddings_KD.mean(axis=0).tolist() if len(face.embeddings_KD) else []
    edges = ("left", "top", "right", "bottom")
    frames: dict[str, Any] = dict(zip(edges, face.boxes_T4.T.tolist(), strict=True))
    frames |= {f"lips_{edge}": values for edge, values in zip(edges, face.lips_T4.T.tolist(), strict=True)}
    frames |= {name: [float("nan") if a is None else getattr(a, name) for a in turned] for name in _ANGLES}
    return Track(
        video_id=clip.video_id,
        clip_id=clip.clip_id,
        track=face.number,
        person=None,
        lip_sync=None if isinstance(score, str) else score.confidence,
        identity=mean,
        **frames,
        points=face.points_T52.reshape(-1).tolist(),
    )


def _median(values: Sequence[float]) -> float | None:
    known = [value for value in values if math.isfinite(value)]
    return float(np.median(known)) if known else None


def _spread(values_T: np.ndarray) -> float | None:
    known = values_T[np.isfinite(values_T)]
    return float(known.std()) if len(known) > 1 else None


def _face_encoder(config: ScoreConfig, threads: int) -> FaceEncoder:
    if config.identity == "insightface":
        return InsightFace(Path(config.insightface), threads=threads)
    return DlibFace(weights.path("dlib-face"))
