"""A training step of a 12-layer slice at full width and length, beside diffusers' own model in its usual training loop.

  python tests/bench/gpu_step.py                      # on CUDA at full size; without, small, only to see that it runs
  python tests/bench/gpu_step.py --what backbone,diffusers --recompute full --layers 6

`stage1` and `stage2` are the stages of stage1.yaml and stage2.yaml: 17,776 tokens of the denoiser and 1,350 of the
reference. `backbone` is CogVideoX alone with all its weights trained, which is what diffusers' model does beside it:
the same shapes, the same operations. diffusers' loop is the one of its training scripts: float32 weights under autocast
(`diffusers`) or bfloat16 weights (`diffusers-bf16`), its own gradient checkpointing, AdamW, gradients clipped.

A step is everything: forward, backward, clipping, optimizer. Each is built, warmed up (compiled), timed and thrown away
before the next; the median counts. MFU: operations that the network's mathematics asks for, over what the device does
at most; HFU: with those that are done again. Needs torch and diffusers (with what it brings) alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import argparse
import gc
import importlib.util
import json
import statistics
import time
import types
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

if importlib.util.find_spec("omegaconf") is None:  # only command lines are read with it, and none is read here
    omegaconf, errors = types.ModuleType("omegaconf"), types.ModuleType("omegaconf.errors")
    omegaconf.MISSING, omegaconf.OmegaConf = "???", None  # type: ignore[attr-defined]
    errors.OmegaConfBaseException = Exception  # type: ignore[attr-defined]
    sys.modules |= {"omegaconf": omegaconf, "omegaconf.errors": errors}

from model import flops
from model.cogvideox_layout import published_of
from model.config import ModelConfig, preset
from model.transformer import Denoiser
from tests.model.memory import most_held
from training import cost, memory, parallel, stages
from training.devices import peak
from training.ranks import ParallelConfig, World

WHAT = ("backbone", "diffusers", "diffusers-bf16", "stage1", "stage2")
STAGES = {"backbone": "all", "stage1": "identity", "stage2": "audio"}


@dataclass(frozen=True)
class Row:
    """What was measured of one of them. work: of a step."""

    name: str
    seconds: float
    fastest: float
    slowest: float
    work: cost.Work
    memory: int
    loss: float


def main() -> int:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", default=",".join(WHAT), help="which of them, by commas")
    parser.add_argument("--layers", type=int, default=12 if cuda else 2)
    parser.add_argument("--width", type=int, default=3072 if cuda else 128, help="heads are 64 wide")
    parser.add_argument("--frames", type=int, default=13 if cuda else 3, help="latent frames")
    parser.add_argument("--height", type=int, default=60 if cuda else 12, help="latent height")
    parser.add_argument("--latent-width", type=int, default=90 if cuda else 18)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--recompute", default="selective", choices=("none", "selective", "full"), help="of ours")
    parser.add_argument("--compile", default=cuda, action=argparse.BooleanOptionalAction, help="of ours, by blocks")
    parser.add_argument("--dtype", default="bfloat16" if cuda else "float32", choices=("bfloat16", "float32"))
    parser.add_argument("--warm", type=int, default=3, help="steps before the clock runs")
    parser.add_argument("--runs", type=int, default=10, help="steps that are timed")
    parser.add_argument("--text-mask", action="store_true", help="of ours: a prompt shorter than its room, masked")
    parser.add_argument("--tflops", type=float, default=0.0, help="what the device does at most; 0: by its name")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    options = parser.parse_args()
    device = torch.device("cuda" if cuda else "cpu")
    if unknown := set(options.what.split(",")) - set(WHAT):
        parser.error(f"--what: {unknown.pop()!r}; there is {', '.join(WHAT)}")
    if not cuda:
        torch.set_num_threads(1)
    network = sized(options)
    world = parallel.join(configured(options))
    machine = torch.cuda.get_device_name() if cuda else "CPU, small: these figures say nothing of a GPU"
    print(f"{machine}; torch {torch.__version__}; {options.dtype}")
    print(
        f"{network.layers} layers of width {network.width}, {tokens_of(network, options):,} tokens of the denoiser, "
        f"{network.grid[0] * network.grid[1]:,} of the reference; ours: recompute {options.recompute}, "
        f"{'compiled' if options.compile else 'not compiled'}"
    )
    rows = []
    for name in options.what.split(","):
        rows.append(measured(name, network, options, world))
        print(described(rows[-1], options, device), flush=True)
    seconds = {row.name: row.seconds for row in rows}
    for theirs in ("diffusers", "diffusers-bf16"):
        if "backbone" in seconds and theirs in seconds:
            print(
                f"backbone / {theirs}: {seconds[theirs] / seconds['backbone']:.2f} x as fast, for the same operations"
            )
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "rows": [asdict(row) for row in rows]}, indent=1))
    world.close()
    return 0


def configured(options: argparse.Namespace) -> ParallelConfig:
    return ParallelConfig(recompute=options.recompute, compile=options.compile, dtype=options.dtype)


def sized(options: argparse.Namespace) -> ModelConfig:
    """The hallo3 preset, a slice of it, as we train it."""
    return preset(
        "hallo3",
        compat="",
        layers=options.layers,
        width=options.width,
        heads=options.width // 64,
        latent_frames=options.frames,
        latent_height=options.height,
        latent_width=options.latent_width,
    )


def measured(name: str, network: ModelConfig, options: argparse.Namespace, world: World) -> Row:
    """Build one of them, train it for some steps, and throw it away."""
    torch.manual_seed(0)
    device = world.device
    step, work = (theirs if name.startswith("diffusers") else ours)(name, network, options, world)
    for _ in range(options.warm):
        step()
    wait(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times, loss = [], 0.0
    for _ in range(options.runs):
        began = time.perf_counter()
        loss = float(step())
        wait(device)
        times.append(time.perf_counter() - began)
    held = torch.cuda.max_memory_allocated() if device.type == "cuda" else most_held(step)
    del step
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return Row(name, statistics.median(times), min(times), max(times), work, held, loss)


def ours(
    name: str, network: ModelConfig, options: argparse.Namespace, world: World
) -> tuple[Callable[[], torch.Tensor], cost.Work]:
    """A step of a stage, or of the backbone alone, as the trainer takes it."""
    network = network.backbone() if name == "backbone" else network
    trained = stages.trained(network, STAGES[name])
    portrait = parallel.build(network, configured(options), world, trained.names, 0)
    optimizer = torch.optim.AdamW(parallel.trainable(portrait).values(), lr=1e-5, fused=True)
    shape = cost.shape_of(network, trained, options.batch)
    given = filled(memory.inputs(network, shape, getattr(torch, options.dtype)), world.device)
    if options.text_mask:
        given["text_mask_BS"] = torch.arange(network.text_length, device=world.device)[None] < network.text_length // 4
    target = torch.randn(given["noisy_BFCHW"].shape, device=world.device)

    def step() -> torch.Tensor:
        loss = (portrait(**given).float() - target).square().mean()
        loss.backward()
        parallel.shorten_gradients(portrait, parallel.gradient_norm(portrait, world), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step, cost.work(network, trained, shape, options.recompute)


def theirs(
    name: str, network: ModelConfig, options: argparse.Namespace, world: World
) -> tuple[Callable[[], torch.Tensor], cost.Work]:
    """A step of diffusers' model, all weights trained, in the loop of its training scripts."""
    from diffusers import CogVideoXTransformer3DModel

    bare, dtype, device = network.backbone(), getattr(torch, options.dtype), world.device
    published = {key: value for key, value in published_of(bare).items() if not key.startswith("_")}
    model = CogVideoXTransformer3DModel(**published).to(device, dtype if name.endswith("bf16") else torch.float32)
    model.enable_gradient_checkpointing()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    trained = stages.trained(bare, "all")
    shape = cost.shape_of(bare, trained, options.batch)
    given = filled(memory.inputs(bare, shape, dtype), device)
    latents = torch.cat([given["noisy_BFCHW"], given["motion_BFCHW"]], dim=2)
    target = torch.randn(given["noisy_BFCHW"].shape, device=device)
    with torch.device("meta"):
        placed = Denoiser(bare).places
    rotary = placed(latents)

    def step() -> torch.Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            found = model(latents, given["text_BSD"], given["timestep_B"], image_rotary_emb=rotary, return_dict=False)[
                0
            ]
        loss = (found.float() - target).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step, cost.work(bare, trained, shape, "full")


def filled(given: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The same tensors on the device, floats drawn at random, all at a level in the middle."""
    return {
        name: torch.randn(value.shape, device=device).to(value.dtype)
        if value.is_floating_point()
        else torch.full_like(value, 500, device=device)
        for name, value in given.items()
    }


def tokens_of(network: ModelConfig, options: argparse.Namespace) -> int:
    shape = flops.Shape(network.latent_frames, network.latent_height, network.latent_width, network.text_length)
    return options.batch * cost.tokens(network, shape)


def described(row: Row, options: argparse.Namespace, device: torch.device) -> str:
    """A line of the table."""
    most = peak(device, options.dtype, options.tflops)
    shares = "MFU -       HFU -      "
    if most is not None:
        model, hardware = (count / row.seconds / most.flops for count in (row.work.model, row.work.hardware))
        shares = f"MFU {model:6.1%}  HFU {hardware:6.1%}" + ("" if most.stated else " (of a product timed here)")
    return (
        f"  {row.name:15} {row.seconds:8.3f} s ({row.fastest:.3f} … {row.slowest:.3f})  {shares}  "
        f"{row.work.model / row.seconds / 1e12:8.2f} TFLOP/s  {row.work.tokens / row.seconds:10,.0f} tokens/s  "
        f"{row.memory / 1e9:7.2f} GB{'' if device.type == 'cuda' else ' beyond weights'}  loss {row.loss:.3f}"
    )


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
