"""Run on two ranks by test_state.py; what was seen goes to `<folder>/seen.json` and `<folder>/refused-R.json`."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from tests.training.small_training import PLAIN, Run
from training import parallel, saved
from training.parallel import World
from training.state import StateConfig, StateError

LATER = StateConfig(asynchronous=True)


def main(folder: Path) -> None:
    world = parallel.join(PLAIN)
    seen = {"going on": going_on(world, folder), "refused": refused(world, folder)}
    if world.is_main:
        (folder / "seen.json").write_text(json.dumps(seen))
    world.close()


def going_on(world: World, folder: Path) -> dict[str, Any]:
    """Six steps at once; the same with an interruption after three; and the last three from what one rank wrote."""
    whole = Run(world, folder=folder / "whole")
    losses = whole.steps(0, 6)
    whole.save(6)
    before = Run(world, folder=folder / "two", state=LATER)
    first = before.steps(0, 3)
    before.save(3)
    before.steps(3, 5)  # while it is written
    before.keeper.wait()
    after = Run(world, folder=folder / "two")
    note = after.restore()
    second = after.steps(3, 6)
    after.save(6)
    other = Run(world, folder=folder / "one")
    other.restore(3)
    return {"whole": losses, "parts": first + second, "note": note, "from one": other.steps(3, 6)}


def refused(world: World, folder: Path) -> dict[str, Any]:
    """Rank 1 finds its disk full: while all wait, and while training goes on."""
    run = Run(world, folder=folder / "full", state=LATER)
    run.save(1, wait=True)
    write = saved.write_part

    def full(*given: Any) -> None:
        if world.rank == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(*given)

    said = {}
    saved.write_part = full
    for name, wait in (("at once", True), ("later", False)):
        try:
            run.save(2, wait=wait)
            run.keeper.wait()
            said[name] = ""
        except StateError as error:
            said[name] = str(error)
    saved.write_part = write
    (folder / f"refused-{world.rank}.json").write_text(json.dumps(said))
    left = sorted(path.name for path in (folder / "full").iterdir())
    run.save(3, wait=True)
    return {"left": left, "latest": run.keeper.latest()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
