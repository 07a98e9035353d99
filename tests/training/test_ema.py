"""The average of the trained parameters over training."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.model.networks import inputs, small
from tests.training.small_training import PLAIN, Run, predicted
from training import parallel
from training.ema import Ema, decay_at
from training.shares import local, settle, trainable

HALF = dataclasses.replace(PLAIN, dtype="bfloat16")


def test_the_average_is_the_weighted_sum_of_what_was() -> None:
    run = Run(parallel.join(PLAIN), stage="audio")
    name, parameter = next(iter(trainable(run.portrait).items()))
    ema = Ema(run.portrait, decay=0.5)
    expected = parameter.detach().double().clone()
    for step in range(1, 12):
        with torch.no_grad():
            parameter.add_(step)
        ema.update(run.portrait, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * parameter.detach().double()
    assert torch.allclose(ema.shadow[name].double(), expected, rtol=1e-6)


def test_it_forgets_the_start_sooner_at_first() -> None:
    assert [decay_at(0.999, step) for step in (0, 8)] == [0.1, 0.5]
    assert decay_at(0.999, 10**6) == 0.999


def test_only_what_is_trained_is_averaged_and_in_float32() -> None:
    run = Run(world := parallel.join(HALF), HALF, stage="audio")
    world.close()
    assert set(run.ema.shadow) == set(run.names)
    assert {one.dtype for one in run.ema.shadow.values()} == {torch.float32}


@pytest.mark.parametrize("config", [PLAIN, HALF], ids=["plain", "under FSDP2"])
def test_applied_the_network_speaks_as_its_average_and_then_as_itself_again(config: parallel.ParallelConfig) -> None:
    world = parallel.join(config)
    try:
        run = Run(world, config)
        first = speaks(run)
        run.steps(0, 3)
        last = speaks(run)
        with run.ema.applied(run.portrait):
            average = speaks(run)
        assert torch.equal(speaks(run), last)
        settle(run.portrait)
        for name, parameter in trainable(run.portrait).items():
            run.ema.shadow[name].copy_(local(parameter))
        with run.ema.applied(run.portrait):
            assert torch.equal(speaks(run), last)
    finally:
        world.close()
    assert not torch.equal(average, last) and not torch.equal(average, first)


def test_an_error_while_it_is_applied_leaves_the_network_itself() -> None:
    run = Run(parallel.join(PLAIN))
    run.steps(0, 2)
    before = speaks(run)
    with pytest.raises(RuntimeError), run.ema.applied(run.portrait):
        raise RuntimeError
    assert torch.equal(speaks(run), before)


def speaks(run: Run) -> torch.Tensor:
    with torch.no_grad():
        return predicted(run.portrait, inputs(small()), run.config.compute)
