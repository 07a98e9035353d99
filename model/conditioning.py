"""What tells the denoiser whose face it draws and what is said: embeddings of face and sound, as tokens or as norms.

B batch, T video frames, F latent frames (T = 1 + 4(F − 1)), W frames of a window, N hidden states, C their width,
K tokens, G width of a token, D width of the transformer, L picture tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from model.attention import ZeroLinear
from model.config import ModelConfig

FRAMES_PER_LATENT = 4  # the first latent frame is one video frame, each further one is four
_EPS = 1e-5


def windows(
    audio_TNC: torch.Tensor, window: int, *, margin: int = 0, real_T: torch.Tensor | None = None
) -> torch.Tensor:
    """Each frame's speech embedding with those of `window` frames on either side (paper, Sec. 3.2).

    audio_TNC: [T + 2·margin, N, C]; the margins are the neighbours of the first and of the last frame. Beyond them the
    outermost embedding stands in. real_T: True where a row is sound; others count as silence (zero), whatever they
    hold. Returns [T, 2·window + 1, N, C].
    """
    if real_T is not None:
        audio_TNC = torch.where(real_T[:, None, None], audio_TNC, torch.zeros_like(audio_TNC))
    rows = audio_TNC.shape[0]
    centres_T1 = torch.arange(margin, rows - margin, device=audio_TNC.device)[:, None]
    offsets_W = torch.arange(-window, window + 1, device=audio_TNC.device)
    return audio_TNC[(centres_T1 + offsets_W).clamp(0, rows - 1)]


class FaceTokens(nn.Module):
    """Tokens of a face embedding: a linear layer and a norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.tokens = config.face_tokens
        self.proj = nn.Linear(config.face_dim, config.face_tokens * config.face_token_dim)
        self.norm = nn.LayerNorm(config.face_token_dim, _EPS)

    def forward(self, face_BC: torch.Tensor) -> torch.Tensor:
        """face_BC: as the face network gives it, not normalised. Returns [B, K, G]."""
        return self.norm(self.proj(face_BC).unflatten(-1, (self.tokens, -1)))


class AudioTokens(nn.Module):
    """Tokens of each latent frame's speech: three linear layers over windows (paper, Sec. 3.2).

    Latent frame i is made of video frames 4i − 3 … 4i, and its tokens of their windows alone; frame 0, which stands
    by itself, counts four times.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        audio = config.audio
        self.tokens = audio.tokens
        self.proj1 = nn.Linear(audio.span * audio.layers * audio.dim, audio.inner)
        self.proj2 = nn.Linear(audio.inner, audio.inner)
        self.proj3 = nn.Linear(FRAMES_PER_LATENT * audio.inner, audio.tokens * audio.token_dim)
        self.norm = nn.LayerNorm(audio.token_dim, _EPS)

    def forward(self, audio_BTWNC: torch.Tensor) -> torch.Tensor:
        """Returns [B, F, K, G]. Raises ValueError when the frames are not 1 + 4k."""
        frames = audio_BTWNC.shape[1]
        if frames % FRAMES_PER_LATENT != 1:
            raise ValueError(f"sound of {frames} video frames; latents are made of 1 + 4k frames")
        seen_BTI = F.relu(self.proj2(F.relu(self.proj1(audio_BTWNC.flatten(2)))))
        first_B4I = seen_BTI[:, :1].expand(-1, FRAMES_PER_LATENT, -1)
        grouped_BFI = torch.cat([first_B4I, seen_BTI[:, 1:]], dim=1).unflatten(1, (-1, FRAMES_PER_LATENT)).flatten(2)
        return self.norm(self.proj3(grouped_BFI).unflatten(-1, (self.tokens, -1)))


class Shift(NamedTuple):
    """What an adaptive norm is moved by: each [B, 1 or F, D]; for the whole clip, or for each latent frame."""

    shift: torch.Tensor
    scale: torch.Tensor
    gate: torch.Tensor


class AdaptiveNorm(nn.Module):
    """A condition as shifts of a block's two adaptive norms, beside the timestep's (the ablations' `adaptive norm`).

    It starts as zero. Without a gate the condition moves what attention and feed-forward see, with one (adaLN-Zero of
    DiT, arXiv 2212.09748) also how much of what they find is taken.
    """

    def __init__(self, token_dim: int, width: int, *, gated: bool) -> None:
        super().__init__()
        self.gated = gated
        self.linear = ZeroLinear(token_dim, (6 if gated else 4) * width)

    def forward(self, tokens: torch.Tensor) -> tuple[Shift, Shift]:
        """tokens: [B, K, G] of the clip or [B, F, K, G] of its frames; their mean counts."""
        mean = tokens.mean(dim=-2)
        moves = self.linear(F.silu(mean if mean.ndim == 3 else mean[:, None])).chunk(6 if self.gated else 4, dim=-1)
        if not self.gated:
            still = torch.zeros_like(moves[0])
            moves = (moves[0], moves[1], still, moves[2], moves[3], still)
        return Shift(moves[0], moves[1], moves[2]), Shift(moves[3], moves[4], moves[5])
