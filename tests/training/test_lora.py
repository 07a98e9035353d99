"""Adapters of low rank: nothing at first, small, and merged at the end."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from model import checkpoint
from model import portrait as plain
from model.settings import SettingsError
from tests.model.networks import inputs, shaken, small
from tests.training.small_training import PLAIN, Run, predicted
from training import outcome, parallel
from training.lora import LoraConfig, merged
from training.shares import trainable
from training.state import folder_of

WORLD = parallel.join(PLAIN)
FOUR = LoraConfig(rank=4, alpha=8.0)


def test_adapters_start_as_nothing() -> None:
    adapted, bare = Run(WORLD, adapters=FOUR), Run(WORLD)
    assert torch.equal(predicted(adapted.portrait, inputs(small())), predicted(bare.portrait, inputs(small())))


def test_adapters_alone_learn_and_all_of_them_do() -> None:
    run = Run(WORLD, stage="identity", adapters=FOUR)
    before = {name: one.clone() for name, one in run.portrait.named_parameters()}
    first = sum(run.step(0))
    for _ in range(39):
        run.step(0)
    changed = {name for name, one in run.portrait.named_parameters() if not torch.equal(before[name], one)}
    assert changed == {name for name in before if "lora_" in name}
    layers = {name.rpartition(".lora_")[0] for name in changed}
    assert all(f"{layer}.weight" in run.names for layer in layers)
    assert sum(run.step(0)) < 0.95 * first


def test_an_adapter_is_of_the_rank_that_is_asked_for_and_starts_differently_in_each_layer() -> None:
    run = Run(WORLD, adapters=LoraConfig(rank=3, patterns=["*.attn1.to_q"]))
    found = trainable(run.portrait)
    assert len(found) == 2 * 3  # two blocks of the denoiser, and the one of the reference network that counts
    downs = [one for name, one in found.items() if name.endswith("lora_down")]
    assert {tuple(one.shape) for one in found.values()} == {(3, 64), (64, 3)}
    assert len({one.flatten()[0].item() for one in downs}) == 3


def test_merged_the_network_says_what_it_said_with_adapters(tmp_path: Path) -> None:
    run = Run(WORLD, folder=tmp_path / "run", adapters=FOUR)
    with torch.no_grad():
        shaken(run.portrait)
    given = inputs(run.network)
    run.save(1)
    outcome.export(folder_of(tmp_path / "run", 1), tmp_path / "network")
    network = plain.build(run.network, "meta")
    checkpoint.load(network, tmp_path / "network")
    spoken = predicted(run.portrait, given)
    assert (predicted(network, given) - spoken).abs().max() < 1e-5 * spoken.abs().max()
    base = plain.build(run.network, "meta")
    held = outcome.network(folder_of(tmp_path / "run", 1)).tensors
    base.load_state_dict({name: run.portrait.state_dict()[name] for name in held}, assign=True)
    assert (predicted(base, given) - spoken).abs().max() > 0.01 * spoken.abs().max()


def test_merging_is_w_plus_scale_times_up_down() -> None:
    w, down, up = torch.randn(5, 4), torch.randn(2, 4), torch.randn(5, 2)
    tensors = {"a.weight": w, "a.lora_down": down, "a.lora_up": up, "b.weight": w.bfloat16()}
    tensors |= {"b.lora_down": down, "b.lora_up": torch.zeros(5, 2)}
    found = merged(tensors, 0.5)
    assert set(found) == {"a.weight", "b.weight"}
    assert torch.allclose(found["a.weight"], w + 0.5 * up @ down)
    assert torch.equal(found["b.weight"], w.bfloat16())


def test_a_run_with_adapters_goes_on_as_it_was(tmp_path: Path) -> None:
    whole = Run(WORLD, adapters=FOUR).steps(0, 4)
    run = Run(WORLD, folder=tmp_path, adapters=FOUR)
    assert run.steps(0, 2) == whole[:2]
    run.save(2)
    again = Run(WORLD, folder=tmp_path, adapters=FOUR)
    again.restore()
    assert again.steps(2, 4) == whole[2:]


def test_adapters_learn_in_bfloat16_on_a_frozen_base() -> None:
    half = dataclasses.replace(PLAIN, dtype="bfloat16")
    world = parallel.join(half)
    try:
        run = Run(world, half, adapters=FOUR)
        losses = run.steps(0, 2)
        exact = Run(WORLD, adapters=FOUR).steps(0, 2)
        assert (torch.tensor(losses) - torch.tensor(exact)).abs().max() < 0.02
        kinds = {("lora_" in name, one.dtype) for name, one in run.portrait.named_parameters()}
        assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    finally:
        world.close()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (LoraConfig(rank=4, patterns=["*.nose"]), r"'\*\.nose' matches no linear layer that the stage trains"),
        (LoraConfig(rank=4, patterns=["*.ff.*"]), r"'\*\.ff\.\*' matches no linear layer that the stage trains"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused(config: LoraConfig, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        Run(WORLD, stage="identity", adapters=config)


def test_settings_that_make_no_sense_are_refused() -> None:
    for changes in ({"rank": -1}, {"rank": 4, "alpha": 0.0}):
        with pytest.raises(SettingsError, match=r"lora\."):
            LoraConfig(**changes).check()
