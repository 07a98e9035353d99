"""The loss: noise levels and noise as functions of names, weights of face and lips, and what the network is given."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from model import portrait
from model.conditioning import windows
from model.diffusion import Schedule
from model.settings import SettingsError
from tests.model.networks import shaken, small
from tests.training.batches import batch
from training.objective import Objective, ObjectiveConfig, ObjectiveError, heard, levels, weights

SEED = 5


def objective(samples: int = 2, network: Any = None, **settings: Any) -> Objective:
    return Objective(ObjectiveConfig(**settings), network or small(), samples)


class Always(torch.nn.Module):
    """A network that predicts what it was told to."""

    def __init__(self, v: torch.Tensor) -> None:
        super().__init__()
        self.v = v

    def forward(self, noisy_BFCHW: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return self.v.expand_as(noisy_BFCHW)


# Levels


def test_every_stratum_of_noise_levels_belongs_to_one_place_of_a_step():
    for step in range(20):
        t_B = levels(SEED, step, range(8), 8)
        assert sorted((t_B // 125).tolist()) == list(range(8))


def test_a_place_has_the_same_level_on_any_rank():
    whole = levels(SEED, 3, range(8), 8)
    even, odd = levels(SEED, 3, range(0, 8, 2), 8), levels(SEED, 3, range(1, 8, 2), 8)
    assert torch.equal(torch.stack([even, odd], dim=1).flatten(), whole)


def test_levels_are_uniform_for_each_place_and_differ_from_step_to_step_and_seed_to_seed():
    drawn = torch.stack([levels(SEED, step, range(4), 4) for step in range(2000)])
    for place in range(4):
        share = torch.histc(drawn[:, place].float(), bins=10, min=0, max=1000) / len(drawn)
        assert (share - 0.1).abs().max() < 0.03, share  # 4.5 standard deviations
    assert drawn.min() <= 2 and drawn.max() >= 997
    assert len({tuple(row) for row in drawn.tolist()}) > 1990
    assert not torch.equal(levels(SEED + 1, 0, range(4), 4), drawn[0])


# Noise


def test_noise_belongs_to_a_sample_and_a_step_not_to_its_place_in_the_batch():
    network = small()
    here = objective().given(batch(network, ("a", "b"), step=7), SEED)
    there = objective().given(batch(network, ("b", "a"), step=7), SEED)
    later = objective().given(batch(network, ("a", "b"), step=8), SEED)

    def noise(given: Any) -> torch.Tensor:
        return Schedule().noise(given.noisy_BFCHW, given.target_BFCHW, given.t_B)

    torch.testing.assert_close(noise(here), noise(there).flip(0), atol=1e-5, rtol=0)
    assert (noise(here) - noise(later)).abs().mean() > 0.5
    assert abs(noise(here).std().item() - 1) < 0.05
    assert (noise(here)[0] - noise(here)[1]).abs().mean() > 0.5


def test_validation_noise_is_the_same_in_every_step_and_at_every_level():
    network = small()
    first, later = batch(network, step=1), batch(network, step=900)
    assert torch.equal(objective().fixed(first, 400, SEED).noisy_BFCHW, objective().fixed(later, 400, SEED).noisy_BFCHW)
    pure = objective().fixed(first, 999, SEED)
    torch.testing.assert_close(Schedule().noise(*_taken(objective().fixed(first, 10, SEED))), pure.noisy_BFCHW)


def _taken(given: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return given.noisy_BFCHW, given.target_BFCHW, given.t_B


# Loss


def test_the_loss_is_the_squared_error_of_v_by_sample():
    network = small()
    samples = batch(network)
    given = objective().given(samples, SEED)
    assert torch.equal(objective().losses(Always(given.target_BFCHW), samples, given), torch.zeros(2))
    nothing = objective().losses(Always(torch.zeros(1)), samples, given)
    torch.testing.assert_close(nothing, (given.target_BFCHW**2).flatten(1).mean(1))
    alpha, sigma = Schedule().levels(given.t_B, samples.latent_BFCHW)
    assert torch.allclose(given.noisy_BFCHW * alpha - given.target_BFCHW * sigma, samples.latent_BFCHW, atol=1e-5)


def test_losses_do_not_depend_on_micro_batches():
    network = small()
    whole = shaken(portrait.build(network))
    samples = batch(network, ("a", "b", "c"))
    ours = objective(3, face_weight=2.0)
    given = ours.given(samples, SEED)
    together = ours.losses(whole, samples, given)
    pieces = zip(samples.split(1), given.split(1), strict=True)
    apart = torch.cat([ours.losses(whole, part, part_given) for part, part_given in pieces])
    torch.testing.assert_close(together, apart, atol=0, rtol=2e-6)


def test_a_network_in_bfloat16_is_fed_bfloat16_and_judged_in_float32():
    network = small()
    whole = shaken(portrait.build(network))
    samples = batch(network)
    exact = objective().losses(whole, samples, objective().given(samples, SEED))
    half = dataclasses.replace(objective(), dtype=torch.bfloat16)
    rough = half.losses(whole.to(torch.bfloat16), samples, half.given(samples, SEED))
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, atol=0, rtol=0.05)
    assert not torch.equal(rough, exact)


def test_the_network_is_given_what_it_has_parts_for():
    samples = batch(small())
    everything = objective().conditions(samples)
    assert set(everything) == {
        "text_BSD", "text_mask_BS", "reference_BCHW", "motion_BFCHW", "face_BC", "audio_BTWNC"
    }  # fmt: skip
    assert torch.equal(everything["motion_BFCHW"][:, :2], samples.motion_BNCHW)
    assert not everything["motion_BFCHW"][:, 2:].any()
    deaf = dataclasses.replace(objective(), audio=False).conditions(samples)
    assert set(everything) - set(deaf) == {"audio_BTWNC"}
    bare = small(identity="none", condition_channels=0, **{"audio.injection": "none"})
    assert set(objective(network=bare).conditions(samples)) == {"text_BSD", "text_mask_BS"}


def test_speech_beyond_the_window_is_heard_by_its_outermost_frames():
    sound_BTNC = torch.randn(1, 40, 2, 3)
    whole = windows(sound_BTNC[0], 2)
    cut = heard(sound_BTNC[:, 10 - 2 : 19 + 2], latent_frames=3, window=2)
    assert torch.equal(cut[0], whole[10:19])


# Weights of face and lips


def test_weights_follow_the_boxes_and_are_one_on_average():
    boxes = torch.tensor([[[0, 0, 32, 16], [0, 0, 8, 8]]], dtype=torch.float32)  # 4 × 2 and 1 × 1 positions
    found = weights(boxes, (1, 4, 8), face=3.0, lips=9.0)[0, 0]
    expected = torch.ones(4, 8)
    expected[:2, :4] = 3
    expected[0, 0] = 9
    torch.testing.assert_close(found, expected / expected.mean())
    assert found.mean().item() == pytest.approx(1)


def test_a_position_that_is_covered_in_part_counts_in_part():
    boxes = torch.tensor([[[0, 0, 4, 8], [0, 0, 0, 0]]], dtype=torch.float32)
    found = weights(boxes, (1, 1, 2), face=3.0, lips=1.0)[0, 0, 0]
    assert (found[0] / found[1]).item() == pytest.approx(2)  # half of it at 3, half at 1


def test_boxes_of_four_video_frames_make_the_weights_of_their_latent_frame():
    boxes = torch.zeros(9, 2, 4)
    boxes[5:9, 0] = torch.tensor([0.0, 0, 8, 8])  # video frames 5 … 8 are latent frame 2
    found = weights(boxes, (3, 1, 2), face=5.0, lips=1.0)[:, 0, 0]
    assert found[0, 0] == found[1, 0] == found[1, 1] == found[2, 1]
    assert (found[2, 0] / found[2, 1]).item() == pytest.approx(5)
    boxes[5:7] = float("nan")  # frames where the face is lost say nothing
    assert torch.equal(weights(boxes, (3, 1, 2), face=5.0, lips=1.0)[:, 0, 0], found)


def test_a_face_lost_throughout_leaves_all_positions_alike():
    assert torch.equal(weights(torch.full((9, 2, 4), float("nan")), (3, 4, 4), 3.0, 9.0), torch.ones(3, 1, 4, 4))


def test_a_heavier_face_makes_its_error_count_more():
    network = small()
    samples = batch(network)
    plain, heavy = objective(), objective(face_weight=10.0)
    given = heavy.given(samples, SEED)
    wrong_within = torch.zeros_like(given.target_BFCHW)
    wrong_within[..., 3:5, 4:8] = 1.0
    v = Always(given.target_BFCHW + wrong_within)
    assert (heavy.losses(v, samples, given) > 2 * plain.losses(v, samples, plain.given(samples, SEED))).all()


def test_weights_without_boxes_say_what_to_pack():
    with pytest.raises(ObjectiveError, match="mask"):
        samples = dataclasses.replace(batch(small()), boxes_BT24=None)
        objective(lip_weight=2.0).given(samples, SEED)


@pytest.mark.parametrize("setting", ["face_weight=-1", "lip_weight=-0.5", "shift=0"])
def test_settings_that_make_no_sense_are_refused(setting: str):
    name, _, value = setting.partition("=")
    with pytest.raises(SettingsError, match=name):
        ObjectiveConfig(**{name: float(value)}).check()
