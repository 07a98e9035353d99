"""The denoiser beside diffusers' own on the same shapes, and sampling with the reference looked at once.

  python tests/bench/bench_model.py
  python tests/bench/bench_model.py device=cuda dtype=bfloat16 compile=true width=3072 layers=1,12 frames=13 height=60 \
                                    size=90

Without settings: what a CPU does in minutes (width 384, two and six layers, 5 latent frames of 30 × 44). Everything is
timed in one run, on the same parameters, ours and theirs by turns, and the median counts: seconds of the clock on CUDA;
on a CPU seconds of CPU time, because others may share it. Memory is the most that was held beyond the weights, as the
allocator counts it.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import CogVideoXTransformer3DModel
from torch import nn

from model import flops
from model.attention import Keys
from model.cogvideox_layout import published_of
from model.conditioning import windows
from model.config import ModelConfig, preset
from model.portrait import Portrait, build
from model.settings import main, option
from model.transformer import Denoiser
from tests.model.memory import most_held


@dataclass(frozen=True)
class Config:
    device: str = option("cpu", "cpu or cuda")
    dtype: str = option("float32", "what both compute in", ("float32", "bfloat16"))
    width: int = option(384, "width of the transformer; heads are 64 wide")
    layers: str = option("2,6", "slices to time, in blocks")
    frames: int = option(5, "latent frames")
    height: int = option(30, "latent height")
    size: int = option(44, "latent width")
    text: int = option(226, "text tokens")
    steps: int = option(4, "denoising steps of the sampling comparison")
    runs: int = option(5, "measurements of each")
    threads: int = option(1, "torch threads on CPU")
    compile: bool = option(False, "compile the blocks of both")


def work(config: Config) -> int:
    torch.set_num_threads(config.threads)
    torch.manual_seed(0)
    machine = torch.cuda.get_device_name() if config.device == "cuda" else f"CPU, {config.threads} threads"
    print(f"{machine}, {config.dtype}, {'compiled' if config.compile else 'not compiled'}")
    for layers in map(int, config.layers.split(",")):
        compare_training(config, sized(config, layers))
    compare_sampling(config, sized(config, int(config.layers.split(",")[-1])))
    return 0


def sized(config: Config, layers: int) -> ModelConfig:
    """The hallo3 preset at the asked size, as we train it."""
    return preset(
        "hallo3",
        compat="",
        width=config.width,
        heads=config.width // 64,
        layers=layers,
        text_length=config.text,
        latent_frames=config.frames,
        latent_height=config.height,
        latent_width=config.size,
    )


def compare_training(config: Config, model: ModelConfig) -> None:
    """Forward and backward of a slice of the backbone: ours and diffusers', on the same weights."""
    dtype = getattr(torch, config.dtype)
    bare = model.backbone()
    with torch.device(config.device):
        ours = Denoiser(bare).to(dtype)
    with torch.device("meta"):
        theirs = CogVideoXTransformer3DModel(
            **{key: value for key, value in published_of(bare).items() if not key.startswith("_")}
        )
    # The same parameters, not copies of them: twelve layers of full width with their gradients are 13 GB in float32.
    theirs.load_state_dict(ours.state_dict(keep_vars=True), assign=True)
    networks: list[nn.Module] = [ours, theirs]
    x = torch.randn(1, config.frames, 32, config.height, config.size, device=config.device, dtype=dtype)
    text = torch.randn(1, config.text, model.text_dim, device=config.device, dtype=dtype)
    at = torch.tensor([500], device=config.device)
    if config.compile:
        for network in networks:
            for block in network.transformer_blocks:
                block.compile()

    def our_step() -> torch.Tensor:
        return ours(x[:, :, :16], at, text, motion_BFCHW=x[:, :, 16:])

    def their_step() -> torch.Tensor:
        latents = torch.cat([x[:, :, :16], x[:, :, 16:]], dim=2)  # as its pipeline does at every step
        return theirs(latents, text, at, image_rotary_emb=ours.places(latents), return_dict=False)[0]

    def trained(step: Callable[[], torch.Tensor], network: nn.Module) -> Callable[[], None]:
        def run() -> None:
            network.zero_grad(set_to_none=False)
            step().square().mean().backward()

        return run

    with torch.no_grad():
        difference = float((our_step() - their_step()).abs().max())
    steps = {"ours": trained(our_step, ours), "diffusers": trained(their_step, theirs)}
    seconds = timed(steps, config)
    held = {name: most_held(step, config.device) for name, step in steps.items()}
    cost = flops.training(flops.forward(bare, flops.Shape(config.frames, config.height, config.size, config.text)))
    tokens = config.text + config.frames * (config.height // 2) * (config.size // 2)
    print(f"\n{model.layers} blocks of width {model.width}, {tokens} tokens, forward and backward")
    print(f"  (outputs differ by {difference:.1e})")
    for name in steps:
        print(
            f"  {name:10} {seconds[name]:8.3f} s   {cost / seconds[name] / 1e12:7.3f} TFLOP/s   "
            f"{held[name] / 1e6:9.1f} MB beyond weights and gradients"
        )
    print(
        f"  ours: {seconds['diffusers'] / seconds['ours']:.2f} x as fast, "
        f"{held['ours'] / held['diffusers']:.2f} of the memory"
    )


def compare_sampling(config: Config, model: ModelConfig) -> None:
    """Denoising steps with the reference looked at once, and at every step."""
    dtype = getattr(torch, config.dtype)
    portrait: Portrait = build(model).to(config.device, dtype).eval()
    picture = (model.latent_channels, config.height, config.size)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=config.device, dtype=dtype)

    noisy, reference = noise(1, config.frames, *picture), noise(1, *picture)
    text = noise(1, config.text, model.text_dim)
    sound = noise(1 + 4 * (config.frames - 1), model.audio.layers, model.audio.dim)
    given = {"face_BC": noise(1, model.face_dim), "audio_BTWNC": windows(sound, model.audio.window)[None]}
    times = torch.linspace(999, 19, config.steps, device=config.device)

    @torch.no_grad()
    def sample(cached: bool) -> torch.Tensor:
        keys: list[Keys] | None = portrait.look(reference, text) if cached else None
        looked_at = {"reference_keys": keys} if cached else {"reference_BCHW": reference}
        x = noisy
        for time_ in times:
            x = x - 0.1 * portrait(x, time_[None], text, **given, **looked_at)
        return x

    same = bool(torch.equal(sample(True), sample(False)))
    steps = {"once": lambda: sample(True), "every step": lambda: sample(False)}
    seconds = timed(steps, config)
    held = {name: most_held(step, config.device) for name, step in steps.items()}
    print(f"\nsampling, {config.steps} steps, {model.layers} blocks; the reference looked at …")
    print(f"  (outputs equal: {same})")
    for name in steps:
        print(f"  {name:10} {seconds[name]:8.3f} s   {held[name] / 1e6:9.1f} MB beyond weights")
    print(f"  once: {seconds['every step'] / seconds['once']:.2f} x as fast")
    gained = flops.forward(model, flops.Shape(config.frames, config.height, config.size, config.text))
    looking = sum(cost.total for part, cost in gained.items() if part.startswith("reference."))
    print(f"  (the reference network is {looking / flops.total(gained):.1%} of a step's operations)")


def timed(steps: dict[str, Callable[[], object]], config: Config) -> dict[str, float]:
    """Median seconds of each after one warm-up; the order is turned about every time."""
    clock = time.perf_counter if config.device == "cuda" else time.process_time
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for run in range(config.runs + 1):
        for name, step in list(steps.items())[:: 1 if run % 2 else -1]:
            _wait(config)
            began = clock()
            step()
            _wait(config)
            if run:
                seconds[name].append(clock() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _wait(config: Config) -> None:
    if config.device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main(Config, __doc__ or "", work)
