"""Settings of a training that takes a second, and what a run left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from model import safetensor_shards
from model.config import ModelConfig, flat, preset
from tests.model.networks import small
from training.observe import metrics

NETWORK = small()


def changes(network: ModelConfig) -> list[str]:
    """What makes this network of the preset `tiny`, as `network.changes` takes it."""
    base = flat(preset("tiny"))
    return [f"{name}={value}" for name, value in flat(network).items() if value != base[name]]


def settings(shards: str, output: Path, *more: str, network: ModelConfig = NETWORK) -> list[str]:
    """A command line: 12 steps of 4 samples in float32, with a checkpoint every 5; later arguments win."""
    return [
        f"data.shards={shards}",
        f"output={output}",
        f"network.changes=[{', '.join(changes(network))}]",
        "steps=12",
        "batch=4",
        "micro=2",
        "seed=3",
        "optimizer.lr=1e-3",
        "optimizer.warmup=5",
        "data.workers=0",
        "data.drop_audio=0.3",
        "parallel.dtype=float32",
        "parallel.recompute=none",
        "parallel.device=cpu",
        "parallel.timeout_s=20",
        "state.every=5",
        "state.ema=0.9",
        "observe.tensorboard=false",
        "validation.every=0",
        "validation.clips_every=0",
        *more,
    ]


def losses(output: Path) -> list[float]:
    """The loss of every step, from the record."""
    rows = [row for row in metrics(output) if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["loss"] for row in rows]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a network in our layout."""
    return safetensor_shards.read(folder, "model")


def state(output: Path, step: int) -> dict[str, torch.Tensor]:
    """All that a checkpoint holds, as it lies in its files: a tensor's rows by rank."""
    found = {}
    for file in sorted((output / "checkpoints" / f"step-{step:08}").glob("*.safetensors")):
        found |= {f"{name} {file.name}": tensor for name, tensor in load_file(file).items()}
    return found


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether tensors are equal to the bit, name by name."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
