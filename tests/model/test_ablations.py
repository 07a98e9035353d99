"""Every cell of the paper's ablations is a setting that builds, runs, learns, and starts where it should."""

from __future__ import annotations

import pytest
import torch

from model.config import IDENTITIES, MOTION_FRAMES, ModelConfig
from model.portrait import Portrait, build
from tests.model.networks import Inputs, inputs, shaken, small

INJECTIONS = ("cross", "self", "adaln", "adaln_zero")
NEW = ("face_", "audio_")


def network_of(config: ModelConfig) -> Portrait:
    """A network as a new stage begins: its backbone trained (here: drawn at random), the paper's parts fresh."""
    portrait = build(config)
    old = {name: value for name, value in shaken(build(config)).state_dict().items() if not is_new(name)}
    portrait.load_state_dict(old, strict=False)
    return portrait


def is_new(name: str) -> bool:
    return any(part.startswith(NEW) for part in name.split("."))


def run(portrait: Portrait, given: Inputs, **changes: object) -> torch.Tensor:
    return portrait(given.noisy, given.timestep, given.text, **given.given(**changes))


def run_and_learn(config: ModelConfig) -> None:
    """Forward and backward; every parameter but the idle ones gets a gradient, and a step lowers the loss."""
    portrait = shaken(build(config))
    given = inputs(config, frames=max(3, config.motion.frames))
    target = torch.randn(given.noisy.shape, generator=torch.Generator().manual_seed(5))
    loss = (run(portrait, given) - target).square().mean()
    loss.backward()
    without = {name for name, value in portrait.named_parameters() if value.grad is None or not value.grad.any()}
    assert without == set(portrait.idle_parameters())
    with torch.no_grad():
        length = sum(float(value.grad.square().sum()) for value in portrait.parameters() if value.grad is not None)
        for value in portrait.parameters():
            if value.grad is not None:
                value -= 0.02 * loss.detach() / length * value.grad
        assert (run(portrait, given) - target).square().mean() < loss


@pytest.mark.parametrize("injection", INJECTIONS)
def test_audio_injection(injection: str) -> None:
    run_and_learn(small(**{"audio.injection": injection}))


@pytest.mark.parametrize("identity", IDENTITIES)
def test_identity(identity: str) -> None:
    config = small(identity=identity)
    portrait = build(config)
    assert (portrait.reference is not None) == ("reference" in identity)
    run_and_learn(config)


@pytest.mark.parametrize("frames", MOTION_FRAMES)
def test_motion_frames(frames: int) -> None:
    run_and_learn(small(**{"motion.frames": frames, "latent_frames": 8}))


def test_the_released_codes_variant() -> None:
    run_and_learn(small(compat="hallo3"))


@torch.no_grad()
@pytest.mark.parametrize("injection", ["none", *INJECTIONS])
@pytest.mark.parametrize("identity", IDENTITIES)
def test_a_fresh_stage_is_the_identity_to_the_bit(identity: str, injection: str) -> None:
    config = small(**{"identity": identity, "audio.injection": injection})
    portrait = network_of(config)
    given = inputs(config)
    bare = build(config.backbone())
    bare.denoiser.load_state_dict(
        {name: value for name, value in portrait.denoiser.state_dict().items() if not is_new(name)}
    )
    keys = portrait.look(given.reference, given.text)
    expected = bare(given.noisy, given.timestep, given.text, motion_BFCHW=given.motion, reference_keys=keys)
    assert torch.equal(run(portrait, given), expected)
    loud = run(portrait, given, face_BC=50 * given.face, audio_BTWNC=50 * given.audio)
    assert torch.equal(loud, expected)


@pytest.mark.parametrize("injection", INJECTIONS)
@pytest.mark.parametrize("identity", ["face_attention", "face_norm"])
def test_one_step_gives_every_new_output_projection_a_gradient_and_the_next_one_all_new_parts(
    identity: str, injection: str
) -> None:
    config = small(**{"identity": identity, "audio.injection": injection})
    portrait = network_of(config)
    given = inputs(config)
    new = {name: value for name, value in portrait.named_parameters() if is_new(name)}
    outputs = {name for name in new if "adaptive" in name or "to_out.0" in name or name.endswith("gate")}
    assert not any(new[name].any() for name in outputs)
    assert len(outputs) == 2 * (2 + (1 if injection == "self" else 2))
    optimizer = torch.optim.SGD(new.values(), lr=0.1)
    for step in (1, 2):
        optimizer.zero_grad()
        run(portrait, given).square().mean().backward()
        moved = {name for name, value in new.items() if value.grad is not None and value.grad.any()}
        assert moved >= outputs if step == 1 else moved == set(new)
        optimizer.step()


def test_gated_and_plain_adaptive_norms_differ_in_their_gates_alone() -> None:
    sizes = {}
    for injection in ("adaln", "adaln_zero"):
        portrait = build(small(**{"audio.injection": injection}))
        sizes[injection] = portrait.denoiser.transformer_blocks[0].audio_adaptive.linear.out_features
    assert sizes == {"adaln": 4 * 64, "adaln_zero": 6 * 64}
