#!/usr/bin/env python
"""Train the portrait network on packed shards: one process or, under torchrun, any number of them.

  python training/train.py training/configs/tiny.yaml data.shards=demo/data/shards/embedded output=runs/tiny
  torchrun --nproc_per_node=8 training/train.py training/configs/stage1.yaml initial=… data.shards=… output=…

plan=true says what a run will take and starts nothing. Stopped by SIGTERM, Ctrl-C or a power cut, a run goes on where
it was when the same command is given again, on as many processes as there are then. docs/training.md has the rest.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # the repo root, not this folder, is where our packages are
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import os
import time

from model import settings
from model.checkpoint import CheckpointError
from model.codecs import CodecError
from model.pretrained import PretrainedError
from model.settings import SettingsError
from model.weights import WeightsError
from training import plan, trainer
from training.config import TrainConfig
from training.data import DataError
from training.guard import NonFiniteError
from training.objective import ObjectiveError
from training.stages import StageError
from training.state import StateError

_SHARED = (SettingsError, StageError, NonFiniteError)
"""What all ranks say alike."""
_OWN = (
    CheckpointError,
    CodecError,
    DataError,
    ObjectiveError,
    PretrainedError,
    StateError,
    trainer.TrainError,
    WeightsError,
)
_FIRST_SECONDS = 5.0


def main(config: TrainConfig) -> int:
    """Train, or say what it would take; the exit status: 0 done or stopped and saved, 1 not possible, 2 settings."""
    try:
        if config.plan:
            config.check()
            return plan.show(config)
        trainer.train(config, say)
    except (*_SHARED, *_OWN) as error:
        return refused(error)
    except KeyboardInterrupt:
        print("train.py: stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 1
    return 0


def refused(error: Exception) -> int:
    """Say why, once. torchrun ends all ranks as soon as one is gone, so those with less to say let the others speak."""
    rank = os.environ.get("RANK", "0")
    if isinstance(error, trainer.GoneError) or (rank != "0" and isinstance(error, _SHARED)):
        time.sleep(_FIRST_SECONDS)
    print(f"train.py: {error}" if rank == "0" else f"train.py: rank {rank}: {error}", file=sys.stderr, flush=True)
    return 2 if isinstance(error, SettingsError) else 1


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    settings.main(TrainConfig, __doc__ or "", main)
