"""A loss or a gradient that is not finite stops all ranks before they learn from it, and can be looked into."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from model.portrait import Portrait, build
from tests.model.networks import shaken, small
from tests.training import ranks_watch
from tests.training.batches import batch
from tests.training.worlds import alone, together
from training import guard
from training.data import Batch
from training.objective import Given, Objective, ObjectiveConfig
from training.observe import metrics
from training.validation import validate

NETWORK = small()


def stepped() -> tuple[Portrait, Batch, Given, torch.Tensor]:
    """A network after a backward pass, with the losses of its samples."""
    portrait = shaken(build(NETWORK))
    samples = batch(NETWORK, ("clip-000000", "clip-000049"), step=7)
    objective = Objective(ObjectiveConfig(), NETWORK, samples=2)
    given = objective.given(samples, 0)
    losses = objective.losses(portrait, samples, given)
    losses.mean().backward()
    return portrait, samples, given, losses.detach()


def checked(folder: Path, portrait: Portrait, samples: Batch, given: Given, losses: torch.Tensor, norm: float) -> None:
    guard.check(7, losses, norm, batch=samples, t_B=given.t_B, network=portrait, world=alone(), folder=folder, seed=11)


def test_what_is_finite_passes_and_leaves_nothing_behind(tmp_path: Path) -> None:
    checked(tmp_path, *stepped(), 1.0)
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_not_finite_names_its_sample(tmp_path: Path) -> None:
    portrait, samples, given, losses = stepped()
    losses[1] = float("nan")
    with pytest.raises(guard.NonFiniteError) as error:
        checked(tmp_path, portrait, samples, given, losses, 1.0)
    assert "step 7: the loss of clip-000049 is not finite" in str(error.value)
    assert "clip-000000" not in str(error.value)
    assert str(tmp_path / "nonfinite-step-7") in str(error.value)


def test_a_gradient_that_is_not_finite_names_its_parameters_and_all_samples(tmp_path: Path) -> None:
    portrait, samples, given, losses = stepped()
    weight = portrait.denoiser.transformer_blocks[1].attn1.to_q.weight
    assert weight.grad is not None
    weight.grad[0, 0] = float("inf")
    with pytest.raises(guard.NonFiniteError) as error:
        checked(tmp_path, portrait, samples, given, losses, float("inf"))
    assert "its samples are clip-000000, clip-000049" in str(error.value)
    assert "1 parameters (denoiser.transformer_blocks.1.attn1.to_q.weight)" in str(error.value)


def test_the_step_can_be_repeated_from_what_was_written_down(tmp_path: Path) -> None:
    portrait, samples, given, losses = stepped()
    broken = losses.clone()
    broken[0] = float("inf")
    with pytest.raises(guard.NonFiniteError):
        checked(tmp_path, portrait, samples, given, broken, 1.0)
    facts, tensors = guard.evidence(tmp_path / "nonfinite-step-7", 0)
    assert facts["keys"] == ["clip-000000", "clip-000049"] and facts["losses"][0] == "inf"
    assert facts["t"] == given.t_B.tolist() and facts["seed"] == 11
    again = Batch(
        step=facts["step"],
        keys=tuple(facts["keys"]),
        places=tuple(facts["places"]),
        dropped=tuple(frozenset(names) for names in facts["dropped"]),
        **tensors,
    )
    objective = Objective(ObjectiveConfig(), NETWORK, samples=2)
    assert torch.equal(objective.losses(portrait, again, objective.given(again, 0)), losses)


def test_a_full_disk_does_not_hide_what_happened(small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(b"x" * 390_000)
    portrait, samples, given, losses = stepped()
    losses[1] = float("nan")
    with pytest.raises(guard.NonFiniteError, match=r"clip-000049 is not finite.*cannot be written \(rank 0: No space"):
        checked(small_disk, portrait, samples, given, losses, 1.0)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]], str]:
    folder = tmp_path_factory.mktemp("watched")
    done = together(Path(ranks_watch.__file__), str(folder))
    assert done.returncode == 0, done.stderr[-2000:]
    return folder, [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)], done.stdout


def test_all_ranks_stop_with_the_same_words(two_ranks: tuple[Path, list[dict[str, Any]], str]) -> None:
    folder, (first, second), _ = two_ranks
    assert first["ranks"] == second["ranks"] == 2
    assert first["sound"] == second["sound"] == ""
    assert first["bad loss"] == second["bad loss"]
    assert first["bad loss"].startswith("step 2: the loss of own-1 is not finite. Nothing was learned from it")
    assert first["bad gradient"] == second["bad gradient"]
    assert "its samples are own-0, own-1" in first["bad gradient"]
    assert "denoiser.proj_out.bias" in first["bad gradient"]
    for rank in (0, 1):
        facts, tensors = guard.evidence(folder / "nonfinite-step-2", rank)
        assert facts["keys"] == [f"own-{rank}"] and tensors["latent_BFCHW"].shape[0] == 1


def test_validation_is_the_same_on_two_ranks(two_ranks: tuple[Path, list[dict[str, Any]], str]) -> None:
    _, (first, second), _ = two_ranks
    objective = Objective(ObjectiveConfig(), NETWORK)
    three = batch(NETWORK, ranks_watch.KEYS)
    expected = validate(shaken(build(NETWORK)), objective, three, ranks_watch.LEVELS, 0, alone())
    assert first["validation"] == second["validation"] == pytest.approx(expected, abs=1e-6)


def test_one_record_for_all_ranks(two_ranks: tuple[Path, list[dict[str, Any]], str]) -> None:
    folder, _, said = two_ranks
    rows = metrics(folder)
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[1]["longest_wait_s"] == pytest.approx(0.6)  # of the slower rank, over two steps
    assert rows[1]["skipped"] == 2 and "rank 1: sample lost-1 is left out: it is gone" in said
    assert said.count("step 2/2") == 1
