"""Small networks with every weight drawn at random, and what to feed them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from model.conditioning import windows
from model.config import ModelConfig, preset
from model.motion import condition

Network = TypeVar("Network", bound=nn.Module)


def small(**changes: Any) -> ModelConfig:
    """Two layers of width 64 on latents of 3 × 8 × 12."""
    sizes = {
        "width": 64,
        "heads": 2,
        "layers": 2,
        "patch": 2,
        "time_dim": 32,
        "text_dim": 24,
        "text_length": 10,
        "latent_channels": 4,
        "condition_channels": 4,
        "latent_frames": 3,
        "latent_height": 8,
        "latent_width": 12,
        "face_dim": 16,
        "face_token_dim": 24,
        "audio.layers": 2,
        "audio.dim": 16,
        "audio.inner": 32,
        "audio.tokens": 4,
        "audio.token_dim": 24,
    }
    return preset("tiny", **{**sizes, **changes})


def shaken(network: Network, seed: int = 0) -> Network:
    """The network with weights of unit gain, norms near one and small biases: nothing is zero, nothing explodes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in [*network.named_parameters(), *network.named_buffers()]:
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("pos_embedding"):
                value.copy_(0.2 * noise)
            elif value.ndim >= 2:
                value.copy_(noise / value[0].numel() ** 0.5)
            else:
                value.copy_(0.1 * noise + (1.0 if name.endswith("weight") else 0.0))
    return network


@dataclass(frozen=True)
class Inputs:
    """One batch for a Portrait."""

    noisy: torch.Tensor
    timestep: torch.Tensor
    text: torch.Tensor
    reference: torch.Tensor
    motion: torch.Tensor
    face: torch.Tensor
    audio: torch.Tensor

    def given(self, **changes: Any) -> dict[str, Any]:
        """The keyword arguments of a Portrait."""
        return {
            "reference_BCHW": self.reference,
            "motion_BFCHW": self.motion,
            "face_BC": self.face,
            "audio_BTWNC": self.audio,
            **changes,
        }

    def double(self) -> Inputs:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Inputs(
            **{name: value.double() if value.is_floating_point() else value for name, value in fields.items()}
        )


def inputs(config: ModelConfig, batch: int = 2, frames: int = 3, text: int = 7, seed: int = 1) -> Inputs:
    """A batch of noise for a network of this config."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    picture = (config.latent_channels, config.latent_height, config.latent_width)
    motion = noise(batch, min(config.motion.frames, frames), *picture)
    audio = noise(batch, 1 + 4 * (frames - 1), config.audio.layers, config.audio.dim)
    return Inputs(
        noise(batch, frames, *picture),
        torch.tensor([999, 340, 19, 700][:batch]),
        noise(batch, text, config.text_dim),
        noise(batch, *picture),
        condition(motion, frames),
        noise(batch, config.face_dim),
        torch.stack([windows(one, config.audio.window) for one in audio]),
    )
