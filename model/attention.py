"""Attention: over text and picture jointly, with a reference to look at; and to tokens of face or sound.

B batch, L picture tokens (F latent frames of P patches, row by row), S text tokens, R reference tokens, K condition
tokens, D width, H heads, E width of a head. Names of the parameters are those of the published checkpoints.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from model.config import ModelConfig

Rotary = tuple[torch.Tensor, torch.Tensor]  # cosines and sines, each [tokens, E] float32

_EPS = 1e-5
_QK_EPS = 1e-6
_THETA = 10000.0


class Keys(NamedTuple):
    """Tokens as attention meets them: normed keys and values, each [B, H, R, E]."""

    keys_BHRE: torch.Tensor
    values_BHRE: torch.Tensor


class ZeroLinear(nn.Linear):
    """A linear layer that starts as zero: what it is added to stays what it was."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class JointAttention(nn.Module):
    """Self-attention over text and picture; tokens of a reference are further keys and values (paper, Sec. 3.2)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.to_q = nn.Linear(config.width, config.width)
        self.to_k = nn.Linear(config.width, config.width)
        self.to_v = nn.Linear(config.width, config.width)
        self.norm_q = nn.LayerNorm(config.head_dim, _QK_EPS)
        self.norm_k = nn.LayerNorm(config.head_dim, _QK_EPS)
        self.to_out = nn.ModuleList([nn.Linear(config.width, config.width)])
        self.audio_keys = AudioKeys(config) if config.audio.injection == "self" else None

    def keys(self, tokens_BRD: torch.Tensor) -> Keys:
        """Reference tokens as keys and values. They have no place in the video, hence no rotary embedding."""
        keys_BHRE = self.norm_k(split_heads(self.to_k(tokens_BRD), self.heads))
        return Keys(keys_BHRE, split_heads(self.to_v(tokens_BRD), self.heads))

    def forward(
        self,
        tokens_BND: torch.Tensor,
        text: int,
        rotary: Rotary,
        reference: Keys | None = None,
        audio_BFKC: torch.Tensor | None = None,
        mask_BN: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attended tokens [B, N, D], of which the first `text` are text and the others picture.

        rotary: of all tokens (`joint_rotary`). mask_BN: True where a token is real; no token looks at one that is not.
        audio_BFKC: heard where sound comes in here.
        """
        queries = rotated(self.norm_q(split_heads(self.to_q(tokens_BND), self.heads)), rotary)
        keys = rotated(self.norm_k(split_heads(self.to_k(tokens_BND), self.heads)), rotary)
        values = split_heads(self.to_v(tokens_BND), self.heads)
        if reference is not None:
            keys = torch.cat([keys, reference.keys_BHRE], dim=2)
            values = torch.cat([values, reference.values_BHRE], dim=2)
        mask = None if mask_BN is None else F.pad(mask_BN, (0, keys.shape[2] - mask_BN.shape[1]), value=True)
        found = self.attend(queries, keys, values, mask, text)
        if self.audio_keys is not None and audio_BFKC is not None:
            found = found + self.audio_keys(queries, audio_BFKC, None if mask_BN is None else mask_BN[:, text:])
        return self.to_out[0](join_heads(found))

    def attend(
        self,
        queries_BHNE: torch.Tensor,
        keys_BHME: torch.Tensor,
        values_BHME: torch.Tensor,
        mask_BM: torch.Tensor | None,
        text: int,
    ) -> torch.Tensor:
        """What queries of text and picture find, [B, H, N, E]; their keys come first, then those of the reference.

        text: how many of the tokens are text. In a place of its own, so that several devices may share the work.
        """
        mask = None if mask_BM is None else mask_BM[:, None, None]
        return F.scaled_dot_product_attention(queries_BHNE, keys_BHME, values_BHME, attn_mask=mask)


class AudioKeys(nn.Module):
    """Sound in self-attention: its tokens are keys and values that the layer's own queries look at.

    They have a softmax of their own, and what it finds is added with a gate per head that starts at zero (as in
    LLaMA-Adapter, arXiv 2303.16199): in one softmax with the picture no start would leave a pretrained layer alone.
    Keys carry the time of their latent frame by rotary embedding, so that a picture token can tell its own sound.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.to_k = nn.Linear(config.audio.token_dim, config.width)
        self.to_v = nn.Linear(config.audio.token_dim, config.width)
        self.norm_k = nn.LayerNorm(config.head_dim, _QK_EPS)
        self.gate = nn.Parameter(torch.zeros(config.heads))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.gate)

    def forward(
        self, queries_BHNE: torch.Tensor, tokens_BFKC: torch.Tensor, picture_mask_BL: torch.Tensor | None
    ) -> torch.Tensor:
        """What the queries find in the sound, gated: [B, H, N, E]. Nothing is found in frames that are not real."""
        batch, frames, count, _ = tokens_BFKC.shape
        tokens_BTC = tokens_BFKC.flatten(1, 2)
        keys = self.norm_k(split_heads(self.to_k(tokens_BTC), self.heads))
        zero = torch.zeros(1, device=keys.device)
        times = rotary_3d(torch.arange(frames, device=keys.device).float(), zero, zero, keys.shape[-1])
        keys = rotated(keys, (times[0].repeat_interleave(count, 0), times[1].repeat_interleave(count, 0)))
        mask = None
        if picture_mask_BL is not None:
            frame_mask_BF = picture_mask_BL.view(batch, frames, -1)[:, :, 0]
            mask = frame_mask_BF.repeat_interleave(count, 1)[:, None, None]
        values = split_heads(self.to_v(tokens_BTC), self.heads)
        found = F.scaled_dot_product_attention(queries_BHNE, keys, values, attn_mask=mask)
        return self.gate.to(found.dtype)[:, None, None] * found


class CrossAttention(nn.Module):
    """Picture tokens look at tokens of a condition: the face's, or their own frame's sound (paper, Sec. 3.2).

    With `norms` given in `forward`, as the released code shares those of self-attention, it has none of its own.
    """

    def __init__(self, config: ModelConfig, token_dim: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm = nn.LayerNorm(config.width, _EPS)
        self.to_q = nn.Linear(config.width, config.width)
        self.to_k = nn.Linear(token_dim, config.width)
        self.to_v = nn.Linear(token_dim, config.width)
        if config.compat != "hallo3":
            self.norm_q = nn.LayerNorm(config.head_dim, _QK_EPS)
            self.norm_k = nn.LayerNorm(config.head_dim, _QK_EPS)
        self.to_out = nn.ModuleList([ZeroLinear(config.width, config.width)])

    def forward(
        self,
        picture_BLD: torch.Tensor,
        tokens_BKC: torch.Tensor,
        *,
        norms: tuple[nn.Module, nn.Module] | None = None,
        rotary: Rotary | None = None,
    ) -> torch.Tensor:
        """What is to be added to the picture tokens: [B, L, D].

        tokens_BKC: [B, K, C], or [B, F, K, C] when each latent frame has its own: its patches see those alone.
        """
        norm_q, norm_k = norms or (self.norm_q, self.norm_k)
        shape = picture_BLD.shape
        queries = norm_q(split_heads(self.to_q(self.norm(picture_BLD)), self.heads))
        if rotary is not None:
            queries = rotated(queries, rotary)
        if tokens_BKC.ndim == 4:  # frames join the batch
            frames = tokens_BKC.shape[1]
            queries = queries.unflatten(2, (frames, -1)).transpose(1, 2).flatten(0, 1)
            tokens_BKC = tokens_BKC.flatten(0, 1)
        keys = norm_k(split_heads(self.to_k(tokens_BKC), self.heads))
        values = split_heads(self.to_v(tokens_BKC), self.heads)
        found = F.scaled_dot_product_attention(queries, keys, values)
        return self.to_out[0](join_heads(found).reshape(shape))


def split_heads(tokens_BND: torch.Tensor, heads: int) -> torch.Tensor:
    """[B, N, D] -> [B, H, N, E]."""
    return tokens_BND.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(tokens_BHNE: torch.Tensor) -> torch.Tensor:
    """[B, H, N, E] -> [B, N, D]."""
    return tokens_BHNE.transpose(1, 2).flatten(2)


def rotated(tokens_BHNE: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """Tokens turned by their place: neighbouring channels are the two coordinates of a turning vector (RoFormer)."""
    cosines_NE, sines_NE = rotary
    even, odd = tokens_BHNE.float().unflatten(-1, (-1, 2)).unbind(-1)
    quarter_turn = torch.stack([-odd, even], dim=-1).flatten(-2)
    return (tokens_BHNE.float() * cosines_NE + quarter_turn * sines_NE).to(tokens_BHNE.dtype)


def rotary_3d(times: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, head_dim: int) -> Rotary:
    """Rotary embedding of every place of a video: a quarter of the channels tells time, 3/8 the row, 3/8 the column.

    times, rows, columns: float positions along each axis. Returns cosines and sines [times·rows·columns, E].
    """
    sizes = (head_dim // 4, head_dim // 8 * 3, head_dim // 8 * 3)
    shape = (len(times), len(rows), len(columns))
    angles = []
    for axis, (places, size) in enumerate(zip((times, rows, columns), sizes, strict=True)):
        steps = torch.arange(0, size, 2, dtype=torch.float32, device=places.device)
        turns = torch.outer(places, 1.0 / (_THETA ** (steps / size))).repeat_interleave(2, dim=1)
        view = [1, 1, 1, size]
        view[axis] = shape[axis]
        angles.append(turns.view(view).expand(*shape, size))
    angles_NE = torch.cat(angles, dim=-1).flatten(0, 2)
    return angles_NE.cos(), angles_NE.sin()


def video_rotary(config: ModelConfig, frames: int, rows: int, columns: int, device: torch.device) -> Rotary:
    """Rotary embedding of a video's patches, [F·rows·columns, E].

    CogVideoX 1.0 fits another size's patches into the grid it was made for, in the middle and in the same proportions;
    1.5 counts patches. At the size it was made for, both count patches.
    """
    times = torch.arange(frames, dtype=torch.float32, device=device)
    if config.patch_frames > 1:
        places = [torch.arange(count, dtype=torch.float32, device=device) for count in (rows, columns)]
    else:
        places = [
            torch.linspace(start, stop * (count - 1) / count, count, dtype=torch.float32, device=device)
            for (start, stop), count in zip(_fitted(rows, columns, *config.grid), (rows, columns), strict=True)
        ]
    return rotary_3d(times, places[0], places[1], config.head_dim)


def joint_rotary(picture: Rotary, text_tokens: int) -> Rotary:
    """Rotary embedding of text and picture in this order: text has no place, and is not turned."""
    cosines, sines = picture
    return F.pad(cosines, (0, 0, text_tokens, 0), value=1.0), F.pad(sines, (0, 0, text_tokens, 0))


def _fitted(rows: int, columns: int, base_rows: int, base_columns: int) -> list[tuple[int, int]]:
    """Where a grid of the given proportions lies inside the base grid: (start, stop) of rows and of columns."""
    if rows / columns > base_rows / base_columns:
        fitted = (base_rows, round(base_rows / rows * columns))
    else:
        fitted = (round(base_columns / columns * rows), base_columns)
    starts = [round((base - size) / 2.0) for base, size in zip((base_rows, base_columns), fitted, strict=True)]
    return [(start, start + size) for start, size in zip(starts, fitted, strict=True)]
