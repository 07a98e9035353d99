"""Into the transformer: patches and text as tokens, numbers as vectors, and the places of a video.

B batch, F latent frames, C channels, h×w latent positions, L picture tokens, S text tokens, D width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from model.config import ModelConfig

_SPATIAL_SCALE = 1.875  # of the position embedding that CogVideoX starts from


class PatchEmbed(nn.Module):
    """Patches of the latents and text tokens, as tokens of the transformer's width."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.latent_channels + config.condition_channels
        patch, deep = config.patch, config.patch_frames
        self.proj: nn.Conv2d | nn.Linear  # as published: version 1.0 has a convolution, 1.5 a linear layer
        if deep == 1:
            self.proj = nn.Conv2d(channels, config.width, patch, stride=patch)
        else:
            self.proj = nn.Linear(channels * deep * patch * patch, config.width)
        self.text_proj = nn.Linear(config.text_dim, config.width)
        self.pos_embedding: torch.Tensor | None
        self.register_buffer("pos_embedding", None)
        if config.learned_positions:
            rows, columns = config.grid
            count = config.text_length + config.latent_frames * rows * columns
            self.register_buffer("pos_embedding", torch.empty(1, count, config.width))
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Positions as CogVideoX starts from: none for text, sines and cosines for the picture."""
        if self.pos_embedding is not None:
            start = self.config.text_length
            with torch.no_grad():
                self.pos_embedding[:, :start] = 0
                self.pos_embedding[0, start:] = sincos_positions(self.config).to(self.pos_embedding)

    def forward(self, text_BSD: torch.Tensor, latents_BFCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Text and picture as tokens, each [B, tokens, D]. Raises ValueError where the sizes do not fit."""
        text_BSD = self.text_proj(text_BSD)
        picture_BLD = self._patches(latents_BFCHW)
        if self.pos_embedding is None:
            return text_BSD, picture_BLD
        (_, text, _), (_, picture, _), start = text_BSD.shape, picture_BLD.shape, self.config.text_length
        room = self.pos_embedding.shape[1] - start
        if text > start or picture > room:
            raise ValueError(
                f"{text} text and {picture} picture tokens, but learned positions for {start} and {room}: "
                "shorten the prompt or the clip, or keep to the size the network was made for"
            )
        positions = self.pos_embedding.to(picture_BLD.dtype)
        return text_BSD + positions[:, :text], picture_BLD + positions[:, start : start + picture]

    def _patches(self, latents_BFCHW: torch.Tensor) -> torch.Tensor:
        batch, frames, channels, height, width = latents_BFCHW.shape
        patch, deep = self.config.patch, self.config.patch_frames
        if height % patch or width % patch or frames % deep:
            raise ValueError(
                f"latents of {frames} × {height} × {width} (frames, height, width) do not divide into patches of "
                f"{deep} × {patch} × {patch}"
            )
        if deep == 1:
            patches = self.proj(latents_BFCHW.flatten(0, 1))  # [B·F, D, rows, columns]
            return patches.flatten(2).transpose(1, 2).reshape(batch, -1, self.config.width)
        pieces = latents_BFCHW.reshape(
            batch, frames // deep, deep, channels, height // patch, patch, width // patch, patch
        )
        return self.proj(pieces.permute(0, 1, 4, 6, 3, 2, 5, 7).flatten(4).flatten(1, 3))


def unpatched(picture_BLO: torch.Tensor, config: ModelConfig, shape_BFCHW: torch.Size) -> torch.Tensor:
    """Tokens that each hold a patch, as (channel, frame, row, column), back as latents of the given shape."""
    batch, frames, channels, height, width = shape_BFCHW
    patch, deep = config.patch, config.patch_frames
    pieces = picture_BLO.reshape(batch, frames // deep, height // patch, width // patch, channels, deep, patch, patch)
    return pieces.permute(0, 1, 5, 4, 2, 6, 3, 7).reshape(shape_BFCHW)


class TimeEmbedding(nn.Module):
    """A number as a vector: sinusoid, linear, SiLU, linear."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.channels = channels
        self.linear_1 = nn.Linear(channels, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, value_B: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return self.linear_2(F.silu(self.linear_1(sinusoid(value_B, self.channels).to(dtype))))


def sinusoid(value_B: torch.Tensor, channels: int) -> torch.Tensor:
    """Cosines, then sines, of a number at channels / 2 rates from 1 down to 1/10000: [B, channels] float32."""
    half = channels // 2
    rates = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=value_B.device) / half)
    angles = value_B.float()[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def sincos_positions(config: ModelConfig) -> torch.Tensor:
    """The position embedding that CogVideoX starts from, [L, D]: sines and cosines of time, column and row.

    Time has a quarter of the channels, column and row three eighths each, in this order.
    """
    counts = (config.latent_frames, *config.grid)
    parts = []
    for axis, share, scale in ((0, 2, 1.0), (2, 3, _SPATIAL_SCALE), (1, 3, _SPATIAL_SCALE)):
        size = config.width // 8 * share
        places = torch.arange(counts[axis], dtype=torch.float64) / scale
        angles = torch.outer(places, 10000.0 ** -(torch.arange(size // 2, dtype=torch.float64) * 2 / size))
        view = [1, 1, 1, size]
        view[axis] = counts[axis]
        parts.append(torch.cat([angles.sin(), angles.cos()], dim=-1).float().view(view).expand(*counts, size))
    return torch.cat(parts, dim=-1).flatten(0, 2)
