"""From a packed sample to the tensors of one training step: what is drawn for it, dropped from it and masked in it.

Each draw is a function of (seed, key, step). F latent frames, T video frames, N motion latents or states of speech, C
channels, H×W latent positions, S text tokens, D their width.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from model import codecs, media, motion
from model.codecs import frames_for
from model.config import ModelConfig
from model.encoders.speech import FPS
from model.sampling import face_alone, signed
from training import draws
from training.demands import Layout, as_released, fills
from training.members import BrokenSampleError, array
from training.shards import Index

if TYPE_CHECKING:
    from training.source import DataConfig


@dataclass(frozen=True)
class Sample:
    """One sample as the network is given it: float32, None for what the shards do not hold. See batch.Batch."""

    key: str
    latent_FCHW: torch.Tensor
    motion_NCHW: torch.Tensor | None
    reference_CHW: torch.Tensor | None
    face_C: torch.Tensor | None
    audio_TNC: torch.Tensor | None
    text_SD: torch.Tensor
    text_mask_S: torch.Tensor | None
    boxes_T24: torch.Tensor | None
    dropped: frozenset[str]


class Prepare:
    """Makes samples of packed ones. nothing_SD: what stands for a dropped text; None: zeros, as long as the text.

    masks_text: whether samples say which of their text is real: all of a run's or none, for it decides what kernels
    attention runs on. None, where neither texts nor what stands for a dropped one are ever padded.
    """

    def __init__(
        self, config: DataConfig, network: ModelConfig, index: Index, seed: int, nothing_SD: torch.Tensor | None
    ) -> None:
        self.config, self.network, self.seed, self.nothing_SD = config, network, seed, nothing_SD
        self.layout = Layout.of(index)
        self.frames = frames_for(network.latent_frames)
        self.encodes = config.latents == "encode"
        self.as_released = self.encodes and as_released(network)
        short = nothing_SD is not None and len(nothing_SD) < network.text_length
        self.masks_text = short or not fills(index, network)
        self.shapes = {ending: (facts.get("shape", []), facts.get("dtype")) for ending, facts in index.members.items()}
        self.settings = index.settings

    @cached_property
    def codec(self) -> codecs.Codec:
        return codecs.load(self.settings["codec"], self.settings.get("codec_source", ""))

    def __call__(self, key: str, members: Mapping[str, memoryview], step: int | None) -> Sample:
        """A sample in a step; step None: for comparing, always the same and with nothing dropped.

        Raises BrokenSampleError where a member is missing, or not what the index says of all.
        """
        network, config = self.network, self.config
        names: tuple[Any, ...] = (key,) if step is None else (key, step)
        dropped = frozenset(
            name
            for name in ("text", "audio", "reference", "face", "motion")
            if step is not None and draws.uniform(self.seed, f"drop {name}", *names) < getattr(config, f"drop_{name}")
        )
        start = self._start(names, step)
        reference_CHW = face_C = audio_TNC = boxes_T24 = None
        if network.has_reference or self.as_released:
            reference_CHW = self._one(self._array(members, "reference.npy"), "reference", names)
        if network.has_face:
            face_C = self._array(members, "face.npy")
            face_C = self._one(face_C, "face", names) if face_C.ndim == 2 else face_C
        if network.has_audio:
            margin = min(self.layout.margin, network.audio.window)
            first = self.layout.margin + start - margin
            audio_TNC = self._array(members, "audio.npy")[first : first + self.frames + 2 * margin]
        if "mask.npy" in self.shapes:
            boxes_T24 = self._array(members, "mask.npy", finite=False)[start : start + self.frames]
        masks = draws.generator(self.seed, "motion mask", *names)
        motion_NCHW: torch.Tensor | None
        if self.as_released:
            assert reference_CHW is not None
            share = motion.RELEASED_MASK if step is None else config.mask_motion  # sampling masks, too
            picture_CHW = self._picture(reference_CHW)
            latent_FCHW, motion_NCHW = self._released_pictures(members, start, picture_CHW, share, masks)
            reference_CHW = self.codec.encode(face_alone(picture_CHW, self._reference_face(members, names))[None])[0]
        else:
            latent_FCHW, motion_NCHW = self._pictures(members, start)
            if motion_NCHW is not None and step is not None and config.mask_motion:
                motion_NCHW = motion.masked(motion_NCHW, config.mask_motion, masks)
        text_SD, mask_S = self._text(self._array(members, "text.npy"), "text" in dropped)
        return Sample(
            key,
            latent_FCHW,
            _or_zeros(motion_NCHW, "motion" in dropped),
            _or_zeros(reference_CHW, "reference" in dropped),
            _or_zeros(face_C, "face" in dropped),
            _or_zeros(audio_TNC, "audio" in dropped),
            text_SD,
            mask_S,
            boxes_T24,
            dropped,
        )

    def _start(self, names: tuple[Any, ...], step: int | None) -> int:
        """First frame of the network's window within the stored one."""
        if not self.encodes or step is None:
            return 0
        return draws.whole(self.seed, self.layout.frames - self.frames + 1, "window", *names)

    def _one(self, choice_K: torch.Tensor, what: str, names: tuple[Any, ...]) -> torch.Tensor:
        return choice_K[draws.whole(self.seed, len(choice_K), what, *names)].clone()

    def _pictures(self, members: Mapping[str, memoryview], start: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Latents of the window and of the motion frames before it; None for a network that takes no motion."""
        count = self.network.motion.frames if self.network.condition_channels else 0
        if not self.encodes:
            # The codecs are causal: the first latents of a window are those of a shorter one.
            latent_FCHW = self._array(members, "latent.npy")[: self.network.latent_frames]
            return latent_FCHW, self._array(members, "motion.npy")[-count:] if count else None
        before = self.layout.motion_frames + start
        frames_TCHW = signed_video(_member(members, "mp4"), before + self.frames)
        with torch.no_grad():
            latent_FCHW = self.codec.encode(frames_TCHW[before:])
            motion_NCHW = motion.encode(self.codec, frames_TCHW[before - count : before]) if count else None
        return latent_FCHW, motion_NCHW

    def _released_pictures(
        self,
        members: Mapping[str, memoryview],
        start: int,
        picture_CHW: torch.Tensor,
        share: float,
        masks: torch.Generator,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents of the window and its motion as the released code samples (`sampling.motion_condition`).

        There a clip begins with the frames that the one before ended with: they are the window's own first.
        """
        before = self.layout.motion_frames + start
        frames_TCHW = signed_video(_member(members, "mp4"), before + self.frames)[before:]
        with torch.no_grad():
            ends_NCHW = motion.masked(frames_TCHW[: self.network.motion.frames], share, masks, alike=True)
            return self.codec.encode(frames_TCHW), motion.joint(self.codec, picture_CHW, ends_NCHW)

    @torch.no_grad()
    def _picture(self, reference_CHW: torch.Tensor) -> torch.Tensor:
        """A reference as a picture, -1 to 1. None is stored: it is what the codec makes of its latent."""
        return self.codec.decode(reference_CHW[None])[0].clamp(-1, 1)

    def _reference_face(self, members: Mapping[str, memoryview], names: tuple[Any, ...]) -> list[float]:
        """Where the face is in the reference that is drawn: left, top, right, bottom, pixels."""
        try:
            faces_K4 = json.loads(bytes(_member(members, "json")))["reference"]["faces"]
            return [float(side) for side in faces_K4[draws.whole(self.seed, len(faces_K4), "reference", *names)]]
        except (ValueError, KeyError, TypeError) as error:
            raise BrokenSampleError("json: does not say where the face is in its references") from error

    def _text(self, text_SD: torch.Tensor, dropped: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The text at the length that there is room for, and which of it is real; None: all of it."""
        if dropped:
            text_SD = torch.zeros_like(text_SD) if self.nothing_SD is None else self.nothing_SD
        room = self.network.text_length
        text_SD = text_SD[:room]
        if not self.masks_text:
            return text_SD, None
        return F.pad(text_SD, (0, 0, 0, room - len(text_SD))), torch.arange(room) < len(text_SD)

    def _array(self, members: Mapping[str, memoryview], ending: str, finite: bool = True) -> torch.Tensor:
        """An array as float32. Raises BrokenSampleError where it is not as all are, or holds what is no number."""
        try:
            found = array(_member(members, ending))
        except BrokenSampleError as error:
            raise BrokenSampleError(f"{ending}: {error}") from error
        shape, kind = self.shapes[ending]
        usual = len(found.shape) == len(shape) and all(
            length in (None, there) for length, there in zip(shape, found.shape, strict=True)
        )
        if not usual or found.dtype.name != kind:
            raise BrokenSampleError(f"{ending} is {list(found.shape)} of {found.dtype}; all others {shape} of {kind}")
        values = torch.from_numpy(found).to(torch.float32, copy=True)
        # The sum tells at once in the usual case; a sum may overflow where the numbers do not.
        if finite and not values.sum().isfinite() and not values.isfinite().all():
            raise BrokenSampleError(f"{ending} holds what is no number")
        return values


def signed_video(content: memoryview, count: int) -> torch.Tensor:
    """The first frames of a stored video as a codec takes them: float32 [count, 3, H, W]. Raises BrokenSampleError."""
    try:
        frames = list(media.frames(io.BytesIO(content), media.Span(Fraction(0), Fraction(count, FPS)), Fraction(FPS)))
    except media.MediaError as error:
        raise BrokenSampleError(f"mp4: {error}") from error
    if len(frames) < count:
        raise BrokenSampleError(f"mp4: {len(frames)} frames of {count}")
    return torch.cat([signed(frame[None]) for frame in frames])


def _member(members: Mapping[str, memoryview], ending: str) -> memoryview:
    if ending not in members:
        raise BrokenSampleError(f"holds no {ending}, as all others do")
    return members[ending]


def _or_zeros(values: torch.Tensor | None, dropped: bool) -> torch.Tensor | None:
    return torch.zeros_like(values) if dropped and values is not None else values
