"""Motion frames: each alone, in order, in the first latent frames of the condition and nowhere else."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX

from model import codecs, motion
from model.codecs.cogvideox import CogVideoX
from model.portrait import Portrait
from tests.model.networks import inputs, shaken, small


@pytest.fixture(scope="module")
def codec() -> codecs.Codec:
    return codecs.load("dct")


def test_each_motion_frame_is_encoded_alone_and_in_order(codec: codecs.Codec) -> None:
    frames = torch.rand(4, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = motion.encode(codec, frames)
    assert latents.shape == (4, codec.channels, 4, 6)
    for number in range(4):
        assert torch.equal(latents[number], codec.encode(frames[number : number + 1])[0])
    darker = frames.clone()
    darker[2] -= 0.5
    changed = (motion.encode(codec, darker) != latents).flatten(1).any(dim=1)
    assert changed.tolist() == [False, False, True, False]


@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_the_condition_is_the_motion_latents_and_then_zeros(n: int) -> None:
    latents = torch.randn(n, 4, 6, 9)
    condition = motion.condition(latents, 13)
    assert condition.shape == (13, 4, 6, 9)
    assert torch.equal(condition[:n], latents)
    assert not condition[n:].any()
    batch = torch.stack([latents, latents + 1])
    assert torch.equal(motion.condition(batch, 13)[1, :n], latents + 1)


def test_more_motion_than_latent_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="8 motion latents do not fit into 4 latent frames"):
        motion.condition(torch.zeros(8, 4, 6, 9), 4)


def test_the_denoiser_sees_the_condition_frame_by_frame() -> None:
    """Before any attention, a change of motion latent i moves the tokens of latent frame i and no other."""
    config = small()
    portrait = shaken(Portrait(config))
    given = inputs(config)
    seen = []
    hook = portrait.denoiser.patch_embed.register_forward_hook(lambda *call: seen.append(call[2][1]))
    for frame in (None, 0, 1):
        moved = given.motion.clone()
        if frame is not None:
            moved[:, frame] += 1
        portrait.denoiser(given.noisy, given.timestep, given.text, motion_BFCHW=moved)
    hook.remove()
    for frame, tokens in enumerate(seen[1:]):
        changed = (tokens != seen[0]).any(dim=2).unflatten(1, (3, -1)).any(dim=2)
        assert changed.tolist() == [[other == frame for other in range(3)]] * 2


def test_a_masked_share_of_positions_is_put_out_in_all_channels_and_no_other() -> None:
    latents = torch.randn(2, 16, 60, 90) + 10
    out = motion.masked(latents, 0.25, torch.Generator().manual_seed(3))
    gone = out == 0
    assert torch.equal(gone.all(dim=1), gone.any(dim=1))
    assert torch.equal(out[~gone], latents[~gone])
    assert abs(float(gone.float().mean()) - 0.25) < 0.02  # 10,800 draws: three standard deviations are 0.0125
    again = motion.masked(latents, 0.25, torch.Generator().manual_seed(3))
    assert torch.equal(out, again)
    assert torch.equal(motion.masked(latents, 0.0, torch.Generator().manual_seed(3)), latents)
    assert not torch.equal(gone[0], gone[1])


def test_the_last_frames_of_a_short_clip_begin_with_its_first_repeated() -> None:
    frames = torch.arange(3.0)[:, None, None, None].expand(3, 3, 2, 2)
    assert motion.last(frames, 2)[:, 0, 0, 0].tolist() == [1, 2]
    assert motion.last(frames, 8)[:, 0, 0, 0].tolist() == [0, 0, 0, 0, 0, 0, 1, 2]


def vae(**changes: object) -> AutoencoderKLCogVideoX:
    """A small VAE with random weights, the same each time."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("CogVideoXDownBlock3D",) * 4, "up_block_types": ("CogVideoXUpBlock3D",) * 4}
    sizes = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 2, "latent_channels": 4}
    return AutoencoderKLCogVideoX(**sizes, **blocks, **changes).eval().requires_grad_(False)


def test_the_released_codes_three_frames_make_one_latent_that_knows_them_all() -> None:
    codec = CogVideoX(vae())
    frames = torch.rand(3, 3, 16, 24) * 2 - 1
    latent = motion.joint(codec, frames[0], frames[1:])
    assert latent.shape == (1, 4, 2, 3)
    for changed in range(3):
        other = frames.clone()
        other[changed] *= -1
        assert (motion.joint(codec, other[0], other[1:]) - latent).abs().max() > 1e-4, changed


@pytest.mark.parametrize(("inverted", "factor"), [(False, 0.7), (True, 1 / 0.7)])
def test_motion_has_the_scale_that_diffusers_gives_a_first_picture(inverted: bool, factor: float) -> None:
    """CogVideoX-5b multiplies the picture that it starts from by the VAE's scale, 1.5 divides it."""
    network = vae(scaling_factor=0.7, invert_scale_latents=inverted)
    codec = CogVideoX(network)
    frames = torch.rand(3, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1
    means = [network.encode(frame[None, :, None]).latent_dist.mean[0, :, 0] for frame in frames]
    torch.testing.assert_close(motion.encode(codec, frames), factor * torch.stack(means), atol=1e-6, rtol=1e-5)
    together = network.encode(frames.movedim(0, 1)[None]).latent_dist.mean[0].movedim(1, 0)
    torch.testing.assert_close(motion.joint(codec, frames[0], frames[1:]), factor * together, atol=1e-6, rtol=1e-5)


def test_masked_alike_the_same_positions_go_in_all_frames() -> None:
    frames = torch.rand(2, 3, 96, 144, generator=torch.Generator().manual_seed(0)) + 0.5
    out = motion.masked(frames, motion.RELEASED_MASK, torch.Generator().manual_seed(3), alike=True)
    gone = out == 0
    assert torch.equal(gone, gone[:1, :1].expand_as(gone))
    assert torch.equal(out[~gone], frames[~gone])
    assert abs(float(gone.float().mean()) - 0.1) < 0.008  # 13,824 draws: three standard deviations
