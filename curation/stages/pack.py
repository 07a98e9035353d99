"""pack: one chosen clip in, its training samples out. One decode (two of a clip with black bars), each window encoded
as its last frame comes by.

A sample is a window of the clip with all that training needs of it: see docs/packing.md for every member. Nothing here
depends on the moment or the machine's load: the same clip and settings give the same bytes.

T: frame, H, W, C: height, width, channels. N: motion frame. K: reference. h, w: latent positions. D: width of a vector.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from curation.captions import Captioner, Captions
from curation.config import LATENTS, PackConfig
from curation.measures import picture
from curation.plan import Window, picked
from curation.shards import npy
from manifests.schema import Clip, Metrics, Track
from model import codecs, media, motion, weights
from model.crop import Box, Crop, head_crop
from model.encoders import speech, text
from model.encoders.face import DlibFace, FaceEncoder, InsightFace
from model.encoders.vocals import RATE as VOCALS_RATE
from model.encoders.vocals import VocalSeparator

FPS = 25
RATE = 16_000
STEP = RATE // FPS
"""Samples of sound a frame."""
BLEND = 2
"""Lines inside a black bar's edge that it is blended into."""


class PackError(Exception):
    """A clip that cannot be packed: why, what to do."""


@dataclass(frozen=True)
class Subject:
    """The face of a clip, in pixels of the source, NaN where it was lost: boxes_T4, lips_T4, points_T52."""

    boxes_T4: np.ndarray
    lips_T4: np.ndarray
    points_T52: np.ndarray

    @staticmethod
    def of(track: Track) -> Subject:
        edges = ("left", "top", "right", "bottom")
        boxes_T4 = np.array([getattr(track, edge) for edge in edges], np.float64).T
        lips_T4 = np.array([getattr(track, f"lips_{edge}") for edge in edges], np.float64).T
        points_T52 = np.array(track.points, np.float64).reshape(len(boxes_T4), 5, 2)
        return Subject(boxes_T4, lips_T4, points_T52)

    def __len__(self) -> int:
        return len(self.boxes_T4)

    @property
    def seen(self) -> np.ndarray:
        """Frames that show the face, with its five points known."""
        return np.flatnonzero(np.isfinite(self.boxes_T4).all(axis=1) & np.isfinite(self.points_T52).all(axis=(1, 2)))


@dataclass(frozen=True)
class Context:
    """What is known of the whole clip and goes into each of its samples."""

    clip: Clip
    subject: Subject
    crop: Crop
    caption: str
    speech_TLD: np.ndarray | None
    text_SD: np.ndarray | None
    references: Sequence[int]
    faces: Mapping[int, Sequence[int]]
    """First frame of a window -> the frames whose faces are embedded for it."""


class Pack:
    """Packs one clip at a time."""

    def __init__(self, config: PackConfig, threads: int = 1) -> None:
        """Loads the models that the contents need."""
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)
        self.config = config
        self.captions = Captions(config.captions)
        wanted, device, precision = set(config.contents), config.device, getattr(torch, config.precision)
        self.codec: codecs.Codec | None = None
        self.speech: speech.SpeechEncoder | None = None
        self.vocals: VocalSeparator | None = None
        self.text: text.TextEncoder | None = None
        self.recognise: FaceEncoder | None = None
        self.captioner: Captioner | None = None
        if wanted & LATENTS:
            self.codec = codecs.load(config.codec, config.codec_source, device, precision)
        if "audio" in wanted:
            self.speech = speech.load(config.speech, config.speech_source, device)
            if config.vocals:
                self.vocals = VocalSeparator(Path(config.vocals), config.vocals_fft, threads)
        if "text" in wanted:
            self.text = text.load(config.text, config.text_source, device, precision)
        if "face" in wanted:
            self.recognise = _face_encoder(config, threads)
        if config.captioner:
            self.captioner = Captioner(config.captioner, device)

    def __call__(
        self, source: Path, clip: Clip, track: Track, starts: Sequence[int]
    ) -> Iterator[tuple[Window, dict[str, bytes]]]:
        """The clip's samples: window and members, ending -> content.

        starts: first frames of the windows that are wanted, increasing. Raises PackError, CropError, CaptionError or
        MediaError where the clip cannot be packed.
        """
        subject = Subject.of(track)
        crop = self.crop(source, clip, subject)
        caption = self.captions(clip)
        sound_N = self.sound(source, clip, len(subject))
        references = self.references(clip, subject)
        faces = {first: self.face_frames(clip, subject, first) for first in starts}
        with tempfile.TemporaryDirectory(prefix="talkreel-") as folder:
            seen = self._watch(source, clip, subject, crop, starts, references, faces, sound_N, Path(folder))
            if not caption and self.captioner:
                caption = self.captioner(seen.pictures[references[0]])
            context = Context(
                clip,
                subject,
                crop,
                caption,
                self.states(source, clip, sound_N) if self.speech else None,
                np.asarray(self.text.encode(caption)) if self.text else None,
                references,
                faces,
            )
            latents_KChw = self._stills([seen.pictures[index] for index in references], "reference")
            for first in starts:
                members = self._sample(context, first, seen, latents_KChw, Path(folder))
                yield Window(clip.clip_id, first), members

    def crop(self, source: Path, clip: Clip, subject: Subject) -> Crop:
        """The box that is cut out of the clip."""
        config, area = self.config, self.area(source, clip, subject)
        size = (config.width, config.height)
        return head_crop(subject.boxes_T4, clip.width, clip.height, size, config.room, config.upscale, config.pad, area)

    def area(self, source: Path, clip: Clip, subject: Subject) -> Box | None:
        """The part of the clip's pictures between their black bars; None where scoring saw no bars.

        Scoring wrote down how much the bars cover, not where they are: the clip is decoded once more to see.
        """
        if not clip.letterbox:
            return None
        brightest_HW = np.zeros((clip.height, clip.width), np.uint8)
        for image_HWC in self.frames(source, clip, subject):
            np.maximum(brightest_HW, cv2.cvtColor(image_HWC, cv2.COLOR_RGB2GRAY), out=brightest_HW)
        found = picture.between_bars(brightest_HW)
        if found is None:
            return None
        left, top, right, bottom = found
        return (
            left + BLEND * (left > 0),
            top + BLEND * (top > 0),
            right - BLEND * (right < clip.width),
            bottom - BLEND * (bottom < clip.height),
        )

    def sound(self, source: Path, clip: Clip, frames: int) -> np.ndarray:
        """The clip's sound, float32 at 16 kHz: as long as its frames."""
        if media.probe(source).audio is None:
            if self.speech is not None:
                raise PackError("the source has no sound: leave `audio` out of contents, or this clip out")
            return np.zeros(frames * STEP, np.float32)
        start = _span(clip).start
        return media.audio(source, media.Span(start, start + Fraction(frames, FPS)), RATE)

    def states(self, source: Path, clip: Clip, sound_N: np.ndarray) -> np.ndarray:
        """The speech embedding of the clip's sound; of the voice in it where a separator is named: [T, layers, D]."""
        assert self.speech is not None
        frames = len(sound_N) // STEP
        if self.vocals is not None:
            start = _span(clip).start
            span = media.Span(start, start + Fraction(frames, FPS))
            sound_N = self.vocals(media.audio(source, span, VOCALS_RATE, layout="stereo"))
        return self.speech.frames(sound_N, frames)

    def nothing(self) -> bytes:
        """The vectors of the empty caption, as `text.npy` would hold them."""
        assert self.text is not None
        return npy(_finite(self.text.encode(""), "text"))

    def references(self, clip: Clip, subject: Subject) -> list[int]:
        """Frames of the clip that show the face, drawn by the seed and the clip's id."""
        if not len(subject.seen):
            raise PackError("no frame shows the face with its eyes, nose and mouth")
        return picked(self.config.seed, f"reference\0{clip.clip_id}", subject.seen, self.config.reference_frames)

    def face_frames(self, clip: Clip, subject: Subject, first: int) -> list[int]:
        """Frames whose faces are embedded for a window: one, or with `face=all` all that are drawn for the clip."""
        drawn = picked(self.config.seed, f"face\0{clip.clip_id}", subject.seen, self.config.face_samples)
        if self.config.face == "all":
            return drawn
        return picked(self.config.seed, f"face\0{clip.clip_id}\0{first}", np.array(drawn), 1)

    def frames(self, source: Path, clip: Clip, subject: Subject) -> Iterator[np.ndarray]:
        """The clip's pictures as curation saw them, uint8 [H, W, 3] RGB; raises PackError where they are others."""
        left = len(subject)
        for image_HWC in media.frames(source, _span(clip), Fraction(FPS)):
            left -= 1
            if image_HWC.shape[:2] != (clip.height, clip.width) or left < 0:
                break
            yield image_HWC
        else:
            if left == 0:
                return
        raise PackError(
            f"the source's pictures are not those that were scored ({len(subject)} of {clip.width}x{clip.height}): "
            "curate it again"
        )

    def _watch(
        self,
        source: Path,
        clip: Clip,
        subject: Subject,
        crop: Crop,
        starts: Sequence[int],
        references: Sequence[int],
        faces: Mapping[int, Sequence[int]],
        sound_N: np.ndarray,
        folder: Path,
    ) -> Seen:
        """One pass over the clip's pictures. What is made of a window is kept in the folder, as there may be many."""
        length, before = self.config.frames, self.config.motion_frames
        embedded = {frame for frames in faces.values() for frame in frames} if self.recognise else set()
        held: dict[int, np.ndarray] = {}
        seen = Seen({}, {})
        due = list(starts)
        for index, image_HWC in enumerate(self.frames(source, clip, subject)):
            if self.recognise and index in embedded:
                seen.faces[index] = self.recognise(image_HWC, subject.points_T52[index])
            held[index] = crop.cut(image_HWC)
            if index in references:
                seen.pictures[index] = held[index]
            if due and index == due[0] + length - 1:
                first = due.pop(0)
                window = [held[max(0, n)] for n in range(first - before, first + length)]
                self._window(window, first, sound_N, folder)
            # Kept are the frames that a window to come begins with; frame 0 stands in for those before it.
            oldest = due[0] - before if due else index + 1
            held = {n: image for n, image in held.items() if n >= max(0, oldest)}
        return seen

    def _window(self, frames: Sequence[np.ndarray], first: int, sound_N: np.ndarray, folder: Path) -> None:
        """Encode a window and the motion frames before it. frames: uint8 [H, W, 3], the motion frames first."""
        before = self.config.motion_frames
        if "video" in self.config.contents:
            sound = _stretch(sound_N, (first - before) * STEP, len(frames) * STEP)
            path = folder / f"{first}.mp4"
            media.encode(path, frames, Fraction(FPS), sound, RATE, self.config.crf, self.config.preset)
        if "latent" in self.config.contents and self.codec is not None:
            latents_TChw = self.codec.encode(codecs.signed(frames[before:]))
            (folder / f"{first}.latent.npy").write_bytes(npy(_half(latents_TChw, "latent")))
        if "motion" in self.config.contents:
            (folder / f"{first}.motion.npy").write_bytes(npy(self._stills(frames[:before], "motion")))

    def _stills(self, frames: Sequence[np.ndarray], member: str) -> np.ndarray:
        """Latents of single pictures, float16 [n, C, h, w]; none where the contents have no such member.

        Motion is scaled as the denoiser's condition takes it, references as all latents are.
        """
        if self.codec is None or member not in self.config.contents:
            return np.zeros((0, 0, 0, 0), np.float16)
        encode = motion.encode if member == "motion" else codecs.each_alone
        return _half(encode(self.codec, codecs.signed(frames)), member)

    def _sample(
        self, context: Context, first: int, seen: Seen, latents_KChw: np.ndarray, folder: Path
    ) -> dict[str, bytes]:
        """A window's members, by ending."""
        contents, frames = self.config.contents, self.config.frames
        members = {"json": _json(self.facts(context, first))}
        if "video" in contents:
            members["mp4"] = (folder / f"{first}.mp4").read_bytes()
        for name in ("latent", "motion"):
            if name in contents:
                members[f"{name}.npy"] = (folder / f"{first}.{name}.npy").read_bytes()
        if "reference" in contents:
            members["reference.npy"] = npy(latents_KChw)
        if self.recognise is not None:
            vectors_SD = np.stack([seen.faces[frame] for frame in context.faces[first]]).astype(np.float32)
            members["face.npy"] = npy(vectors_SD if self.config.face == "all" else vectors_SD[0])
        if context.speech_TLD is not None:
            margin = self.config.audio_margin
            rows = np.clip(np.arange(first - margin, first + frames + margin), 0, len(context.speech_TLD) - 1)
            members["audio.npy"] = npy(_finite(context.speech_TLD[rows], "audio"))
        if context.text_SD is not None:
            members["text.npy"] = npy(_finite(context.text_SD, "text"))
        if "mask" in contents:
            subject, stretch = context.subject, slice(first, first + frames)
            boxes_T24 = np.stack([subject.boxes_T4[stretch], subject.lips_T4[stretch]], axis=1)
            members["mask.npy"] = npy(context.crop.place(boxes_T24).astype(np.float32))
        return members

    def facts(self, context: Context, first: int) -> dict[str, Any]:
        """The sample's .json: where it comes from, what it is like, where everything lies in it."""
        clip, crop, before = context.clip, context.crop, self.config.motion_frames
        measured = {field.name for field in dataclasses.fields(Metrics)}
        boxes_K4 = crop.place(context.subject.boxes_T4[list(context.references)])
        taken = list(context.faces[first])
        drawn: dict[str, Any] = {}
        if "reference" in self.config.contents:
            drawn["reference"] = {"frames": list(context.references), "faces": boxes_K4.round(3).tolist()}
        if "face" in self.config.contents:
            drawn["face"] = {"frames": taken} if self.config.face == "all" else {"frame": taken[0]}
        return {
            "clip": {name: value for name, value in vars(clip).items() if name not in measured},
            "metrics": {name: value for name, value in vars(clip).items() if name in measured},
            "caption": context.caption,
            "window": {
                "first": first,
                "frames": self.config.frames,
                "fps": FPS,
                "start": float(_span(clip).start + Fraction(first, FPS)),
                "clip_frames": len(context.subject),
                "motion_frames": before,
                "repeated": max(0, before - first),
                "audio_margin": self.config.audio_margin,
                "sample_rate": RATE,
            },
            "crop": {
                "left": crop.left,
                "top": crop.top,
                "width": crop.width,
                "height": crop.height,
                "share": [
                    crop.left / clip.width,
                    crop.top / clip.height,
                    (crop.left + crop.width) / clip.width,
                    (crop.top + crop.height) / clip.height,
                ],
                "scale": crop.scale,
                "upscaled": crop.scale > 1,
                "padded": crop.padded,
                "shown": list(crop.shown),
            },
            **drawn,
            "made_with": self.made_with(),
        }

    def made_with(self) -> dict[str, str]:
        """The models behind the members, by role."""
        config = self.config
        roles = {
            "codec": (self.codec, config.codec, config.codec_source),
            "speech": (self.speech, config.speech, config.speech_source),
            "vocals": (self.vocals, self.vocals.sha256 if self.vocals else "", ""),
            "text": (self.text, config.text, config.text_source),
            "face": (self.recognise, config.identity, config.insightface),
            "captioner": (self.captioner, config.captioner, ""),
        }
        return {role: " ".join(filter(None, names)) for role, (model, *names) in roles.items() if model is not None}


@dataclass(frozen=True)
class Seen:
    """What was taken from the pictures, by frame. pictures: those of the references, cut; faces: their vectors."""

    pictures: dict[int, np.ndarray]
    faces: dict[int, np.ndarray]


def _span(clip: Clip) -> media.Span:
    tick = Fraction(clip.time_base)
    return media.Span(clip.start_ticks * tick, clip.end_ticks * tick)


def _stretch(sound_N: np.ndarray, start: int, length: int) -> np.ndarray:
    """A stretch of the sound; silence where it reaches beyond."""
    before = max(0, -start)
    inside = sound_N[max(0, start) : max(0, start + length)]
    return np.pad(inside, (before, max(0, length - before - len(inside))))


def _half(latents: torch.Tensor, member: str) -> np.ndarray:
    return _finite(latents.detach().float().cpu().numpy(), member)


def _finite(values: np.ndarray, member: str) -> np.ndarray:
    """The values as float16; raises PackError where they do not fit."""
    half = np.asarray(values).astype(np.float16)
    if not np.isfinite(half).all():
        raise PackError(f"{member}: its numbers do not fit into float16, or are none")
    return half


def _json(facts: Mapping[str, Any]) -> bytes:
    return json.dumps(_known(facts), ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace")


def _known(value: Any) -> Any:
    """The value with null for what is not a number, which JSON cannot say."""
    if isinstance(value, Mapping):
        return {key: _known(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_known(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _face_encoder(config: PackConfig, threads: int) -> FaceEncoder:
    if config.identity == "insightface":
        return InsightFace(Path(config.insightface), threads=threads)
    return DlibFace(weights.path("dlib-face"))
