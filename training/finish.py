"""The trained network, written for others to load when all steps are done."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from model.layouts import CheckpointError, write_talkreel
from training import outcome
from training.config import TrainConfig
from training.state import folder_of, latest_in

FINAL = "final"


def finish(config: TrainConfig, checkpoints: Path) -> str:
    """Write the newest checkpoint's network to `output/final`; returns a line for people.

    It is the average of the weights where one is kept. Raises CheckpointError, StateError.
    """
    step = latest_in(checkpoints)
    if step is None:
        return f"nothing was trained: steps={config.steps}"
    target, weights = config.folder / FINAL, "ema" if config.state.ema else "trained"
    there = _note(target)
    if (there.get("step"), there.get("weights")) == (step, weights):
        return f"{target}: is there already, {weights} weights of step {step}"
    whole = outcome.network(folder_of(checkpoints, step), weights)
    fresh = target.with_name(f".{FINAL}.new")
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        write_talkreel(fresh, whole.config, whole.tensors, whole.note)
        if target.exists():
            shutil.rmtree(target)
        fresh.rename(target)
    except OSError as error:
        raise CheckpointError(
            f"{target}: not written: {error.strerror or error}; the same command tries again"
        ) from error
    return f"{target}: written, {weights} weights of step {step}; model/animate.py checkpoint={target} takes it"


def _note(folder: Path) -> dict[str, object]:
    try:
        return dict(json.loads((folder / "config.json").read_text())["note"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
