"""What each stage trains, held against the network's own gradients."""

from __future__ import annotations

import itertools

import pytest

from model import portrait
from model.config import IDENTITIES, INJECTIONS, preset
from model.settings import SettingsError
from tests.model.networks import shaken, small
from tests.training.batches import batch
from training.objective import Objective, ObjectiveConfig
from training.stages import STAGES, matched, patterns_of, trained, without_gradient

VARIANTS = [
    (stage, identity, injection)
    for stage, identity, injection in itertools.product(STAGES, IDENTITIES, INJECTIONS)
    if (stage, injection) != ("audio", "none")
]


@pytest.mark.parametrize(("stage", "identity", "injection"), VARIANTS)
def test_every_parameter_that_a_stage_trains_gets_a_gradient_in_every_variant(stage, identity, injection):
    network = small(layers=2, identity=identity, **{"audio.injection": injection})
    what = trained(network, stage)
    whole = shaken(portrait.build(network))
    for name, parameter in whole.named_parameters():
        parameter.requires_grad_(name in what.names)
    ours, samples = Objective(ObjectiveConfig(), network, 2, what.audio), batch(network)
    ours.losses(whole, samples, ours.given(samples, 0)).sum().backward()
    assert without_gradient(whole, what.names) == []
    for name in what.names:
        assert dict(whole.named_parameters())[name].grad.abs().max() > 0, name


def test_stage_1_trains_attention_and_the_face_and_nothing_else():
    names = trained(small(), "identity").names
    parts = {name.split(".")[3 if ".transformer_blocks." in name else 1] for name in names}
    assert parts == {"attn1", "face_attention", "face_tokens"}
    assert {name.split(".")[0] for name in names} == {"denoiser", "reference"}
    assert not [name for name in names if name.startswith("reference.transformer_blocks.1.")]  # idle: the last one


def test_stage_2_trains_the_audio_modules_alone():
    names = trained(small(), "audio").names
    assert all(".audio_attention." in name or ".audio_tokens." in name for name in names)
    left = [name for name in trained(small(), "all").names if "audio" in name and name not in names]
    assert left == []


def test_sound_in_self_attention_is_not_part_of_stage_1():
    network = small(**{"audio.injection": "self"})
    assert not [name for name in trained(network, "identity").names if "audio" in name]
    assert [name for name in trained(network, "audio").names if ".attn1.audio_keys." in name]


def test_at_full_size_the_counts_are_those_of_the_layers():
    network = preset("hallo3", compat="", **{"audio.injection": "none"})
    width, layers, tokens, size = 3072, 42, 4, 1024
    attention = 4 * (width * width + width) + 4 * 64
    face = 2 * width + 2 * (width * width + width) + 2 * (size * width + width) + 4 * 64
    face_tokens = 512 * tokens * size + tokens * size + 2 * size
    what = trained(network, "identity")
    count = sum(what.sizes[name] for name in what.names)
    assert count == layers * attention + (layers - 1) * attention + layers * face + face_tokens
    assert f"{count / 1e6:.3f} M" in what.lines()[0]


def test_the_set_is_shown_with_counts_by_module_and_what_is_left_out():
    lines = "\n".join(trained(small(), "identity").lines())
    assert "denoiser.transformer_blocks.*.attn1.to_q: 4 tensors, 0.008 M" in lines
    assert "reference.transformer_blocks.*.attn1.to_q: 2 tensors, 0.004 M" in lines
    assert "left out" in lines


def test_everything_but_the_idle_is_trained_from_scratch():
    network = small()
    what = trained(network, "all")
    whole = portrait.build(network, "meta")
    assert set(what.names) == {name for name, _ in whole.named_parameters()} - set(whole.idle_parameters())


def test_a_pattern_that_matches_nothing_is_an_error_that_names_it():
    with pytest.raises(SettingsError, match=r"denoiser\.audio_attn\.\*"):
        trained(small(), "all", ["denoiser.*", "denoiser.audio_attn.*"])
    with pytest.raises(SettingsError, match="!nothing"):
        trained(small(), "all", ["*", "!nothing"])


def test_a_pattern_may_take_names_out_again():
    assert matched(["a.x", "a.y", "b.x"], ["a.*", "!*.y"]) == ["a.x"]
    assert matched(["a.x", "a.y"], ["!a.x", "*"]) == ["a.x", "a.y"]


def test_only_idle_parameters_cannot_be_trained():
    with pytest.raises(SettingsError, match="idle"):
        trained(small(), "all", ["reference.proj_out.*"])


def test_the_audio_stage_needs_a_network_that_listens():
    with pytest.raises(SettingsError, match=r"audio\.injection=none"):
        patterns_of("audio", small(**{"audio.injection": "none"}))


def test_a_parameter_without_gradient_is_named():
    network = small()
    whole = shaken(portrait.build(network))
    samples = batch(network)
    deaf = Objective(ObjectiveConfig(), network, 2, audio=False)
    deaf.losses(whole, samples, deaf.given(samples, 0)).sum().backward()
    missing = without_gradient(whole, trained(network, "all").names)
    assert missing == list(trained(network, "audio").names)
