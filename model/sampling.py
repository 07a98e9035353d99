"""Sampling a talking portrait of any length: guided denoising, clip by clip, each going on from the last one's end.

A clip is a window of `length` frames. Ours follow each other: the n last frames of one are the motion condition of the
next, and are not made again. With compat=hallo3 a clip begins with n frames that the one before ended with; they are
made again and dropped, as the released code does. Every draw is from a generator of its own for each clip.

B rows of guidance, T video frames, F latent frames, C channels, H×W pixels, h×w latent positions, S text tokens,
D their width, W frames of a window, N hidden states of speech.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from model import motion
from model.attention import Keys
from model.codecs import Codec, latents_for, shown, signed
from model.conditioning import windows
from model.config import ModelConfig
from model.diffusion import Progress, Schedule, ddim, dpmpp_2m, dpmpp_2m_sde, guide
from model.portrait import Portrait

SAMPLERS = ("ddim", "dpmpp_2m", "dpmpp_2m_sde")
ROWS = ("nothing", "text", "full")
"""What a row of guidance is given: the negative prompt; the prompt; prompt and sound. All are given the face."""
RELEASED_FACE = 1.2
"""How much larger than the face's box the part is that the released code's reference network sees."""


@dataclass(frozen=True)
class Guidance:
    """How far to go towards the prompt, and from there towards the sound (`diffusion.guide`).

    together: all rows in one batch; one after the other takes the memory of one.
    """

    text: float = 3.5
    audio: float = 3.5
    together: bool = True

    def rows(self) -> tuple[str, ...]:
        """The rows whose prediction counts; what has no weight is not computed."""
        weights = (1 - self.text, self.text - self.audio, self.audio)
        return tuple(row for row, weight in zip(ROWS, weights, strict=True) if weight)

    def combine(self, v: dict[str, torch.Tensor]) -> torch.Tensor:
        """The guided prediction. v: of each row; one that was not computed has no weight, so any will stand in."""
        some = next(iter(v.values()))
        uncond, text, full = (v.get(row, some) for row in ROWS)
        return guide(uncond, text, full, self.text, self.audio)


@dataclass(frozen=True)
class Sampling:
    """How a video is drawn."""

    steps: int = 50
    sampler: str = "ddim"
    guidance: Guidance = field(default_factory=Guidance)
    seed: int = 0
    schedule: Schedule = field(default_factory=Schedule)


@dataclass(frozen=True)
class Plan:
    """Which frames are made in which clip. frames: of the video; length: of a clip; overlap: of them made again."""

    frames: int
    length: int
    overlap: int = 0

    @staticmethod
    def of(config: ModelConfig, frames: int, length: int) -> Plan:
        """Raises ValueError for a length that is not 1 + 4k, or that motion frames fill."""
        if latents_for(length) < config.motion.frames or length <= config.motion.frames:
            raise ValueError(f"clips of {length} frames have no room for {config.motion.frames} motion frames")
        return Plan(frames, length, config.motion.frames if config.compat == "hallo3" else 0)

    @property
    def clips(self) -> int:
        return math.ceil(self.frames / (self.length - self.overlap))

    @property
    def heard(self) -> int:
        """Frames whose sound is listened to: the last clip is a whole one, and its end is cut off."""
        return self.clips * (self.length - self.overlap)

    def start(self, clip: int) -> int:
        """The video's frame that a clip's first frame is; before the video's first it is negative."""
        return clip * (self.length - self.overlap) - self.overlap


@dataclass(frozen=True)
class Subject:
    """What stays the same over a whole video.

    picture_CHW: float RGB, -1..1, at the video's size. reference_CHW: the latent that the reference
    network is given. text_SD, negative_SD: prompts, every vector of them real.
    face_C: embedding. keys: what `look` makes of the picture; without them the reference network looks at it in every
    step.
    """

    picture_CHW: torch.Tensor
    reference_CHW: torch.Tensor
    text_SD: torch.Tensor
    negative_SD: torch.Tensor
    face_C: torch.Tensor | None = None
    keys: Sequence[Keys] | None = None


def face_alone(picture_CHW: torch.Tensor, face_4: Sequence[float]) -> torch.Tensor:
    """A picture that is black but for the face: what the released code's reference network is given.

    picture_CHW: -1..1. face_4: left, top, right, bottom, pixels: shown is a box `RELEASED_FACE` times as large.
    """
    height, width = picture_CHW.shape[-2:]
    left, top, right, bottom = face_4
    wider, higher = ((RELEASED_FACE - 1) / 2 * side for side in (right - left, bottom - top))
    rows = slice(max(0, round(top - higher)), min(height, round(bottom + higher)))
    columns = slice(max(0, round(left - wider)), min(width, round(right + wider)))
    alone_CHW = torch.full_like(picture_CHW, -1.0)
    alone_CHW[:, rows, columns] = picture_CHW[:, rows, columns]
    return alone_CHW


def subject(
    portrait: Portrait,
    codec: Codec,
    picture_HW3: np.ndarray,
    text_SD: torch.Tensor,
    negative_SD: torch.Tensor,
    face_C: torch.Tensor | None = None,
    cached: bool = True,
    face_4: Sequence[float] | None = None,
) -> Subject:
    """A subject with its picture encoded, and looked at once for all clips and steps.

    cached: keep the reference's keys and values; without, they are made anew in every step, which takes less memory.
    face_4: where the face is, and all that the reference network sees (`face_alone`); None: it sees the picture.
    """
    device, dtype = _where(portrait)
    picture_CHW = signed(picture_HW3[None])[0]
    looked_at_CHW = picture_CHW if face_4 is None else face_alone(picture_CHW, face_4)
    reference_CHW = codec.encode(looked_at_CHW[None])[0].to(device, dtype)
    text_SD, negative_SD = text_SD.to(device, dtype), negative_SD.to(device, dtype)
    face_C = None if face_C is None else face_C.to(device, dtype)
    keys = portrait.look(reference_CHW[None], _reference_text(portrait, text_SD)) if cached else None
    return Subject(picture_CHW, reference_CHW, text_SD, negative_SD, face_C, keys)


@torch.no_grad()
def video(
    portrait: Portrait,
    codec: Codec,
    person: Subject,
    speech_TNC: torch.Tensor | None,
    plan: Plan,
    how: Sampling,
    progress: Progress | None = None,
) -> Iterator[np.ndarray]:
    """The frames of a video, uint8 [H, W, 3], each once and in order; a clip is made when its first frame is asked for.

    speech_TNC: states of `plan.heard` frames; None for a network without sound. progress: told the steps done and of
    all clips.
    """
    config = portrait.config
    ends_NCHW = person.picture_CHW[None].expand(config.motion.frames, -1, -1, -1)
    all_steps = plan.clips * how.steps
    for clip in range(plan.clips):
        audio_TWNC = None if speech_TNC is None else heard(speech_TNC, config.audio.window, plan, clip)
        done = partial(_counted, progress, clip * how.steps, all_steps)
        grey = torch.Generator().manual_seed(_drawn_from(how.seed, clip, "motion"))
        condition_FCHW = motion_condition(portrait, codec, person, ends_NCHW, latents_for(plan.length), grey)
        guided = Guided(portrait, person, how.guidance, condition_FCHW, audio_TWNC)
        latents_FCHW = sampled(guided, how, clip, (latents_for(plan.length), *person.reference_CHW.shape), done)
        frames_THW3 = shown(codec.decode(latents_FCHW))
        # The next clip sees what was written, not what was computed: a video could be gone on with from its file.
        ends_NCHW = motion.last(signed(frames_THW3[-config.motion.frames :]), config.motion.frames)
        first = plan.start(clip)
        yield from frames_THW3[plan.overlap : min(plan.length, plan.frames - first)]


def heard(speech_TNC: torch.Tensor, window: int, plan: Plan, clip: int) -> torch.Tensor:
    """The windows of speech of a clip's frames, [length, 2·window + 1, N, C].

    A window reaches into the clips around it; at the sound's ends the outermost state stands in. Frames before the
    video's first (compat=hallo3) hear nothing.
    """
    first = plan.start(clip)
    rows_T = torch.arange(first - window, first + plan.length + window).clamp(0, len(speech_TNC) - 1)
    audio_TWNC = windows(speech_TNC[rows_T.to(speech_TNC.device)], window, margin=window)
    audio_TWNC[: max(0, -first)] = 0
    return audio_TWNC


def motion_condition(
    portrait: Portrait,
    codec: Codec,
    person: Subject,
    ends_NCHW: torch.Tensor,
    latent_frames: int,
    generator: torch.Generator,
) -> torch.Tensor | None:
    """The condition [F, C, h, w] of the frames that a clip goes on from; None for a network that takes none.

    generator: with compat=hallo3, draws which of the frames' pixels become grey, as the released code's sampling does.
    """
    if not portrait.config.condition_channels:
        return None
    device, dtype = _where(portrait)
    if portrait.config.compat == "hallo3":
        masked_NCHW = motion.masked(ends_NCHW, motion.RELEASED_MASK, generator, alike=True)
        latents_NCHW = motion.joint(codec, person.picture_CHW, masked_NCHW)
    else:
        latents_NCHW = motion.encode(codec, ends_NCHW)
    return motion.condition(latents_NCHW.to(device, dtype), latent_frames)


class Guided:
    """The network under guidance, as samplers call it: noisy latents and their level in, v out, both float32.

    Rows that are not to hear get zeros for the speech, as training drops it.
    """

    def __init__(
        self,
        portrait: Portrait,
        person: Subject,
        guidance: Guidance,
        motion_FCHW: torch.Tensor | None,
        audio_TWNC: torch.Tensor | None,
    ) -> None:
        self.portrait, self.person, self.guidance = portrait, person, guidance
        self.motion_FCHW = motion_FCHW
        _, self.dtype = _where(portrait)
        self.audio_TWNC = None if audio_TWNC is None else audio_TWNC.to(person.text_SD)
        if audio_TWNC is None:  # without sound its direction is nothing, and the row with it is the row with text
            self.guidance = Guidance(guidance.text, guidance.text, guidance.together)
        rows = self.guidance.rows()
        self.batches = [rows] if guidance.together else [(row,) for row in rows]

    def __call__(self, x_1FCHW: torch.Tensor, t_1: torch.Tensor) -> torch.Tensor:
        device, _ = _where(self.portrait)
        noisy_1FCHW, t_1 = x_1FCHW.to(device, self.dtype), t_1.to(device)
        predicted: dict[str, torch.Tensor] = {}
        for rows in self.batches:
            v_BFCHW = self._predicted(rows, noisy_1FCHW, t_1).to(x_1FCHW)
            predicted |= dict(zip(rows, v_BFCHW.split(1), strict=True))
        return self.guidance.combine(predicted)

    def _predicted(self, rows: tuple[str, ...], noisy_1FCHW: torch.Tensor, t_1: torch.Tensor) -> torch.Tensor:
        person, count = self.person, len(rows)
        texts = [person.negative_SD if row == "nothing" else person.text_SD for row in rows]
        text_BSD, mask_BS = padded(texts)
        audio_BTWNC = None
        if self.audio_TWNC is not None:
            silence = torch.zeros_like(self.audio_TWNC)
            audio_BTWNC = torch.stack([self.audio_TWNC if row == "full" else silence for row in rows])
        keys = person.keys
        if keys is None:
            keys = self.portrait.look(person.reference_CHW[None], _reference_text(self.portrait, person.text_SD))
        return self.portrait(
            noisy_1FCHW.expand(count, -1, -1, -1, -1),
            t_1.expand(count),
            text_BSD,
            reference_keys=None if keys is None else [Keys(*_repeated(pair, count)) for pair in keys],
            motion_BFCHW=None if self.motion_FCHW is None else self.motion_FCHW.expand(count, -1, -1, -1, -1),
            face_BC=None if person.face_C is None else person.face_C.expand(count, -1),
            audio_BTWNC=audio_BTWNC,
            text_mask_BS=mask_BS,
        )


def sampled(
    guided: Guided, how: Sampling, clip: int, shape: tuple[int, ...], progress: Progress | None = None
) -> torch.Tensor:
    """The latents of a clip, float32 of `shape` [F, C, h, w]. Noise is drawn on the CPU: the same on every device."""
    device, _ = _where(guided.portrait)
    generator = torch.Generator().manual_seed(_drawn_from(how.seed, clip))
    noise_1FCHW = torch.randn((1, *shape), generator=generator).to(device)
    if how.sampler == "ddim":
        return ddim(guided, noise_1FCHW, how.schedule, how.steps, progress)[0]
    if how.sampler == "dpmpp_2m":
        return dpmpp_2m(guided, noise_1FCHW, how.schedule, how.steps, progress)[0]
    if how.sampler == "dpmpp_2m_sde":
        twice = guided.portrait.config.compat == "hallo3"
        return dpmpp_2m_sde(guided, noise_1FCHW, how.schedule, how.steps, generator, twice, progress)[0]
    raise ValueError(f"sampler {how.sampler!r}: there is {', '.join(SAMPLERS)}")


def padded(texts: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Texts [S, D] as a batch [B, S, D], and what of it is real, [B, S]; None where all of it is."""
    longest = max(len(text) for text in texts)
    batch_BSD = torch.stack([F.pad(text, (0, 0, 0, longest - len(text))) for text in texts])
    if all(len(text) == longest for text in texts):
        return batch_BSD, None
    lengths_B1 = torch.tensor([[len(text)] for text in texts], device=batch_BSD.device)
    return batch_BSD, torch.arange(longest, device=batch_BSD.device) < lengths_B1


def _reference_text(portrait: Portrait, text_SD: torch.Tensor) -> torch.Tensor:
    """The reference network's text, [1, S, D]: the prompt; zeros with compat=hallo3, as the released code samples."""
    return torch.zeros_like(text_SD)[None] if portrait.config.compat == "hallo3" else text_SD[None]


def _repeated(pair: Keys, count: int) -> tuple[torch.Tensor, ...]:
    return tuple(one.expand(count, -1, -1, -1) for one in pair)


def _where(portrait: Portrait) -> tuple[torch.device, torch.dtype]:
    parameter = next(portrait.parameters())
    return parameter.device, parameter.dtype


def _drawn_from(seed: int, clip: int, *what: str) -> int:
    """The seed of a generator of a clip, of its noise or of something else; no two have anything in common."""
    name = "\0".join([str(seed), str(clip), *what])
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def _counted(progress: Progress | None, before: int, steps: int, step: int, _: int) -> None:
    if progress is not None:
        progress(before + step, steps)
