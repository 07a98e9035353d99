"""Run by test_state.py: saves step 1, then step 2, and is killed at a named moment of that."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

from tests.training.small_training import PLAIN, Run
from training import parallel, saved, state

MOMENTS = ("half a part", "no contents", "no name", "not the latest", "not pruned")


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    run = Run(parallel.join(PLAIN))
    for moment in MOMENTS:
        child = os.fork()
        if not child:
            run.keeper = state.Keeper(folder / moment, state.StateConfig(keep_last=1, asynchronous=False), run.world)
            run.save(1)
            die_at(moment)
            run.save(2)
            os._exit(0)  # it was not killed
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            raise SystemExit(f"{moment}: not killed, but {status}")


def die_at(moment: str) -> None:
    """Let this process kill itself at that moment of the next save."""
    write, reach = saved.write_part, saved.to_disk

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def write_half(folder: Path, number: int, shares: dict) -> None:
        write(folder, number, shares)
        file = next(folder.glob("part-*"))
        os.truncate(file, file.stat().st_size // 2)
        die()

    def die_with_the_contents(path: Path) -> None:
        reach(path)
        if path.name == ".step-00000002.part":
            die()

    if moment == "half a part":
        saved.write_part = write_half
    elif moment == "no contents":
        saved.write_contents = die
    elif moment == "no name":
        saved.to_disk = die_with_the_contents
    elif moment == "not the latest":
        state._point = die
    else:
        state.Keeper._prune = die  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
