"""The reference network: once a clip, keys and values only."""

from __future__ import annotations

import torch

from model.attention import JointAttention, joint_rotary, video_rotary
from model.portrait import Portrait
from model.transformer import Denoiser
from tests.model.networks import inputs, shaken, small


@torch.no_grad()
def test_keys_made_once_give_what_looking_at_every_step_gives() -> None:
    portrait = shaken(Portrait(small()))
    given = inputs(portrait.config)
    keys = portrait.look(given.reference, given.text)
    for timestep in (999, 519, 19):
        at = torch.full((2,), timestep)
        every_step = portrait(given.noisy, at, given.text, **given.given())
        once = portrait(given.noisy, at, given.text, **given.given(reference_BCHW=None), reference_keys=keys)
        assert torch.equal(once, every_step)


@torch.no_grad()
def test_features_are_what_attention_sees_of_the_picture_at_time_zero() -> None:
    portrait = shaken(Portrait(small()))
    given = inputs(portrait.config)
    assert portrait.reference is not None
    plain = Denoiser(portrait.config.backbone())
    plain.load_state_dict(portrait.reference.state_dict())
    seen = []
    for block in plain.transformer_blocks:
        block.attn1.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0][:, arguments[1] :]))
    frame = given.reference[:, None]
    plain(frame, torch.zeros(2), given.text, motion_BFCHW=frame)
    features = portrait.reference(given.reference, given.text)
    assert len(features) == len(seen) == 2
    for feature, expected in zip(features, seen, strict=True):
        assert feature.shape == (2, 24, 64)
        assert torch.equal(feature, expected)


@torch.no_grad()
def test_a_reference_is_looked_at_and_does_not_look() -> None:
    """Were its tokens queries too, as in the released code, nothing but discarded outputs would be different."""
    attention = shaken(JointAttention(small()))
    config = small()
    tokens, reference = torch.randn(2, 3 + 48, 64), torch.randn(2, 24, 64)
    rotary = joint_rotary(video_rotary(config, 2, 4, 6, torch.device("cpu")), 3)
    found = attention(tokens, 3, rotary, attention.keys(reference))
    # The released code's way: one sequence of text, picture and reference; reference tokens are not turned.
    still = [torch.cat([table, torch.full((24, 32), value)]) for table, value in zip(rotary, (1.0, 0.0), strict=True)]
    joint = attention(torch.cat([tokens, reference], dim=1), 3, (still[0], still[1]))
    assert (joint[:, : 3 + 48] - found).abs().max() < 1e-5


def test_all_of_the_reference_network_but_its_end_gets_a_gradient() -> None:
    portrait = shaken(Portrait(small()))
    given = inputs(portrait.config)
    portrait(given.noisy, given.timestep, given.text, **given.given()).square().mean().backward()
    without = {name for name, value in portrait.named_parameters() if value.grad is None}
    assert without == set(portrait.idle_parameters())
    assert all(value.grad.abs().max() > 0 for value in portrait.parameters() if value.grad is not None)


@torch.no_grad()
def test_padding_of_the_text_changes_no_feature() -> None:
    portrait = shaken(Portrait(small()))
    given = inputs(portrait.config)
    assert portrait.reference is not None
    alone = portrait.reference(given.reference, given.text)
    padded = torch.cat([given.text, 100 * torch.randn(2, 3, 24)], dim=1)
    mask = torch.tensor([[True] * 7 + [False] * 3] * 2)
    for one, other in zip(alone, portrait.reference(given.reference, padded, mask), strict=True):
        assert (one - other).abs().max() < 1e-5
