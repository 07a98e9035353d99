"""The same few samples every time: losses that can be compared between steps, and clips that can be looked at."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from model import media
from model.codecs.dct import Dct
from model.encoders.speech import FPS
from model.portrait import Portrait, build
from model.settings import SettingsError
from tests.model import synthetic
from tests.model.networks import shaken, small
from tests.training.batches import batch
from tests.training.worlds import alone
from training.objective import Objective, ObjectiveConfig
from training.validation import Clips, ValidationConfig, chosen, drawn, foreign, validate

NETWORK = small(latent_channels=16, condition_channels=16)
KEYS = ("one-000000", "one-000049", "two-000000")
LEVELS = (100, 500, 900)


def objective(**changes: bool) -> Objective:
    return Objective(ObjectiveConfig(), NETWORK, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def portrait() -> Portrait:
    return shaken(build(NETWORK))


def found(portrait: Portrait, samples: tuple[str, ...] = KEYS, seed: int = 0, **changes: bool) -> dict[str, float]:
    return validate(portrait, objective(**changes), batch(NETWORK, samples), LEVELS, seed, alone())


def test_the_loss_at_a_level_is_the_objectives_own(portrait: Portrait) -> None:
    samples = batch(NETWORK, KEYS)
    with torch.no_grad():
        own = objective().losses(portrait, samples, objective().fixed(samples, 500, 0))
    losses = found(portrait)
    assert losses["loss@t=500"] == pytest.approx(float(own.mean()), rel=1e-5)
    assert losses["loss"] == pytest.approx(sum(losses[f"loss@t={t}"] for t in LEVELS) / len(LEVELS))


def test_losses_are_the_same_every_time_and_leave_no_gradient(portrait: Portrait) -> None:
    first = found(portrait)
    torch.randn(3)
    assert found(portrait) == first
    assert found(portrait, seed=1) != first
    assert all(parameter.grad is None for parameter in portrait.parameters())


def test_the_gap_is_what_another_clips_sound_costs(portrait: Portrait) -> None:
    samples = batch(NETWORK, KEYS)
    swapped = dataclasses.replace(samples, audio_BTNC=samples.audio_BTNC[[2, 2, 0]])
    with torch.no_grad():
        gaps = torch.stack(
            [
                objective().losses(portrait, swapped, given) - objective().losses(portrait, samples, given)
                for given in (objective().fixed(samples, t, 0) for t in LEVELS)
            ]
        ).mean(dim=0)
    losses = found(portrait)
    assert losses["wrong_audio_gap"] == pytest.approx(float(gaps.mean()), abs=1e-5)
    assert losses["wrong_audio_gap_error"] == pytest.approx(float(gaps.std() / 3**0.5), abs=1e-5)
    assert abs(losses["wrong_audio_gap"]) > 1e-4  # these weights do listen


def test_a_network_that_does_not_listen_has_no_gap_to_show(portrait: Portrait) -> None:
    assert "wrong_audio_gap" not in found(portrait, audio=False)
    assert "wrong_audio_gap" not in found(portrait, samples=("one-000000",))


def test_another_clips_sound_is_taken_where_there_is_one() -> None:
    assert foreign(["a-0", "a-1", "b-0"]) == [2, 2, 0]
    assert foreign(["a-0", "a-1"]) == [1, 0]
    assert foreign(["a-0"]) is None


def test_samples_to_validate_on_come_from_as_many_clips_as_possible() -> None:
    keys = ["b-000000", "a-000049", "a-000000", "a-000098", "c-000000"]
    assert chosen(keys, 4) == ["a-000000", "b-000000", "c-000000", "a-000049"]
    assert chosen(keys, 99) == ["a-000000", "b-000000", "c-000000", "a-000049", "a-000098"]
    assert chosen(list(reversed(keys)), 4) == chosen(keys, 4)


def test_a_clip_is_drawn_from_its_conditions_alone_and_hears_its_sound(portrait: Portrait) -> None:
    sample = batch(NETWORK, ("one-000000",))
    latents = drawn(portrait, objective(), sample, 4, 3.5, 0)
    assert latents.shape == sample.latent_BFCHW[0].shape and latents.dtype == torch.float32
    other = dataclasses.replace(sample, latent_BFCHW=torch.zeros_like(sample.latent_BFCHW))
    assert torch.equal(drawn(portrait, objective(), other, 4, 3.5, 0), latents)
    silent = dataclasses.replace(sample, audio_BTNC=torch.zeros_like(sample.audio_BTNC))
    assert not torch.allclose(drawn(portrait, objective(), silent, 4, 3.5, 0), latents)
    assert not torch.allclose(drawn(portrait, objective(), sample, 4, 1.0, 0), latents)


def mp4(path: Path, motion: int, frames: int) -> bytes:
    """A sample's film: motion frames first; a click where the window begins."""
    rate, all_frames = 16000, motion + frames
    sound = synthetic.clicks(all_frames / FPS, [motion / FPS], rate)
    times = [Fraction(frame, FPS) for frame in range(all_frames)]
    synthetic.write(path, times, sound=("aac", rate, sound, Fraction(0)))
    return path.read_bytes()


def test_clips_are_films_of_the_window_with_its_own_sound(portrait: Portrait, tmp_path: Path) -> None:
    samples, motion = batch(NETWORK, KEYS), NETWORK.motion.frames
    film = mp4(tmp_path / "stored.mp4", motion, 9)
    config = ValidationConfig(clips=2, clip_steps=2)
    clips = Clips(config, Dct(), tmp_path, alone(), {"one-000000": film}.get)
    written = clips.draw(portrait, objective(), samples, 40, 0)
    folder = tmp_path / "validation"
    assert written == [folder / "step-40" / f"{key}.mp4" for key in KEYS[:2]]
    facts = media.probe(written[0])
    assert facts.video is not None and (facts.video.width, facts.video.height) == (96, 64)
    pictures = [np.asarray(picture.image()) for picture in media.pictures(written[0])]
    assert len(pictures) == 9
    assert synthetic.onset(media.audio(written[0], None, 48000), 48000) == pytest.approx(0, abs=0.03)
    silent = media.probe(written[1])  # its shard holds no film
    assert silent.audio is None
    assert sorted(path.stem for path in (folder / "real").iterdir()) == sorted(KEYS[:2])


def test_the_real_clip_beside_it_is_what_the_latents_show(portrait: Portrait, tmp_path: Path) -> None:
    codec, config = Dct(), ValidationConfig(clips=1, clip_steps=1)
    ramp = torch.linspace(-0.8, 0.8, 96).expand(9, 3, 64, 96)
    sample = dataclasses.replace(batch(NETWORK, KEYS[:1]), latent_BFCHW=codec.encode(ramp)[None])
    Clips(config, codec, tmp_path, alone(), lambda key: None).draw(portrait, objective(), sample, 1, 0)
    real = next((tmp_path / "validation" / "real").iterdir())
    shown = np.stack([np.asarray(picture.image()) for picture in media.pictures(real)]).astype(float)
    wanted = (ramp.permute(0, 2, 3, 1).numpy() + 1) * 127.5
    assert np.abs(shown - wanted).mean() < 4


def test_a_clip_that_cannot_be_written_is_said_and_training_goes_on(portrait: Portrait, tmp_path: Path) -> None:
    (tmp_path / "validation").write_text("a file in the folder's place")
    said: list[str] = []
    clips = Clips(ValidationConfig(clips=1, clip_steps=1), Dct(), tmp_path, alone(), lambda key: None, said.append)
    assert clips.draw(portrait, objective(), batch(NETWORK, KEYS), 1, 0) == []
    assert len(said) == 2 and all("not written" in line for line in said)


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"levels": [1000]}, "1000 is no noise level"), ({"clip_steps": 0}, "1 to 1000"), ({"every": -1}, "at least 0")],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        ValidationConfig(**settings).check()  # type: ignore[arg-type]
