"""How far training has come, on the same few samples every time: losses, the wrong-audio gap, and clips to look at.

The wrong-audio gap is the loss with another clip's sound less that with a sample's own, both from the same noise: it is
zero as long as the network does not listen, and the earliest sign that lips will follow speech.
"""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed

from model import media
from model.codecs import Codec, frames_for
from model.diffusion import LEVELS, ddim
from model.encoders.speech import FPS
from model.inputs import SOUND_RATE
from model.portrait import Portrait
from model.sampling import Guidance, shown
from model.settings import SettingsError, option
from training import draws
from training.objective import Objective

if TYPE_CHECKING:
    from training.data import Batch
    from training.ranks import World

Say = Callable[[str], None]


@dataclass(frozen=True)
class ValidationConfig:
    """Section `validation` of the settings."""

    every: int = option(500, "steps between validations; 0: none")
    samples: int = option(8, "samples that are validated on, always the same; of as many clips as possible")
    levels: list[int] = option([100, 300, 500, 700, 900], "noise levels at which their loss is computed")
    clips_every: int = option(2000, "steps between drawings of clips; 0: none")
    clips: int = option(2, "samples that are drawn as clips")
    clip_steps: int = option(20, "denoising steps of a clip")
    audio_scale: float = option(3.5, "guidance of a clip towards the sound; 1: none")

    def check(self) -> None:
        """Raises SettingsError where a value makes no sense."""
        for name in ("every", "samples", "clips_every", "clips"):
            if getattr(self, name) < 0:
                raise SettingsError(f"validation.{name}={getattr(self, name)}: at least 0 (0: none)")
        if not 1 <= self.clip_steps <= LEVELS:
            raise SettingsError(f"validation.clip_steps={self.clip_steps}: 1 to {LEVELS}")
        if wrong := [t for t in self.levels if not 0 <= t < LEVELS]:
            raise SettingsError(f"validation.levels: {wrong[0]} is no noise level; they go from 0 to {LEVELS - 1}")


def chosen(keys: Sequence[str], count: int) -> list[str]:
    """So many samples, a window of every clip before a second one of any; in the order of their names."""
    clips: dict[str, list[str]] = {}
    for key in sorted(set(keys)):
        clips.setdefault(clip_of(key), []).append(key)
    by_turns = [key for turn in range(len(keys)) for windows in clips.values() for key in windows[turn : turn + 1]]
    return by_turns[:count]


def clip_of(key: str) -> str:
    """The clip that a window was cut from."""
    return key.rpartition("-")[0] or key


def foreign(keys: Sequence[str]) -> list[int] | None:
    """For each sample another one whose sound is put under it: the next one of another clip.

    Where all are of one clip, the next window. None where there is only one.
    """
    if len(keys) < 2:
        return None
    found = []
    for here, key in enumerate(keys):
        others = [(here + step) % len(keys) for step in range(1, len(keys))]
        found.append(next((other for other in others if clip_of(keys[other]) != clip_of(key)), others[0]))
    return found


@torch.no_grad()
def validate(
    portrait: Portrait, objective: Objective, batch: Batch, levels: Sequence[int], seed: int, world: World
) -> dict[str, float]:
    """Losses of the validation samples, the same on any number of ranks; all ranks call it with the same batch.

    batch: all validation samples, nothing dropped. Returns `loss` (the mean over levels), `loss@t=…` for each level
    and, where the network listens and there is another sound, `wrong_audio_gap` with its standard error over the
    samples, `wrong_audio_gap_error`.
    """
    samples, device = batch.split(1), world.device
    heard = objective.audio and objective.network.has_audio and batch.audio_BTNC is not None
    others = foreign(batch.keys) if heard else None
    own: list[torch.Tensor] = []
    wrong: list[torch.Tensor] = []
    places: list[int] = []
    for number, counts in _turns(len(samples), world):
        sample = samples[number].to(device, torch.float32)
        for column, t in enumerate(levels):
            given = objective.fixed(sample, t, seed)
            loss = objective.losses(portrait, sample, given)
            foreign_loss = loss
            if others is not None:
                sound = samples[others[number]].to(device, torch.float32).audio_BTNC
                foreign_loss = objective.losses(portrait, dataclasses.replace(sample, audio_BTNC=sound), given)
            if counts:
                own.append(loss)
                wrong.append(foreign_loss)
                places.append(number * len(levels) + column)

    def of_all(losses: list[torch.Tensor]) -> torch.Tensor:
        if not losses:  # more ranks than samples: this one adds nothing
            return (
                world.everyone(torch.zeros(1, device=device), [0], len(samples) * len(levels))
                .cpu()
                .unflatten(0, (len(samples), -1))
            )
        here = torch.cat(losses)
        return world.everyone(here, places, len(samples) * len(levels)).cpu().unflatten(0, (len(samples), -1))

    found_SL = of_all(own)
    found = {"loss": float(found_SL.mean())}
    found |= {f"loss@t={t}": float(found_SL[:, column].mean()) for column, t in enumerate(levels)}
    if others is not None:
        gaps_S = (of_all(wrong) - found_SL).mean(dim=1)
        found["wrong_audio_gap"] = float(gaps_S.mean())
        found["wrong_audio_gap_error"] = float(gaps_S.std() / math.sqrt(len(gaps_S)))
    return found


@torch.no_grad()
def drawn(
    portrait: Portrait, objective: Objective, sample: Batch, steps: int, audio_scale: float, seed: int
) -> torch.Tensor:
    """The latents of a sample's window, drawn from nothing but its conditions: float32 [F, C, h, w].

    sample: a batch of one, on the network's device. The network is called just as in training, so it may be sharded.
    Guidance goes from silence towards the sound; the prompt and the face are in both.
    """
    conditions = objective.conditions(sample)
    sound = conditions.get("audio_BTWNC")
    guidance = Guidance(text=1.0, audio=1.0 if sound is None else audio_scale)
    given = {"full": conditions}
    if sound is not None:
        given["text"] = {**conditions, "audio_BTWNC": torch.zeros_like(sound)}

    def guided(x_1FCHW: torch.Tensor, t_1: torch.Tensor) -> torch.Tensor:
        noisy = x_1FCHW.to(objective.dtype)
        return guidance.combine({row: portrait(noisy, t_1, **given[row]).float() for row in guidance.rows()})

    generator = draws.generator(seed, "validation clip", sample.keys[0])
    noise_1FCHW = torch.randn(sample.latent_BFCHW.shape, generator=generator).to(sample.latent_BFCHW.device)
    return ddim(guided, noise_1FCHW, objective.config.schedule(), steps)[0]


@dataclass(frozen=True)
class Clips:
    """Draws validation samples as videos with sound: `validation/step-N/<key>.mp4`, beside `validation/real`.

    sound: a sample's mp4 as bytes, or None where its shard holds none.
    """

    config: ValidationConfig
    codec: Codec
    folder: Path
    world: World
    sound: Callable[[str], bytes | None]
    say: Say = print

    def draw(self, portrait: Portrait, objective: Objective, batch: Batch, step: int, seed: int) -> list[Path]:
        """Draw the first samples of the batch; every rank draws some, and all must call it. Returns this rank's files.

        What cannot be written is said, and training goes on.
        """
        samples = batch.split(1)[: self.config.clips]
        written = []
        for number, counts in _turns(len(samples), self.world):
            sample = samples[number].to(self.world.device, torch.float32)
            latents = drawn(portrait, objective, sample, self.config.clip_steps, self.config.audio_scale, seed)
            if not counts:
                continue
            key = sample.keys[0]
            real = self.folder / "validation" / "real" / f"{key}.mp4"
            if not real.exists():
                self._write(real, sample.latent_BFCHW[0], objective)
            path = self.folder / "validation" / f"step-{step}" / f"{key}.mp4"
            if self._write(path, latents, objective):
                written.append(path)
        return written

    def _write(self, path: Path, latents_FCHW: torch.Tensor, objective: Objective) -> bool:
        frames = shown(self.codec.decode(latents_FCHW.float()))
        try:
            sound = self._sound(path.stem, objective.network.motion.frames, frames_for(len(latents_FCHW)))
            path.parent.mkdir(parents=True, exist_ok=True)
            media.encode(path, iter(frames), Fraction(FPS), sound, None if sound is None else SOUND_RATE)
        except (OSError, media.MediaError) as error:
            self.say(f"{path}: not written: {error}")
            return False
        return True

    def _sound(self, key: str, before: int, frames: int) -> np.ndarray | None:
        """The sound of a window: its mp4 begins with the motion frames. None where there is no mp4."""
        content = self.sound(key)
        if content is None:
            return None
        span = media.Span(Fraction(before, FPS), Fraction(before + frames, FPS))
        return media.audio(io.BytesIO(content), span, SOUND_RATE)


def _turns(count: int, world: World) -> Iterator[tuple[int, bool]]:
    """The samples that this rank computes, and whether they count.

    All ranks take as many turns, for they compute together; one without a sample of its own does another's again.
    """
    for turn in range(math.ceil(count / world.data_ranks)):
        number = turn * world.data_ranks + world.data_rank
        yield min(number, count - 1), number < count
