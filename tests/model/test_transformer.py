"""The denoiser's own promises: what is not real changes nothing, and wrong shapes are named."""

from __future__ import annotations

import pytest
import torch

from model.portrait import Portrait
from model.transformer import Denoiser
from tests.model.networks import inputs, shaken, small


@pytest.fixture(scope="module", params=["cross", "self", "adaln_zero"])
def portrait(request: pytest.FixtureRequest) -> Portrait:
    return shaken(Portrait(small(**{"audio.injection": request.param, "learned_positions": True})))


@torch.no_grad()
def test_padding_of_the_text_changes_nothing(portrait: Portrait) -> None:
    given = inputs(portrait.config)
    alone = portrait(given.noisy, given.timestep, given.text, **given.given())
    padding = 100 * torch.randn(2, 3, portrait.config.text_dim)
    mask = torch.tensor([[True] * 7 + [False] * 3] * 2)
    padded = portrait(
        given.noisy,
        given.timestep,
        torch.cat([given.text, padding], dim=1),
        **given.given(text_mask_BS=mask),
    )
    assert (padded - alone).abs().max() < 1e-5
    unmasked = portrait(given.noisy, given.timestep, torch.cat([given.text, padding], dim=1), **given.given())
    assert (unmasked - alone).abs().max() > 1e-2


@torch.no_grad()
def test_latent_frames_that_are_not_real_change_nothing(portrait: Portrait) -> None:
    short, long = inputs(portrait.config, frames=2), inputs(portrait.config, frames=3, seed=9)
    alone = portrait(short.noisy, short.timestep, short.text, **short.given())
    noisy, motion, audio = long.noisy.clone(), long.motion.clone(), long.audio.clone()
    noisy[:, :2], motion[:, :2], audio[:, :5] = short.noisy, short.motion, short.audio
    given = short.given(motion_BFCHW=motion, audio_BTWNC=audio)
    mask = torch.tensor([[True, True, False]] * 2)
    padded = portrait(noisy, short.timestep, short.text, **given, frame_mask_BF=mask)
    assert (padded[:, :2] - alone).abs().max() < 1e-5
    unmasked = portrait(noisy, short.timestep, short.text, **given)
    assert (unmasked[:, :2] - alone).abs().max() > 1e-2


@torch.no_grad()
def test_a_batch_is_what_its_clips_are_alone(portrait: Portrait) -> None:
    given = inputs(portrait.config)
    both = portrait(given.noisy, given.timestep, given.text, **given.given())
    for row in range(2):
        one = {name: value[row : row + 1] for name, value in given.given().items()}
        alone = portrait(given.noisy[row : row + 1], given.timestep[row : row + 1], given.text[row : row + 1], **one)
        assert (both[row : row + 1] - alone).abs().max() < 1e-5


@torch.no_grad()
def test_every_condition_matters(portrait: Portrait) -> None:
    given = inputs(portrait.config)
    whole = portrait(given.noisy, given.timestep, given.text, **given.given())
    for name, value in given.given().items():
        other = portrait(given.noisy, given.timestep, given.text, **given.given(**{name: value.flip(0)}))
        assert (other - whole).abs().max() > 1e-2, name
        without = portrait(given.noisy, given.timestep, given.text, **given.given(**{name: None}))
        assert (without - whole).abs().max() > 1e-2, name


def test_shapes_that_do_not_fit_are_named() -> None:
    config = small(learned_positions=True)
    denoiser = Denoiser(config)
    given = inputs(config)
    with pytest.raises(ValueError, match=r"sound of 5 video frames makes 2 latent frames; the latent has 3"):
        denoiser(given.noisy, given.timestep, given.text, audio_BTWNC=given.audio[:, :5])
    with pytest.raises(ValueError, match=r"sound of 8 video frames; latents are made of 1 \+ 4k frames"):
        denoiser(given.noisy, given.timestep, given.text, audio_BTWNC=given.audio[:, :8])
    with pytest.raises(ValueError, match=r"3 × 7 × 12 .* do not divide into patches of 1 × 2 × 2"):
        denoiser(given.noisy[..., :7, :], given.timestep, given.text)
    with pytest.raises(ValueError, match=r"learned positions for 10 and 72: shorten the prompt or the clip"):
        denoiser(given.noisy.repeat(1, 2, 1, 1, 1), given.timestep, given.text)
    with pytest.raises(ValueError, match=r"reference of 1 layers for 2 blocks"):
        denoiser(given.noisy, given.timestep, given.text, reference=[torch.zeros(2, 24, 64)])
    with pytest.raises(ValueError, match=r"no channels for motion"):
        Denoiser(small(condition_channels=0))(given.noisy, given.timestep, given.text, motion_BFCHW=given.motion)


@torch.no_grad()
def test_it_runs_in_bfloat16_close_to_float32() -> None:
    network = shaken(Portrait(small()))
    given = inputs(network.config)
    expected = network(given.noisy, given.timestep, given.text, **given.given())
    half = {name: value.bfloat16() for name, value in given.given().items()}
    found = network.bfloat16()(given.noisy.bfloat16(), given.timestep, given.text.bfloat16(), **half)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() < 0.05 * expected.norm()
