"""Run on two ranks by test_parallel.py: in the middle of a step rank 1 dies, or stops answering."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time

import torch

from tests.training.small_training import PLAIN, Run
from training import parallel


def main(how: str) -> None:
    world = parallel.join(dataclasses.replace(PLAIN, timeout_s=3.0))
    run = Run(world)
    run.steps(0, 2)

    def lost(*_: object) -> None:
        if how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(300)

    if world.rank == 1:
        run.portrait.denoiser.transformer_blocks[1].register_forward_pre_hook(lost)
    print("begun", time.time(), flush=True)
    run.steps(2, 4)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1])
