"""From a packed sample to the tensors of one training step: what is drawn for it, dropped from it and masked in it.

Each draw is a function of (seed, key, step). F latent frames, T video frames, N motion latents or states of speech, C
channels, H×W latent positions, S text tokens, D their width.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from model import codecs, media, motion
from model.codecs import SPATIAL, frames_for
from model.config import ModelConfig
from model.encoders.speech import FPS
from model.sampling import signed
from training import draws
from training.members import BrokenSampleError, array
from training.shards import DataError, Index

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
    text_mask_S: torch.Tensor
    boxes_T24: torch.Tensor | None
    dropped: frozenset[str]


@dataclass(frozen=True)
class Layout:
    """Where things lie in a packed sample. frames, motion_frames, margin: of its window, of what is before it, of its
    speech at either end."""

    frames: int
    motion_frames: int
    margin: int

    @staticmethod
    def of(index: Index) -> Layout:
        """Raises DataError for an index that does not say."""
        try:
            sizes = [index.settings[name] for name in ("frames", "motion_frames", "audio_margin")]
        except KeyError as error:
            raise DataError(f"{index.place}/index.json: its settings lack {error}; pack again") from error
        return Layout(*sizes)


@dataclass(frozen=True)
class Demand:
    """A length that one of a sample's arrays must have (at_least: or more). setting: of the network, that says so."""

    ending: str
    axis: int
    length: int
    setting: str = ""
    at_least: bool = False

    def unmet(self, shape: list[int | None]) -> bool:
        if not -len(shape) <= self.axis < len(shape):
            return True
        length = shape[self.axis]
        return length is not None and (length < self.length if self.at_least else length != self.length)


def demands(network: ModelConfig, encode: bool) -> Iterator[Demand]:
    """What a network wants of the arrays. encode: latents are made of the stored video."""

    def pictures(ending: str, count: int, setting: str, channels: str = "latent_channels") -> Iterator[Demand]:
        yield Demand(ending, 0, count, setting, at_least=True)
        for axis, name in enumerate((channels, "latent_height", "latent_width"), 1):
            yield Demand(ending, axis, getattr(network, name), name)

    if not encode:
        yield from pictures("latent.npy", network.latent_frames, "latent_frames")
        if network.condition_channels:
            yield from pictures("motion.npy", network.motion.frames, "motion.frames", "condition_channels")
    if network.has_reference:
        yield from pictures("reference.npy", 1, "")
    if network.has_face:
        yield Demand("face.npy", -1, network.face_dim, "face_dim")
    if network.has_audio:
        yield Demand("audio.npy", 1, network.audio.layers, "audio.layers")
        yield Demand("audio.npy", 2, network.audio.dim, "audio.dim")
    yield Demand("text.npy", 1, network.text_dim, "text_dim")


def check(index: Index, network: ModelConfig, encode: bool) -> None:
    """Raises DataError where the shards do not hold what the network takes, with the setting to change."""
    for demand in demands(network, encode):
        _held(index, demand.ending, network)
        shape = index.members[demand.ending].get("shape", [])
        if demand.unmet(shape):
            length = shape[demand.axis] if -len(shape) <= demand.axis < len(shape) else None
            change = f"network.changes=[{demand.setting}={length}] or " if demand.setting and length else ""
            wants = f"{demand.setting or 'it'} wants {'at least ' if demand.at_least else ''}{demand.length}"
            raise DataError(
                f"{index.place}: {demand.ending} is {shape}; the network's {wants} on axis {demand.axis}: "
                f"{change}other shards"
            )
    layout, frames = Layout.of(index), frames_for(network.latent_frames)
    if layout.frames < frames:
        raise DataError(
            f"{index.place}: windows of {layout.frames} frames, the network's are {frames}: "
            f"network.changes=[latent_frames={codecs.latents_for(layout.frames)}] or other shards"
        )
    if encode:
        _held(index, "mp4", network)
        _encodable(index, network, layout)


def _held(index: Index, ending: str, network: ModelConfig) -> None:
    if ending in index.members:
        return
    member = {"mp4": "video"}.get(ending, ending.removesuffix(".npy"))
    instead = {
        "latent": "; or data.latents=encode, where there is video",
        "motion": "; or data.latents=encode, where there is video",
        "audio": "; or network.changes=[audio.injection=none]",
        "face": f"; or another network.changes=[identity=…] than {network.identity}",
        "reference": f"; or another network.changes=[identity=…] than {network.identity}",
        "video": "; or data.latents=stored",
    }
    raise DataError(
        f"{index.place}: its samples hold no {ending}: pack with `{member}` among contents=…{instead.get(member, '')}"
    )


def _encodable(index: Index, network: ModelConfig, layout: Layout) -> None:
    if layout.motion_frames < network.motion.frames and network.condition_channels:
        raise DataError(
            f"{index.place}: {layout.motion_frames} frames are stored before each window, network.changes="
            f"[motion.frames=…] asks for {network.motion.frames}"
        )

    stored = index.settings.get("height"), index.settings.get("width")
    if stored != (network.latent_height * SPATIAL, network.latent_width * SPATIAL):
        raise DataError(
            f"{index.place}: pictures of {stored[1]}x{stored[0]}; the network's latent_height and latent_width are for "
            f"{network.latent_width * SPATIAL}x{network.latent_height * SPATIAL}"
        )


class Prepare:
    """Makes samples of packed ones. nothing_SD: what stands for a dropped text; None: zeros."""

    def __init__(
        self, config: DataConfig, network: ModelConfig, index: Index, seed: int, nothing_SD: torch.Tensor | None
    ) -> None:
        self.config, self.network, self.seed, self.nothing_SD = config, network, seed, nothing_SD
        self.layout = Layout.of(index)
        self.frames = frames_for(network.latent_frames)
        self.encodes = config.latents == "encode"
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
        if network.has_reference:
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
        latent_FCHW, motion_NCHW = self._pictures(members, start)
        if motion_NCHW is not None and step is not None and config.mask_motion:
            motion_NCHW = motion.masked(
                motion_NCHW, config.mask_motion, draws.generator(self.seed, "motion mask", *names)
            )
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

    def _text(self, text_SD: torch.Tensor, dropped: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """The text at the length that there is room for, and which of it is real."""
        if dropped:
            text_SD = torch.zeros_like(text_SD) if self.nothing_SD is None else self.nothing_SD
        room = self.network.text_length
        text_SD = text_SD[:room]
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
