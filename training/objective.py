"""What training makes smaller: the error of the predicted v, at noise levels that the samples of a step share out.

Every draw is a function of names (seed, step, key, place), never of what was drawn before, so a step's loss is the same
on any number of ranks, in any micro-batches, and after resuming.

B samples (of this rank), F latent frames, T video frames, C channels, h×w latent positions, N motion latents or hidden
states of speech, W frames of a window, S text tokens, D their width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from model import motion
from model.codecs import GROUP, SPATIAL, frames_for
from model.conditioning import windows
from model.config import ModelConfig
from model.diffusion import LEVELS, Schedule
from model.portrait import Portrait
from model.settings import SettingsError, option
from training import draws

if TYPE_CHECKING:
    from training.data import Batch


class ObjectiveError(Exception):
    """A loss that cannot be computed from what the samples hold: what is missing, and what to do."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """Section `objective` of the settings. The defaults are the paper's: all positions count alike."""

    face_weight: float = option(1.0, "how much an error within the face's box counts, beside 1 elsewhere")
    lip_weight: float = option(1.0, "how much an error within the lips' box counts, beside 1 elsewhere")
    shift: float = option(1.0, "the schedule's signal-to-noise ratio is divided by it (3: CogVideoX-2B)")
    zero_snr: bool = option(True, "the last noise level is pure noise (arXiv 2305.08891)")

    def check(self) -> None:
        """Raises SettingsError where a value makes no sense."""
        for name in ("face_weight", "lip_weight"):
            if getattr(self, name) < 0:
                raise SettingsError(f"objective.{name}={getattr(self, name)}: at least 0 (1: as elsewhere)")
        if self.shift <= 0:
            raise SettingsError(f"objective.shift={self.shift}: more than 0 (1: CogVideoX-5B and Hallo3)")

    @property
    def weighted(self) -> bool:
        return (self.face_weight, self.lip_weight) != (1.0, 1.0)

    def schedule(self) -> Schedule:
        return Schedule(shift=self.shift, zero_snr=self.zero_snr)


@dataclass(frozen=True)
class Given:
    """What a batch's loss is computed from beside the batch, on its device."""

    noisy_BFCHW: torch.Tensor
    target_BFCHW: torch.Tensor  # the v to be predicted
    t_B: torch.Tensor  # int64
    weight_BF1HW: torch.Tensor | None  # of each position's error, 1 on average over a sample; None: all count alike

    def split(self, size: int) -> list[Given]:
        """The same in pieces of so many samples, as `Batch.split` cuts its own."""
        count = -(-len(self.t_B) // size)
        weights = [None] * count if self.weight_BF1HW is None else self.weight_BF1HW.split(size)
        parts = zip(
            self.noisy_BFCHW.split(size), self.target_BFCHW.split(size), self.t_B.split(size), weights, strict=True
        )
        return [Given(*part) for part in parts]


@dataclass(frozen=True)
class Objective:
    """The v-prediction loss of a network.

    samples: of a step, over all ranks: noise levels are shared out among them. audio: whether the network is given
    sound. dtype: what the network is fed; noise, target and loss are float32 whatever it is.
    """

    config: ObjectiveConfig
    network: ModelConfig
    samples: int = 1
    audio: bool = True
    dtype: torch.dtype = torch.float32

    def given(self, batch: Batch, seed: int) -> Given:
        """Noise from (seed, key, step), levels from (seed, step, place)."""
        t_B = levels(seed, batch.step, batch.places, self.samples)
        return self._noised(batch, t_B, [draws.generator(seed, "noise", key, batch.step) for key in batch.keys])

    def fixed(self, batch: Batch, t: int, seed: int) -> Given:
        """All samples at level t, with noise from (seed, key) alone: for losses that are compared between steps."""
        t_B = torch.full((len(batch.keys),), t)
        return self._noised(batch, t_B, [draws.generator(seed, "fixed noise", key) for key in batch.keys])

    def losses(self, portrait: Portrait, batch: Batch, given: Given) -> torch.Tensor:
        """The mean error of v squared, of each sample: float32 [B]."""
        predicted_BFCHW = self.predicted(portrait, batch, given)
        error_BFCHW = (predicted_BFCHW.float() - given.target_BFCHW).square()
        if given.weight_BF1HW is not None:
            error_BFCHW = error_BFCHW * given.weight_BF1HW
        return error_BFCHW.flatten(1).mean(dim=1)

    def predicted(self, portrait: Portrait, batch: Batch, given: Given) -> torch.Tensor:
        """The network's v, in the type that it computes in."""
        return portrait(given.noisy_BFCHW.to(self.dtype), given.t_B, **self.conditions(batch))

    def conditions(self, batch: Batch) -> dict[str, torch.Tensor | None]:
        """What the network is given beside the noisy latent, as its arguments; what it has no part for is left out."""
        network, dtype = self.network, self.dtype
        frames = batch.latent_BFCHW.shape[1]
        conditions: dict[str, torch.Tensor | None] = {
            "text_BSD": batch.text_BSD.to(dtype),
            "text_mask_BS": batch.text_mask_BS,
        }
        if network.has_reference and batch.reference_BCHW is not None:
            conditions["reference_BCHW"] = batch.reference_BCHW.to(dtype)
        if network.condition_channels and batch.motion_BNCHW is not None:
            conditions["motion_BFCHW"] = motion.condition(batch.motion_BNCHW.to(dtype), frames)
        if network.has_face and batch.face_BC is not None:
            conditions["face_BC"] = batch.face_BC.to(dtype)
        if self.audio and network.has_audio and batch.audio_BTNC is not None:
            conditions["audio_BTWNC"] = heard(batch.audio_BTNC, frames, network.audio.window).to(dtype)
        return conditions

    def _noised(self, batch: Batch, t_B: torch.Tensor, generators: Sequence[torch.Generator]) -> Given:
        clean_BFCHW = batch.latent_BFCHW.float()
        device, shape = clean_BFCHW.device, clean_BFCHW.shape[1:]
        noise_BFCHW = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(device)
        schedule, t_B = self.config.schedule(), t_B.to(device)
        return Given(
            schedule.add_noise(clean_BFCHW, noise_BFCHW, t_B),
            schedule.velocity(clean_BFCHW, noise_BFCHW, t_B),
            t_B,
            self._weights(batch),
        )

    def _weights(self, batch: Batch) -> torch.Tensor | None:
        if not self.config.weighted:
            return None
        if batch.boxes_BT24 is None:
            raise ObjectiveError(
                "objective.face_weight and .lip_weight need the boxes of face and lips, which the shards do not hold: "
                "pack with `mask` among contents=…, or leave both at 1"
            )
        _, frames, _, height, width = batch.latent_BFCHW.shape
        return torch.stack(
            [
                weights(boxes_T24, (frames, height, width), self.config.face_weight, self.config.lip_weight)
                for boxes_T24 in batch.boxes_BT24
            ]
        )


def levels(seed: int, step: int, places: Sequence[int], samples: int) -> torch.Tensor:
    """Noise levels of the samples at these places of a step's batch: int64, uniform over 0 … 999.

    The range is cut into as many equal strata as the batch has samples, whatever ranks they are on, and each place has
    one of its own, another one in every step.
    """
    strata = torch.randperm(samples, generator=draws.generator(seed, "strata", step)).tolist()
    within = [(strata[place] + draws.uniform(seed, "level", step, place)) / samples for place in places]
    return torch.tensor([min(int(share * LEVELS), LEVELS - 1) for share in within])


def heard(audio_BTNC: torch.Tensor, latent_frames: int, window: int) -> torch.Tensor:
    """The windows of speech of every video frame, [B, T, 2·window + 1, N, C].

    audio_BTNC: speech of the window's frames and of as many before it as after it.
    """
    margin = (audio_BTNC.shape[1] - frames_for(latent_frames)) // 2
    return torch.stack([windows(audio_TNC, window, margin=margin) for audio_TNC in audio_BTNC])


def weights(boxes_T24: torch.Tensor, shape: tuple[int, int, int], face: float, lips: float) -> torch.Tensor:
    """How much the error at each latent position counts: float32 [F, 1, h, w], 1 on average.

    boxes_T24: boxes of face and lips in each video frame: left, top, right, bottom in pixels; NaN where they are lost.
    shape: latent frames, rows and columns. A latent frame's share of a box is the mean of its video frames' (the first
    stands alone, then every four); a position that a box covers in part counts in part. Frames without a box are left
    out; where all are, the box covers nothing.
    """
    frames, height, width = shape
    covers_2FHW = [_grouped(_covered(boxes_T24[:, which].float(), height, width), frames) for which in (0, 1)]
    weight_FHW = torch.lerp(torch.ones_like(covers_2FHW[0]), torch.full_like(covers_2FHW[0], face), covers_2FHW[0])
    weight_FHW = torch.lerp(weight_FHW, torch.full_like(weight_FHW, lips), covers_2FHW[1])
    mean = weight_FHW.mean()
    return (weight_FHW / mean if mean > 0 else torch.ones_like(weight_FHW))[:, None]


def _covered(boxes_T4: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The share of each latent position that a frame's box covers, [T, h, w]; NaN in frames without a box."""
    left, top, right, bottom = (boxes_T4 / SPATIAL).unsqueeze(-1).unbind(1)
    rows, columns = (torch.arange(count, device=boxes_T4.device) for count in (height, width))
    across_TW = torch.minimum(right, columns + 1) - torch.maximum(left, columns)
    down_TH = torch.minimum(bottom, rows + 1) - torch.maximum(top, rows)
    return down_TH.clamp(0, 1)[:, :, None] * across_TW.clamp(0, 1)[:, None]


def _grouped(covered_THW: torch.Tensor, frames: int) -> torch.Tensor:
    """The mean over the video frames of each latent frame that have a box, [F, h, w]; 0 where none has."""
    if len(covered_THW) != frames_for(frames):
        raise ValueError(f"boxes of {len(covered_THW)} video frames for {frames} latent frames")
    rest_FHW = covered_THW[1:].unflatten(0, (frames - 1, GROUP)).nanmean(dim=1)
    return torch.cat([covered_THW[:1], rest_FHW]).nan_to_num(0.0)
