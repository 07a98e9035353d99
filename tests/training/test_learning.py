"""It learns: a single sample by heart, and lips that follow speech where, and only where, the network can hear.

The task: a latent of a still face, drawn once for all samples, whose mouth is open as far as the speech of its frames
says. Each sample has speech of its own, so that nothing but listening tells how far. What was learned is tested on
speech that was never heard.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from model.codecs import GROUP, frames_for
from model.config import ModelConfig, preset
from model.portrait import Portrait, build
from tests.model.networks import small
from tests.training.batches import batch
from tests.training.worlds import alone
from training import draws
from training.data import Batch
from training.objective import Objective, ObjectiveConfig
from training.stages import trained
from training.validation import drawn, validate

LEVELS = (300, 500, 700, 900, 999)
LISTENING = {"identity": "none", "text_length": 4, "audio.layers": 1, "audio.dim": 8}
MOUTH = (slice(4, 8), slice(4, 8))  # rows and columns of the latent
NEW = tuple(f"new-{number}-000000" for number in range(16))


@dataclass(frozen=True)
class Task:
    """A face whose mouth follows the speech. network: sizes; frames: latent frames."""

    network: ModelConfig
    frames: int = 3

    def samples(self, keys: tuple[str, ...], step: int = 0, silent: bool = False) -> Batch:
        """Samples of these names; silent: their speech is dropped, as training drops it."""
        network, window = self.network, self.network.audio.window
        plain = batch(network, keys, step=step, frames=self.frames)
        face_CHW = draws.generator(0, "face")
        face_CHW = torch.randn(plain.latent_BFCHW.shape[2:], generator=face_CHW)
        voice_C = torch.randn(network.audio.dim, generator=draws.generator(0, "voice"))
        latents, speech = [], []
        for key in keys:
            open_F = self.openness(key)
            latent = face_CHW.expand(self.frames, -1, -1, -1).clone()
            latent[:, 0, MOUTH[0], MOUTH[1]] = open_F[:, None, None]
            latents.append(latent)
            loud_T = torch.cat([open_F[:1], open_F[1:].repeat_interleave(GROUP)])
            loud_T = torch.cat([loud_T[:1].expand(window), loud_T, loud_T[-1:].expand(window)])
            murmur = torch.randn(len(loud_T), 1, network.audio.dim, generator=draws.generator(0, "murmur", key))
            speech.append((loud_T[:, None] * voice_C)[:, None].expand(-1, network.audio.layers, -1) + 0.1 * murmur)
        audio = torch.stack(speech)
        assert audio.shape[1] == frames_for(self.frames) + 2 * window
        return dataclasses.replace(
            plain,
            latent_BFCHW=torch.stack(latents),
            audio_BTNC=torch.zeros_like(audio) if silent else audio,
            motion_BNCHW=torch.zeros_like(plain.motion_BNCHW),
            text_BSD=torch.zeros_like(plain.text_BSD),
        )

    def openness(self, key: str) -> torch.Tensor:
        """How far the mouth is open in each latent frame: [F], -2 to 2."""
        return 4 * torch.rand(self.frames, generator=draws.generator(0, "openness", key)) - 2


@dataclass(frozen=True)
class Learned:
    """A network after training, with the loss of every step."""

    portrait: Portrait
    objective: Objective
    losses: list[float]


def learned(task: Task, steps: int, samples: int = 8, lr: float = 3e-3, silent: bool = False) -> Learned:
    """Train a fresh network on ever new samples."""
    torch.manual_seed(0)
    portrait = build(task.network)
    objective = Objective(ObjectiveConfig(), task.network, samples=samples)
    optimizer = torch.optim.AdamW(portrait.parameters(), lr=lr, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    losses = []
    for step in range(steps):
        given = task.samples(tuple(f"{step}-{place}" for place in range(samples)), step, silent)
        loss = objective.losses(portrait, given, objective.given(given, 0)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(portrait.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return Learned(portrait, objective, losses)


def gap(found: Learned, task: Task) -> tuple[float, float]:
    """The wrong-audio gap on new speech, and its standard error."""
    losses = validate(found.portrait, found.objective, task.samples(NEW), LEVELS, 0, alone())
    return losses["wrong_audio_gap"], losses["wrong_audio_gap_error"]


def followed(found: Learned, task: Task) -> float:
    """How well the mouths of drawn clips follow new speech: the correlation over all frames."""
    wanted, made = [], []
    for key in NEW:
        latents = drawn(found.portrait, found.objective, task.samples((key,)), 8, 1.0, 0)
        made.append(latents[:, 0, MOUTH[0], MOUTH[1]].mean(dim=(1, 2)))
        wanted.append(task.openness(key))
    return float(torch.corrcoef(torch.stack([torch.cat(wanted), torch.cat(made)]))[0, 1])


def sizes(injection: str) -> ModelConfig:
    return small(**{**LISTENING, "audio.injection": injection})


STEPS = 120
FEW = 80  # that it does not listen shows earlier


@pytest.fixture(scope="module")
def listener() -> Learned:
    return learned(Task(sizes("cross")), STEPS)


def test_lips_follow_new_speech_where_audio_attention_is_wired(listener: Learned) -> None:
    task = Task(sizes("cross"))
    size, error = gap(listener, task)
    assert size > 5 * error and size > 0.05
    assert followed(listener, task) > 0.9


def test_without_audio_attention_they_do_not() -> None:
    task = Task(sizes("none"))
    deaf = learned(task, FEW)
    assert "wrong_audio_gap" not in validate(deaf.portrait, deaf.objective, task.samples(NEW), LEVELS, 0, alone())
    assert deaf.losses[-1] < 0.5 * deaf.losses[0]  # it has learned the face
    assert abs(followed(deaf, task)) < 0.5


def test_a_network_that_never_heard_anything_shows_no_gap(listener: Learned) -> None:
    task = Task(sizes("cross"))
    unheard = learned(task, FEW, silent=True)
    size, _ = gap(unheard, task)
    assert size < 0.1 * gap(listener, task)[0]
    assert abs(followed(unheard, task)) < 0.5


def by_heart(network: ModelConfig, steps: int, copies: int, lr: float, **changes: Any) -> tuple[float, float]:
    """The validation loss of one sample before and after training on it alone, with fresh noise in every step."""
    torch.manual_seed(0)
    portrait = build(network)
    objective = Objective(ObjectiveConfig(), network, samples=copies)
    names = set(trained(network, "all").names)
    chosen = [parameter for name, parameter in portrait.named_parameters() if name in names]
    optimizer = torch.optim.AdamW(chosen, lr=lr, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    only = batch(network, ("only-000000",), **changes)
    copied = {
        field.name: value.expand(copies, *value.shape[1:])
        for field in dataclasses.fields(only)
        if isinstance(value := getattr(only, field.name), torch.Tensor)
    }
    before = validate(portrait, objective, only, range(50, 1000, 100), 0, alone())["loss"]
    for step in range(steps):
        given = dataclasses.replace(
            only,
            step=step,
            keys=only.keys * copies,
            places=tuple(range(copies)),
            dropped=only.dropped * copies,
            **copied,
        )
        # Copies of one sample share its noise: let each have its own.
        own = dataclasses.replace(given, keys=tuple(f"only-{place}" for place in range(copies)))
        loss = objective.losses(portrait, given, objective.given(own, 0)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(chosen, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return before, validate(portrait, objective, only, range(50, 1000, 100), 0, alone())["loss"]


def test_one_sample_is_learned_by_heart() -> None:
    before, after = by_heart(small(), steps=150, copies=8, lr=4e-3)
    assert after < 0.05 * before


@pytest.mark.soak
def test_one_sample_is_learned_by_heart_by_the_preset_for_a_laptop() -> None:
    # Its own patches hold 576 numbers and its tokens 128, so that most of the noise gets lost on the way.
    network = preset("tiny", patch=2, latent_height=12, latent_width=18)
    before, after = by_heart(network, steps=400, copies=8, lr=2e-3, frames=5)
    assert after < 0.05 * before


@pytest.mark.soak
@pytest.mark.parametrize("injection", ["cross", "self", "adaln", "adaln_zero"])
def test_every_way_of_bringing_sound_in_learns_to_listen(injection: str) -> None:
    task = Task(sizes(injection))
    found = learned(task, 600)
    size, error = gap(found, task)
    assert size > 5 * error and followed(found, task) > 0.95
