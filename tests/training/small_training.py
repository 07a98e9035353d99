"""A training run in miniature: a small network, four samples a step, AdamW and an average; on any number of ranks.

What a step computes is a function of its number alone, as in the real loop, so runs can be compared to the bit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from model.config import ModelConfig
from tests.model.networks import Inputs, inputs, small
from training import parallel, stages
from training.ema import Ema
from training.lora import LoraConfig
from training.parallel import ParallelConfig, World
from training.state import Keeper, StateConfig

BATCH = 4
LR = 1e-3
PLAIN = ParallelConfig(recompute="none", dtype="float32")


class Run:
    """A run on the ranks of `world`; samples are dealt out to them in order."""

    def __init__(
        self,
        world: World,
        config: ParallelConfig = PLAIN,
        *,
        stage: str = "all",
        network: ModelConfig | None = None,
        folder: Path | None = None,
        state: StateConfig | None = None,
        adapters: LoraConfig | None = None,
        lr: float = LR,
    ) -> None:
        self.world, self.config = world, config
        self.network = network or small()
        self.names = stages.trained(self.network, stage).names
        self.audio = stage != "identity"
        self.portrait = parallel.build(self.network, config, world, self.names, seed=5, adapters=adapters)
        self.optimizer = torch.optim.AdamW(parallel.trainable(self.portrait).values(), lr=lr)
        self.ema = Ema(self.portrait, 0.9)
        self.keeper = Keeper(folder or Path("nowhere"), state or StateConfig(asynchronous=False), world)

    def steps(self, first: int, last: int) -> list[list[float]]:
        """Train steps `first` to `last` (exclusive); each one's losses, in the order of its samples."""
        return [self.step(number) for number in range(first, last)]

    def step(self, number: int) -> list[float]:
        losses = self.losses(number)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.portrait, number + 1)
        return losses

    def losses(self, number: int) -> list[float]:
        """A step up to its gradients."""
        share = BATCH // self.world.data_ranks
        places = range(self.world.data_rank * share, (self.world.data_rank + 1) * share)
        given, target = samples(self.network, number)
        own = picked(given, places)
        found = predicted(self.portrait, own, self.config.compute, audio=self.audio)
        losses_B = (found.float() - target[places.start : places.stop]).square().flatten(1).mean(1)
        (losses_B.sum() / BATCH).backward()
        return self.world.everyone(losses_B, places, BATCH).tolist()

    def save(self, step: int, **options: Any) -> None:
        self.keeper.save(step, self.portrait, self.optimizer, self.ema, {"note": f"step {step}"}, **options)

    def restore(self, step: int | None = None) -> dict[str, Any]:
        return self.keeper.restore(self.portrait, self.optimizer, self.ema, step)


def samples(network: ModelConfig, step: int) -> tuple[Inputs, torch.Tensor]:
    """The samples of a step, and what the network is to say of them."""
    given = inputs(network, batch=BATCH, seed=100 + step)
    target = torch.randn(given.noisy.shape, generator=torch.Generator().manual_seed(200 + step))
    return given, target


def picked(given: Inputs, places: range) -> Inputs:
    return Inputs(**{name: value[places.start : places.stop] for name, value in vars(given).items()})


def predicted(
    portrait: torch.nn.Module, given: Inputs, dtype: torch.dtype = torch.float32, *, audio: bool = True
) -> torch.Tensor:
    """What a network says of samples, given everything, with text of which the last two tokens are nothing."""
    mask = torch.ones(given.text.shape[:2], dtype=torch.bool)
    mask[:, -2:] = False
    conditions = {name: value.to(dtype) for name, value in given.given().items()}
    if not audio:
        del conditions["audio_BTWNC"]
    return portrait(given.noisy.to(dtype), given.timestep, given.text.to(dtype), text_mask_BS=mask, **conditions)
