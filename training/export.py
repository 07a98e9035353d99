#!/usr/bin/env python
"""The network out of a training run: as a checkpoint that animation, the next stage, and other tools load.

  python training/export.py run=/runs/stage1 target=/models/stage1
  python training/export.py run=/runs/stage1/checkpoints/step-00010000 target=/models/average weights=ema dtype=bfloat16

Animation takes the folder as checkpoint=…, the next stage as initial=….
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # the repo root, not this folder, is where our packages are
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from dataclasses import dataclass

import torch

from model import settings
from model.layouts import LAYOUTS, CheckpointError, listed
from model.settings import option, required
from training import outcome
from training.saved import StateError


@dataclass(frozen=True)
class ExportConfig:
    """Settings of training/export.py."""

    run: str = required("a run's output folder, whose latest checkpoint is taken, or a checkpoint's own folder")
    target: str = required("the folder to write, which is not there yet")
    weights: str = option("trained", "trained: as the last step left them; ema: their average", outcome.WEIGHTS)
    layout: str = option("talkreel", "whose layout to write", LAYOUTS)
    part: str = option("denoiser", "layout=diffusers: which of the two networks", ("denoiser", "reference"))
    dtype: str = option("", "of the numbers written; empty: as they are held", ("", "float32", "bfloat16"))


def main(config: ExportConfig) -> int:
    """Export; the exit status: 0 done, 1 it could not be done."""
    dtype = getattr(torch, config.dtype) if config.dtype else None
    try:
        folder = outcome.found(Path(config.run))
        left = outcome.export(folder, Path(config.target), config.weights, config.layout, config.part, dtype)
    except (StateError, CheckpointError) as error:
        print(f"export.py: {error}", file=sys.stderr)
        return 1
    print(f"{config.target}: {config.weights} weights of {folder.name}, {config.layout} layout")
    if left:
        print(f"left behind, for it has no place in this layout ({len(left)} tensors):\n{listed(left)}")
    return 0


if __name__ == "__main__":
    settings.main(ExportConfig, __doc__ or "", main)
