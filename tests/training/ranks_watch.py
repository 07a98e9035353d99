"""Run on two ranks by test_guard.py: the guard, validation and the record, each on ranks that must agree.

The network is whole on both ranks; each computes its own samples. What a rank saw goes to `<folder>/rank-R.json`.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path

import torch

from model.portrait import build
from tests.model.networks import shaken, small
from tests.training.batches import batch
from tests.training.worlds import alone as joined
from training import guard
from training.cost import Work
from training.objective import Objective, ObjectiveConfig
from training.observe import ObserveConfig, Observer
from training.validation import validate

KEYS = ("clip1-000000", "clip1-000049", "clip2-000000")
LEVELS = (100, 900)


def main(folder: Path) -> None:
    world = joined()
    network = small()
    portrait = shaken(build(network))
    objective = Objective(ObjectiveConfig(), network)
    seen: dict[str, object] = {"rank": world.rank, "ranks": world.ranks}

    seen["validation"] = validate(portrait, objective, batch(network, KEYS), LEVELS, 0, world)

    own = batch(network, (f"own-{world.rank}",), step=3)
    given = objective.given(own, 0)
    losses = objective.losses(portrait, own, given)
    losses.sum().backward()

    def guarded(step: int, losses_B: torch.Tensor, norm: float) -> str:
        try:
            guard.check(
                step, losses_B, norm, batch=own, t_B=given.t_B, network=portrait, world=world, folder=folder, seed=0
            )
        except guard.NonFiniteError as error:
            return str(error)
        return ""

    seen["sound"] = guarded(1, losses.detach(), 1.0)
    bad = losses.detach() * (float("nan") if world.rank == 1 else 1.0)
    seen["bad loss"] = guarded(2, bad, 1.0)
    if world.rank == 0:
        portrait.denoiser.proj_out.bias.grad[0] = float("inf")
    seen["bad gradient"] = guarded(3, losses.detach(), float("inf") if world.rank == 0 else 1.0)

    record = Observer(ObserveConfig(every=2, tensorboard=False), folder, world, Work(10, 1, 1), None, steps=2)
    for step in (1, 2):
        left_out = {f"lost-{world.rank}": "it is gone"}
        record.step(step, 1.0, 1.0, 1.0, waited_s=0.1 + 0.2 * world.rank, seconds=1.0, tokens=10, skipped=left_out)
    record.close()
    seen["fields"] = sorted(field.name for field in dataclasses.fields(own))
    (folder / f"rank-{world.rank}.json").write_text(json.dumps(seen))
    time.sleep(0.1)
    world.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
