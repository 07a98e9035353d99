"""Runs trainings for test_trainer.py: the cases of a JSON file, one after the other, each on as many forked ranks.

What a rank said goes to `<case>.rank-R.log`, how the ranks ended and what they saw to `<case>.json`.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from model import settings
from tests.training.worlds import forked
from training import saved, trainer
from training.config import TrainConfig
from training.objective import Objective

SECONDS = 90.0


def main(plan: Path) -> None:
    torch.set_num_threads(1)
    for case in json.loads(plan.read_text()):
        run(case, plan.parent)


def run(case: dict[str, Any], folder: Path) -> None:
    """One case. Keys: name, ranks, settings (as on a command line), what happens (`mishap`), and `weigh`."""
    began = time.monotonic()
    statuses = forked(case["ranks"], lambda rank: work(case, folder, rank), SECONDS)
    found = {"statuses": statuses, "seconds": time.monotonic() - began}
    (folder / f"{case['name']}.json").write_text(json.dumps(found))


def work(case: dict[str, Any], folder: Path, rank: int) -> int:
    """A rank: trains, and returns its exit status."""
    log = os.open(folder / f"{case['name']}.rank-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    seen = folder / f"{case['name']}.seen-{rank}.jsonl"
    watch(seen)
    if case.get("weigh"):
        weigh(folder / f"{case['name']}.held-{rank}.jsonl")
    if case.get("rank", rank) == rank:
        mishap(case)
    try:
        steps = trainer.train(settings.read(TrainConfig, case["settings"]), say=lambda line: print(line, flush=True))
    except Exception as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        return 1
    print(f"done: {steps}", flush=True)
    return 0


def watch(seen: Path) -> None:
    """Write down which samples every step has, and at which noise levels."""
    given = Objective.given

    def watched(self: Objective, batch: Any, seed: int) -> Any:
        made = given(self, batch, seed)
        row = {"step": batch.step, "keys": batch.keys, "places": batch.places, "t": made.t_B.tolist()}
        with seen.open("a") as file:
            file.write(json.dumps(row) + "\n")
        return made

    Objective.given = watched  # type: ignore[method-assign]


def weigh(held: Path) -> None:
    """Write down, as each piece of a step begins, the bytes of all tensors, and what replicas have added up so far."""
    losses, all_reduce, sums = Objective.losses, dist.all_reduce, {"count": 0}

    def counted(tensor: torch.Tensor, *rest: Any, **named: Any) -> Any:
        sums["count"] += tensor.dtype == torch.float32  # losses and lengths are added up in float64
        return all_reduce(tensor, *rest, **named)

    def weighed(self: Objective, portrait: Any, batch: Any, given: Any) -> torch.Tensor:
        gc.collect()
        alive = [one for one in gc.get_objects() if isinstance(one, torch.Tensor) and not isinstance(one, DTensor)]
        storages = {one.untyped_storage()._cdata: one.untyped_storage().nbytes() for one in alive}
        row = {"step": batch.step, "bytes": sum(storages.values()), "sums": sums["count"]}
        with held.open("a") as file:
            file.write(json.dumps(row) + "\n")
        return losses(self, portrait, batch, given)

    dist.all_reduce = counted
    Objective.losses = weighed  # type: ignore[method-assign]


def mishap(case: dict[str, Any]) -> None:
    """What happens to a rank: kill_in_step, kill_in_save, ask_in_step, remove_in_step with remove, spoil."""
    if "spoil" in case:
        losses = Objective.losses

        def spoilt(self: Objective, portrait: Any, batch: Any, given: Any) -> torch.Tensor:
            found = losses(self, portrait, batch, given)
            return found * (float("nan") if batch.step == case["spoil"] else 1.0)

        Objective.losses = spoilt  # type: ignore[method-assign]
    if "kill_in_save" in case:
        write = saved.write_part

        def killed(folder: Path, *rest: Any) -> None:
            write(folder, *rest)
            if str(case["kill_in_save"]) in folder.name:
                os.kill(os.getpid(), signal.SIGKILL)

        saved.write_part = killed
    steps: dict[str, Callable[[], object]] = {
        "kill_in_step": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "ask_in_step": lambda: os.kill(os.getpid(), signal.SIGTERM),
        "remove_in_step": lambda: [Path(name).unlink() for name in case["remove"]],
    }
    for name, act in steps.items():
        if name in case:
            _in_step(case[name], act)


def _in_step(number: int, act: Callable[[], object]) -> None:
    """Act in the middle of a step: after its backward pass, before the optimizer has done anything."""
    step, at = torch.optim.AdamW.step, {"step": -1}
    given = Objective.given

    def noted(self: Objective, batch: Any, seed: int) -> Any:
        at["step"] = batch.step
        return given(self, batch, seed)

    def acted(self: Any, *rest: Any) -> Any:
        if at["step"] == number:
            act()
        return step(self, *rest)

    Objective.given = noted  # type: ignore[method-assign]
    torch.optim.AdamW.step = acted  # type: ignore[method-assign]


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(Path(sys.argv[1]))
