"""Run on two ranks by test_parallel.py; what was seen goes to `<folder>/seen.json`."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch

from model import portrait as plain
from model.config import ModelConfig
from tests.model.networks import inputs, shaken, small
from tests.training.small_training import BATCH, PLAIN, Run, predicted
from training import parallel
from training.parallel import World
from training.shares import local, put, trainable


def main(folder: Path) -> None:
    world = parallel.join(PLAIN)
    copies = dataclasses.replace(PLAIN, shard="none")
    seen: dict[str, Any] = {
        "words": words(world),
        "spread": spread(world),
        "copies": Run(parallel.join(copies), copies).steps(0, 3),
        "audio": Run(world, stage="audio").steps(0, 3),
        "loaded": loaded(world, folder),
        "half": half(world),
        "context": {name: shared(network) for name, network in networks().items()},
    }
    Run(world, folder=folder / "start").save(0)
    if world.is_main:
        (folder / "seen.json").write_text(json.dumps(seen))
    world.close()


def words(world: World) -> dict[str, Any]:
    """What ranks tell each other."""
    places = [3, 1] if world.rank == 0 else [0]
    return {
        "everyone": world.everyone(torch.tensor([30.0, 10.0] if world.rank == 0 else [0.5]), places, 4).tolist(),
        "anyone": [world.anyone(world.rank == 1), world.anyone(False)],
        "told": world.told(17 + world.rank),
        "who": world.who(world.rank == 1),
        "data": [world.data_rank, world.data_ranks],
    }


def spread(world: World) -> dict[str, Any]:
    """Twenty steps, and the gradient of another."""
    run = Run(world)
    losses = run.steps(0, 20)
    run.losses(20)
    norm = parallel.gradient_norm(run.portrait, world)
    parallel.shorten_gradients(run.portrait, norm, float(norm) / 2)
    held = sum(local(one).numel() for one in run.portrait.parameters())
    whole = sum(one.numel() for one in run.portrait.parameters())
    shortened = float(parallel.gradient_norm(run.portrait, world))
    return {"losses": losses, "norm": float(norm), "shortened": shortened, "held": held / whole}


def loaded(world: World, folder: Path) -> dict[str, Any]:
    """A network loaded from a file, and one from a file of a network without a face."""
    run = Run(world)
    parallel.load(run.portrait, folder / "weights")
    with torch.no_grad():
        output = predicted(run.portrait, inputs(run.network))
    faced = Run(world)
    before = {name: local(one).clone() for name, one in faced.portrait.named_parameters()}
    fresh = parallel.load(faced.portrait, folder / "faceless", fresh=("*.face_*",)).fresh
    kept = all(torch.equal(before[name], local(faced.portrait.get_parameter(name))) for name in fresh)
    return {"output": output.flatten().tolist(), "fresh": len(fresh), "kept": kept}


def half(world: World) -> dict[str, Any]:
    """bfloat16 in stage 1, with a block's forward pass computed again."""
    run = Run(world, dataclasses.replace(PLAIN, dtype="bfloat16", recompute="selective"), stage="identity")
    losses = run.steps(0, 3)
    types = {name: str(one.dtype) for name, one in run.portrait.named_parameters()}
    return {
        "losses": losses,
        "trained": sorted({types[name] for name in run.names}),
        "frozen": sorted({kind for name, kind in types.items() if name not in run.names}),
        "moments": str(next(iter(run.optimizer.state.values()))["exp_avg"].dtype),
    }


def networks() -> dict[str, ModelConfig]:
    """Networks whose frames do and do not divide into two, and each way of hearing."""
    return {
        "even": small(),
        "odd": small(latent_height=6, latent_width=6),
        "self": small(**{"audio.injection": "self", "latent_height": 6, "latent_width": 6}),
        "norms": small(**{"audio.injection": "adaln_zero", "identity": "face_norm"}),
        "hallo3": small(compat="hallo3"),
    }


def shared(network: ModelConfig) -> dict[str, Any]:
    """Two ranks on the same samples: how far output and gradients are from those of one, relative to the largest."""
    config = dataclasses.replace(PLAIN, context=2, recompute="selective")
    world = parallel.join(config)
    run = Run(world, config, network=network)
    lone = shaken(plain.build(network))
    for name, tensor in lone.named_parameters():
        put(run.portrait.get_parameter(name), tensor)
    given = inputs(network, batch=BATCH)
    weights = torch.randn(given.noisy.shape, generator=torch.Generator().manual_seed(3))
    outputs = []
    for portrait in (run.portrait, lone):
        found = predicted(portrait, given)
        (found * weights).sum().backward()
        outputs.append(found.detach())
    worst = 0.0
    for name, parameter in trainable(run.portrait).items():
        if name.endswith("_attention.norm_k.bias"):  # a shift of all keys changes no softmax: only rounding is left
            continue
        right = lone.get_parameter(name).grad
        found = parameter.grad.full_tensor()
        worst = max(worst, float((found - right).abs().max() / right.abs().max().clamp(min=1e-3)))
    difference = float((outputs[0] - outputs[1]).abs().max() / outputs[1].abs().max())
    return {"output": difference, "gradient": worst, "data": world.data_ranks}


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
