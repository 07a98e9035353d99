"""The presets' sizes, on the meta device, and settings that do not go together."""

from __future__ import annotations

import time

import pytest
import torch

from model.config import PRESETS, flat, from_flat, preset
from model.portrait import Portrait, build
from model.settings import SettingsError
from tests.model.networks import inputs


def count(portrait: Portrait, *parts: str) -> float:
    """Parameters in billions; parts: beginnings of some component of the name."""
    return (
        sum(
            value.numel()
            for name, value in portrait.named_parameters()
            if not parts or any(piece.startswith(parts) for piece in name.split("."))
        )
        / 1e9
    )


@pytest.fixture(scope="module")
def published() -> Portrait:
    return build(preset("hallo3"), "meta")


def test_hallo3_has_the_published_sizes(published: Portrait) -> None:
    assert published.reference is not None
    assert round(count(published, "face_"), 3) == 1.060
    assert round(count(published, "audio_"), 3) == 2.236
    assert round(count(published, "reference"), 3) == 5.570
    assert round(count(published, "denoiser") - count(published, "face_", "audio_"), 3) == 5.570
    assert round(count(published), 2) == 14.44
    assert all(value.is_meta for value in published.parameters())


def test_our_own_audio_path_has_no_convolution_of_a_billion_parameters() -> None:
    ours = build(preset("hallo3", compat=""), "meta")
    assert 1.0 < count(ours, "audio_") < 1.1
    assert round(count(ours, "reference"), 3) == 5.570


def test_a_tiny_step_takes_seconds_at_the_size_that_is_packed() -> None:
    config = preset("tiny")
    assert (config.latent_frames, config.latent_height, config.latent_width) == (13, 60, 90)
    portrait = build(config)
    given = inputs(config, batch=1, frames=13)
    began = time.thread_time()  # of this thread alone: others may be busy
    portrait(given.noisy, given.timestep, given.text, **given.given()).square().mean().backward()
    assert time.thread_time() - began < 10


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_being_written_down(name: str) -> None:
    config = preset(name, **{"motion.frames": 4})
    assert from_flat(flat(config)) == config
    assert config.motion.frames == 4


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"widht": 64}, "unknown setting 'widht' of the model; did you mean 'width'"),
        ({"heads": 5}, "width=128 does not divide into heads=5"),
        ({"heads": 16}, "need a multiple of 16"),
        ({"identity": "name"}, "identity='name': there is none, face_attention"),
        ({"audio.injection": "loud"}, "audio.injection='loud': there is none, cross"),
        ({"motion.frames": 3}, "motion.frames=3: there is 1, 2, 4, 8"),
        ({"compat": "hallo3", "audio.injection": "self"}, "compat=hallo3 has audio.injection=cross"),
        ({"patch_frames": 2}, "sound belongs to single latent frames"),
        ({"rotary_reference_tokens": 1350}, "a quirk of compat=hallo3"),
    ],
)
def test_settings_that_do_not_fit_are_explained(changes: dict[str, object], what: str) -> None:
    with pytest.raises(SettingsError, match=what):
        preset("tiny", **changes)


def test_an_unknown_preset_names_those_there_are() -> None:
    with pytest.raises(SettingsError, match="preset 'huge' is not known; there is tiny, small, hallo3"):
        preset("huge")


def test_building_on_meta_leaves_the_default_dtype_alone() -> None:
    portrait = build(preset("tiny"), "meta", torch.bfloat16)
    assert next(portrait.parameters()).dtype == torch.bfloat16
    assert torch.get_default_dtype() == torch.float32
