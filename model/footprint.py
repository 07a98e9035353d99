"""What sampling a video will take, said before it begins: operations, and memory at its fullest.

Operations are counted (`model.flops`). Memory is reckoned from the largest tensors that are held at once; tests hold
it against what a step and a decoding are measured to take.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch

from model import flops
from model.codecs import frames_for
from model.config import ModelConfig
from model.portrait import build
from model.sampling import Guidance, Plan

_MEMINFO = Path("/proc/meminfo")
# Of a token of the picture, at a block's fullest moment: numbers of the network's type, and bytes of float32 where
# queries and keys are turned by their place (`attention.rotated`).
_HELD, _TURNED = 6, 20
_VAE = 216e6  # parameters of CogVideoX's VAE
_VAE_HELD = 20e9 / (49 * 480 * 720 * 4)  # numbers it holds for each pixel it decodes: 20 GB for 49 of 480 × 720
_TILES = 4
_T5 = 4.76e9  # parameters of T5-v1.1-XXL's encoder
_DCT_HELD = 5  # copies of the frames, float32


@dataclass(frozen=True)
class Work:
    """What is to be sampled. height, width: of latents; text: tokens of the longest prompt; bytes: of a number."""

    model: ModelConfig
    plan: Plan
    guidance: Guidance
    steps: int
    height: int
    width: int
    latent_frames: int
    text: int
    bytes: int

    @property
    def rows(self) -> int:
        """Passes of the network in a step."""
        audio = self.guidance.audio if self.model.has_audio else self.guidance.text
        return len(Guidance(self.guidance.text, audio).rows())

    @property
    def patches(self) -> int:
        """Patches of a latent frame: the tokens of the reference."""
        return (self.height // self.model.patch) * (self.width // self.model.patch)


def operations(work: Work) -> int:
    """Floating-point operations of the network for a whole video, the reference looked at once."""
    model = work.model
    parts = flops.forward(model, flops.Shape(work.latent_frames, work.height, work.width, work.text))
    looking = sum(cost.total for name, cost in parts.items() if name.startswith("reference."))
    step = flops.total(parts) - looking
    keys = 4 * work.patches * model.width**2 * model.layers if model.has_reference else 0
    return looking + keys + (step - keys) * work.rows * work.steps * work.plan.clips


def weights(model: ModelConfig) -> int:
    """Numbers of the network's weights."""
    return sum(tensor.numel() for tensor in build(model, "meta").state_dict().values())


def step(work: Work) -> int:
    """Bytes that a step holds at its fullest, beyond the weights and the reference's keys."""
    model, audio = work.model, work.model.audio
    tokens = work.text + work.latent_frames // model.patch_frames * work.patches
    batch = work.rows if work.guidance.together else 1
    block = batch * tokens * model.width * (_HELD * work.bytes + _TURNED)
    # What goes in: latents joined with their condition, and windows of speech, for each row, and once before.
    latents = work.latent_frames * model.latent_channels * work.height * work.width
    windows = frames_for(work.latent_frames) * audio.span * audio.layers * audio.dim if model.has_audio else 0
    return block + (batch * (2 * latents + windows) + 3 * latents + 2 * windows) * work.bytes


def memory(work: Work, codec: str, text: str, tiling: bool = False, cached: bool = True) -> dict[str, int]:
    """Bytes by what they are for; `fullest` is how many of them are needed at once.

    codec, text: their names. The text encoder is gone before the network comes; steps and decoding take turns.
    """
    model = work.model
    pixels = frames_for(work.latent_frames) * work.height * work.width * 64
    keys = 2 * model.layers * work.patches * model.width * work.bytes if model.has_reference and cached else 0
    if codec == "cogvideox":
        decoding = pixels * _VAE_HELD * work.bytes / (_TILES if tiling else 1)
    else:
        decoding = pixels * 3 * 4 * _DCT_HELD
    parts = {
        "text encoder": _T5 * work.bytes if text == "t5" else 0,
        "weights": weights(model) * work.bytes + (_VAE * work.bytes if codec == "cogvideox" else 0),
        "reference": keys,
        "a step": step(work),
        "decoding": decoding,
    }
    held = parts["weights"] + parts["reference"] + max(parts["a step"], parts["decoding"])
    parts["fullest"] = max(parts["text encoder"], held)
    return {name: round(value) for name, value in parts.items()}


def free(device: torch.device) -> int | None:
    """Bytes that are free on a device; None where nobody says."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if not _MEMINFO.is_file():
        return None
    fields = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines() if ":" in line)
    return int(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else None


def listed(parts: dict[str, int], omit: Collection[str] = ("fullest",)) -> str:
    """Memory by what it is for, for people."""
    return ", ".join(f"{name} {size(value)}" for name, value in parts.items() if value >= 5e5 and name not in omit)


def size(count: float) -> str:
    """Bytes for people."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
