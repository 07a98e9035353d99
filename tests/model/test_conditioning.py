"""Face and sound as tokens: which video frame reaches which latent frame."""

from __future__ import annotations

import pytest
import torch

from model.attention import CrossAttention
from model.conditioning import AdaptiveNorm, AudioTokens, FaceTokens, Shift, windows
from model.hallo3 import Hallo3AudioTokens
from model.transformer import ExpertNorm
from tests.model.networks import shaken, small


def latent_of(video_frame: int) -> int:
    """Frame 0 is latent frame 0, frames 1..4 are latent frame 1, and so on."""
    return -(-video_frame // 4)


@torch.no_grad()
@pytest.mark.parametrize("kind", [AudioTokens, Hallo3AudioTokens])
def test_a_video_frame_of_sound_reaches_the_latent_frames_whose_windows_hold_it(kind: type) -> None:
    config = small()
    project = shaken(kind(config))
    frames, window = 21, config.audio.window
    audio = torch.randn(frames, 2, 16)
    before = project(windows(audio, window)[None])
    for touched in range(frames):
        louder = audio.clone()
        louder[touched] += 1
        after = project(windows(louder, window)[None])
        changed = {int(i) for i in (after != before).flatten(2).any(dim=2)[0].nonzero()}
        reached = range(max(0, touched - window), min(frames, touched + window + 1))
        assert changed == {latent_of(frame) for frame in reached}, touched


@torch.no_grad()
@pytest.mark.parametrize("kind", [AudioTokens, Hallo3AudioTokens])
def test_a_window_makes_its_own_latent_frame_and_no_other(kind: type) -> None:
    project = shaken(kind(small()))
    audio = torch.randn(1, 49, 5, 2, 16)
    before = project(audio)
    assert before.shape == (1, 13, 4, 24)
    for touched in range(49):
        other = audio.clone()
        other[:, touched] += 1
        changed = (project(other) != before).flatten(2).any(dim=2)[0].nonzero().flatten().tolist()
        assert changed == [latent_of(touched)]


@torch.no_grad()
def test_the_order_of_frames_within_a_latent_frame_is_heard() -> None:
    project = shaken(AudioTokens(small()))
    audio = torch.randn(1, 5, 5, 2, 16)
    turned = audio[:, [0, 4, 3, 2, 1]]
    assert (project(turned) - project(audio)).abs().max() > 0.1


@torch.no_grad()
def test_the_released_projector_takes_any_number_of_frames() -> None:
    project = shaken(Hallo3AudioTokens(small()))
    counts = {frames: project(torch.randn(1, frames, 5, 2, 16)).shape[1] for frames in (1, 2, 3, 5, 9, 48, 49, 50)}
    assert counts == {1: 1, 2: 1, 3: 1, 5: 2, 9: 3, 48: 12, 49: 13, 50: 13}


def test_windows_hold_the_neighbours_and_repeat_the_outermost() -> None:
    audio = torch.arange(5.0)[:, None, None]
    found = windows(audio, 2)[..., 0, 0]
    assert found.tolist() == [[0, 0, 0, 1, 2], [0, 0, 1, 2, 3], [0, 1, 2, 3, 4], [1, 2, 3, 4, 4], [2, 3, 4, 4, 4]]
    assert windows(audio, 2, margin=1)[..., 0, 0].tolist() == found[1:4].tolist()
    assert windows(audio, 2, margin=2)[..., 0, 0].tolist() == [[0, 1, 2, 3, 4]]


def test_padded_sound_counts_as_silence_whatever_it_holds() -> None:
    audio = torch.randn(9, 2, 16)
    real = torch.arange(9) < 6
    loud, quiet = audio.clone(), audio.clone()
    loud[6:], quiet[6:] = 100, 0
    loud[8, 0, 0] = float("nan")
    assert torch.equal(windows(loud, 2, real_T=real), windows(quiet, 2))


@torch.no_grad()
def test_a_patch_hears_the_sound_of_its_own_latent_frame_alone() -> None:
    config = small()
    listen = shaken(CrossAttention(config, config.audio.token_dim))
    picture, tokens = torch.randn(2, 3 * 24, 64), torch.randn(2, 3, 4, 24)
    before = listen(picture, tokens)
    for frame in range(3):
        other = tokens.clone()
        other[:, frame] += 1
        changed = (listen(picture, other) != before).any(dim=2).unflatten(1, (3, 24))
        assert changed.all(dim=2)[0].tolist() == [i == frame for i in range(3)]
        assert changed.any(dim=2)[0].tolist() == [i == frame for i in range(3)]
        alone = listen(picture[:, frame * 24 : (frame + 1) * 24], tokens[:, frame])
        assert (alone - before[:, frame * 24 : (frame + 1) * 24]).abs().max() < 1e-5


@torch.no_grad()
def test_face_tokens_are_the_normed_parts_of_one_linear_layer() -> None:
    config = small()
    tokens = shaken(FaceTokens(config))
    face = torch.randn(3, 16)
    found = tokens(face)
    assert found.shape == (3, 4, 24)
    whole = face @ tokens.proj.weight.T + tokens.proj.bias
    part = whole[:, 24:48]
    normed = (part - part.mean(1, keepdim=True)) / (part.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    assert (found[:, 1] - (normed * tokens.norm.weight + tokens.norm.bias)).abs().max() < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 3])
def test_a_norms_shift_scale_and_gate_are_moved_for_the_picture_frame_by_frame(frames: int) -> None:
    """frames=1: a face moves the whole clip; 3: sound moves each latent frame for itself."""
    config = small()
    norm = shaken(ExpertNorm(config))
    text, picture, time = torch.randn(2, 5, 64), torch.randn(2, 3 * 4, 64), torch.randn(2, 32)
    move = Shift(*torch.randn(3, 2, frames, 64))
    plain, (plain_text_gate, plain_gate) = norm(text, picture, time)
    seen, (text_gate, gate) = norm(text, picture, time, [move])
    assert torch.equal(seen[:, :5], plain[:, :5])
    assert torch.equal(text_gate, plain_text_gate)
    assert torch.equal(gate, plain_gate + move.gate)
    shift, scale, _ = norm.linear(torch.nn.functional.silu(time))[:, None].chunk(6, dim=-1)[:3]
    for token in range(12):
        frame = token // 4 if frames == 3 else 0
        normed = norm.norm(picture[:, token])
        expected = normed * (1 + scale[:, 0] + move.scale[:, frame]) + shift[:, 0] + move.shift[:, frame]
        assert (seen[:, 5 + token] - expected).abs().max() < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("gated", [True, False])
def test_an_adaptive_norm_hears_the_mean_of_a_frames_tokens(gated: bool) -> None:
    adapt = shaken(AdaptiveNorm(24, 64, gated=gated))
    tokens = torch.randn(2, 3, 4, 24)
    before, after = adapt(tokens)
    out = adapt.linear(torch.nn.functional.silu(tokens.mean(dim=2)))
    parts = out.chunk(6 if gated else 4, dim=-1)
    assert torch.equal(torch.cat([before.shift, before.scale], dim=-1), torch.cat(parts[:2], dim=-1))
    assert torch.equal(
        torch.cat([after.shift, after.scale], dim=-1), torch.cat(parts[-3:-1] if gated else parts[2:], -1)
    )
    assert bool(before.gate.any()) == bool(after.gate.any()) == gated
    clip = adapt(tokens[:, 0])[0]
    assert clip.shift.shape == (2, 1, 64)
