"""The denoiser: CogVideoX's diffusion transformer, with a reference, a face, motion and sound to go by.

B batch, F latent frames, C channels, h×w latent positions, P patches of a frame, L = F·P picture tokens, S text
tokens, R reference tokens, D width, K tokens of a condition of width G, T video frames. Modules and parameters of
CogVideoX have the names of its published checkpoints in diffusers' layout; those of the paper, face_… and audio_….
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from model.attention import CrossAttention, JointAttention, Keys, Rotary, joint_rotary, video_rotary
from model.conditioning import AdaptiveNorm, AudioTokens, FaceTokens, Shift
from model.config import ModelConfig
from model.embedding import PatchEmbed, TimeEmbedding, unpatched
from model.hallo3 import Hallo3AudioTokens, as_if_reference

_EPS = 1e-5
_OFS = 2.0  # what CogVideoX 1.5 is always given


Gates = tuple[torch.Tensor, torch.Tensor]  # of text and of picture, each [B, 1 or F, D]


class Conditions(NamedTuple):
    """What every block is given besides text, picture and time."""

    rotary: Rotary  # of text and picture
    face_BKG: torch.Tensor | None = None
    audio_BFKG: torch.Tensor | None = None
    cross_rotary: Rotary | None = None  # of the queries to face and sound (compat=hallo3)
    mask_BN: torch.Tensor | None = None  # of text and picture: True where a token is real


class ExpertNorm(nn.Module):
    """The timestep's adaptive norm, with shifts of its own for the picture and for the text (CogVideoX, Sec. 2.2)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.time_dim, 6 * config.width)
        self.norm = nn.LayerNorm(config.width, _EPS)

    def forward(
        self, text_BSD: torch.Tensor, picture_BLD: torch.Tensor, time_BD: torch.Tensor, moved: Sequence[Shift] = ()
    ) -> tuple[torch.Tensor, Gates]:
        """Text and picture as the layer sees them [B, S + L, D], and their gates. moved: more shifts of the picture."""
        shift, scale, gate, text_shift, text_scale, text_gate = self.linear(F.silu(time_BD))[:, None].chunk(6, dim=-1)
        for move in moved:
            shift, scale, gate = shift + move.shift, scale + move.scale, gate + move.gate
        text = modulated(self.norm(text_BSD), text_shift, text_scale)
        picture = modulated(self.norm(picture_BLD), shift, scale)
        return torch.cat([text, picture], dim=1), (text_gate, gate)


class FeedForward(nn.Module):
    """Two linear layers with GELU between them, for text and picture alike."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        inner = 4 * config.width
        # The published names are net.0.proj and net.2.
        self.net = nn.Sequential(_Gelu(config.width, inner), nn.Identity(), nn.Linear(inner, config.width))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.net(tokens)


class _Gelu(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, inner)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return F.gelu(self.proj(tokens), approximate="tanh")


class Block(nn.Module):
    """One layer: attend to text, picture and reference; look at the face; listen; think (paper, Fig. 2 and 3)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, audio = config.width, config.audio
        self.shared_norms = config.compat == "hallo3"
        self.norm1 = ExpertNorm(config)
        self.attn1 = JointAttention(config)
        self.norm2 = ExpertNorm(config)
        self.ff = FeedForward(config)
        face, cross = config.has_face_attention, audio.injection == "cross"
        adaptive = audio.injection in ("adaln", "adaln_zero")
        self.face_attention = CrossAttention(config, config.face_token_dim) if face else None
        self.face_adaptive = (
            AdaptiveNorm(config.face_token_dim, width, gated=True) if config.identity == "face_norm" else None
        )
        self.audio_attention = CrossAttention(config, audio.token_dim) if cross else None
        self.audio_adaptive = (
            AdaptiveNorm(audio.token_dim, width, gated=audio.injection == "adaln_zero") if adaptive else None
        )

    def forward(
        self,
        text_BSD: torch.Tensor,
        picture_BLD: torch.Tensor,
        time_BD: torch.Tensor,
        given: Conditions,
        reference: Keys | torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Text and picture after this layer.

        reference: what the reference network's layer sees [B, R, D], or the keys and values made of it.
        """
        if isinstance(reference, torch.Tensor):
            reference = self.attn1.keys(reference)
        before, after = self._moves(given)

        seen_BND, gates = self.norm1(text_BSD, picture_BLD, time_BD, before)
        text = text_BSD.shape[1]
        found_BND = self.attn1(seen_BND, text, given.rotary, reference, given.audio_BFKG, given.mask_BN)
        text_BSD, picture_BLD = added(text_BSD, picture_BLD, found_BND, gates)
        del found_BND, seen_BND  # memory is fullest in the feed-forward network

        if self.face_attention is not None and given.face_BKG is not None:
            picture_BLD = picture_BLD + self._crossed(self.face_attention, picture_BLD, given.face_BKG, given)
        if self.audio_attention is not None and given.audio_BFKG is not None:
            picture_BLD = picture_BLD + self._crossed(self.audio_attention, picture_BLD, given.audio_BFKG, given)

        seen_BND, gates = self.norm2(text_BSD, picture_BLD, time_BD, after)
        return added(text_BSD, picture_BLD, self.ff(seen_BND), gates)

    def _crossed(
        self, attention: CrossAttention, picture_BLD: torch.Tensor, tokens: torch.Tensor, given: Conditions
    ) -> torch.Tensor:
        """Cross-attention; compat=hallo3 lends it the norms of self-attention and turns its queries."""
        norms = (self.attn1.norm_q, self.attn1.norm_k) if self.shared_norms else None
        return attention(picture_BLD, tokens, norms=norms, rotary=given.cross_rotary)

    def _moves(self, given: Conditions) -> tuple[list[Shift], list[Shift]]:
        """Shifts of the two norms by face and sound, where these come in by norms."""
        pairs = []
        if self.face_adaptive is not None and given.face_BKG is not None:
            pairs.append(self.face_adaptive(given.face_BKG))
        if self.audio_adaptive is not None and given.audio_BFKG is not None:
            pairs.append(self.audio_adaptive(given.audio_BFKG))
        return [before for before, _ in pairs], [after for _, after in pairs]


class OutNorm(nn.Module):
    """The last adaptive norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.time_dim, 2 * config.width)
        self.norm = nn.LayerNorm(config.width, 1e-6 if config.compat == "hallo3" else _EPS)

    def forward(self, picture_BLD: torch.Tensor, time_BD: torch.Tensor) -> torch.Tensor:
        shift, scale = self.linear(F.silu(time_BD))[:, None].chunk(2, dim=-1)
        return modulated(self.norm(picture_BLD), shift, scale)


class Backbone(nn.Module):
    """What denoiser and reference network both are: embeddings, blocks, and the way out."""

    block: type[Block] = Block

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.time_embedding = TimeEmbedding(config.width, config.time_dim)
        self.ofs_embedding = TimeEmbedding(config.ofs_dim, config.ofs_dim) if config.ofs_dim else None
        self.transformer_blocks = nn.ModuleList([self.block(config) for _ in range(config.layers)])
        self.norm_final = nn.LayerNorm(config.width, _EPS)
        self.norm_out = OutNorm(config)
        self.proj_out = nn.Linear(config.width, config.patch_frames * config.patch**2 * config.latent_channels)

    def embed_time(
        self, timestep_B: torch.Tensor, dtype: torch.dtype, ofs_B: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The timestep as the blocks get it, [B, time_dim]."""
        time_BD = self.time_embedding(timestep_B, dtype)
        if self.ofs_embedding is None:
            return time_BD
        ofs_B = timestep_B.new_full((1,), _OFS, dtype=torch.float32) if ofs_B is None else ofs_B
        return time_BD + self.ofs_embedding(ofs_B, dtype)

    def places(self, latents_BFCHW: torch.Tensor) -> Rotary:
        """Rotary embedding of the latents' patches."""
        _, frames, _, height, width = latents_BFCHW.shape
        patch, deep = self.config.patch, self.config.patch_frames
        return video_rotary(self.config, frames // deep, height // patch, width // patch, latents_BFCHW.device)


class Denoiser(Backbone):
    """The transformer that tells noise from portrait: v of a noisy latent."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.face_tokens = FaceTokens(config) if config.has_face else None
        self.audio_tokens: nn.Module | None = None
        if config.has_audio:
            self.audio_tokens = Hallo3AudioTokens(config) if config.compat == "hallo3" else AudioTokens(config)

    def forward(
        self,
        noisy_BFCHW: torch.Tensor,
        timestep_B: torch.Tensor,
        text_BSD: torch.Tensor,
        *,
        motion_BFCHW: torch.Tensor | None = None,
        reference: Sequence[Keys | torch.Tensor] | None = None,
        face_BC: torch.Tensor | None = None,
        audio_BTWNC: torch.Tensor | None = None,
        text_mask_BS: torch.Tensor | None = None,
        frame_mask_BF: torch.Tensor | None = None,
        ofs_B: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The predicted v, [B, F, C, h, w].

        motion_BFCHW: the condition of `motion.condition` (None: zeros). reference: layer by layer, what the reference
        network sees, or `reference_keys` of it. face_BC: a face embedding. audio_BTWNC: `conditioning.windows` of the
        speech embeddings of all T video frames. text_mask_BS, frame_mask_BF: True where text and latent frames are
        real; what is not never changes what is. A condition left out (None) leaves its layers out.
        Raises ValueError where shapes do not fit.
        """
        latents = self._with_motion(noisy_BFCHW, motion_BFCHW)
        text_BSD, picture_BLD = self.patch_embed(text_BSD, latents)
        time_BD = self.embed_time(timestep_B, noisy_BFCHW.dtype, ofs_B)
        given = self._conditions(noisy_BFCHW, text_BSD, face_BC, audio_BTWNC, text_mask_BS, frame_mask_BF)
        if reference is not None and len(reference) != len(self.transformer_blocks):
            raise ValueError(f"reference of {len(reference)} layers for {len(self.transformer_blocks)} blocks")
        for block, looked_at in zip(self.transformer_blocks, reference or repeat(None), strict=False):
            text_BSD, picture_BLD = block(text_BSD, picture_BLD, time_BD, given, looked_at)
        picture_BLO = self.proj_out(self.norm_out(self.norm_final(picture_BLD), time_BD))
        return unpatched(picture_BLO, self.config, noisy_BFCHW.shape)

    def reference_keys(self, features: Sequence[torch.Tensor]) -> list[Keys]:
        """Keys and values of the reference, layer by layer: the same at every step of sampling."""
        blocks = zip(self.transformer_blocks, features, strict=True)
        return [block.attn1.keys(feature_BRD) for block, feature_BRD in blocks]  # type: ignore[operator, union-attr]

    def _conditions(
        self,
        noisy_BFCHW: torch.Tensor,
        text_BSD: torch.Tensor,
        face_BC: torch.Tensor | None,
        audio_BTWNC: torch.Tensor | None,
        text_mask_BS: torch.Tensor | None,
        frame_mask_BF: torch.Tensor | None,
    ) -> Conditions:
        frames, text_tokens = noisy_BFCHW.shape[1], text_BSD.shape[1]
        rotary, cross_rotary = self.places(noisy_BFCHW), None
        if self.config.compat == "hallo3":
            rotary, cross_rotary = as_if_reference(self.config, rotary, frames)
        face_BKG = audio_BFKG = mask_BN = None
        if self.face_tokens is not None and face_BC is not None:
            face_BKG = self.face_tokens(face_BC)
        if self.audio_tokens is not None and audio_BTWNC is not None:
            audio_BFKG = self.audio_tokens(audio_BTWNC)
            if audio_BFKG.shape[1] != frames:
                raise ValueError(
                    f"sound of {audio_BTWNC.shape[1]} video frames makes {audio_BFKG.shape[1]} latent frames; "
                    f"the latent has {frames}"
                )
        if text_mask_BS is not None or frame_mask_BF is not None:
            mask_BN = self._token_mask(noisy_BFCHW, text_BSD, text_mask_BS, frame_mask_BF)
        return Conditions(joint_rotary(rotary, text_tokens), face_BKG, audio_BFKG, cross_rotary, mask_BN)

    def _token_mask(
        self,
        noisy_BFCHW: torch.Tensor,
        text_BSD: torch.Tensor,
        text_mask_BS: torch.Tensor | None,
        frame_mask_BF: torch.Tensor | None,
    ) -> torch.Tensor:
        """True where a token of text or picture is real; a patch of several frames is where its first is."""
        batch, frames, _, height, width = noisy_BFCHW.shape
        if text_mask_BS is None:
            text_mask_BS = torch.ones(text_BSD.shape[:2], dtype=torch.bool, device=text_BSD.device)
        if frame_mask_BF is None:
            frame_mask_BF = torch.ones((batch, frames), dtype=torch.bool, device=text_BSD.device)
        patches = (height // self.config.patch) * (width // self.config.patch)
        real_BL = frame_mask_BF[:, :: self.config.patch_frames].repeat_interleave(patches, dim=1)
        return torch.cat([text_mask_BS, real_BL], dim=1)

    def _with_motion(self, noisy_BFCHW: torch.Tensor, motion_BFCHW: torch.Tensor | None) -> torch.Tensor:
        """The noisy latent and its condition, joined by channels."""
        channels = self.config.condition_channels
        if not channels:
            if motion_BFCHW is not None:
                raise ValueError("this network has no channels for motion (condition_channels=0)")
            return noisy_BFCHW
        if motion_BFCHW is None:
            batch, frames, _, height, width = noisy_BFCHW.shape
            motion_BFCHW = noisy_BFCHW.new_zeros(batch, frames, channels, height, width)
        return torch.cat([noisy_BFCHW, motion_BFCHW], dim=2)


def modulated(tokens_BND: torch.Tensor, shift_BFD: torch.Tensor, scale_BFD: torch.Tensor) -> torch.Tensor:
    """shift + tokens · (1 + scale), where shift and scale are per clip (F = 1) or per latent frame."""
    tokens_BFPD = tokens_BND.unflatten(1, (shift_BFD.shape[1], -1))
    return torch.addcmul(shift_BFD[:, :, None], tokens_BFPD, 1 + scale_BFD[:, :, None]).flatten(1, 2)


def added(
    text_BSD: torch.Tensor, picture_BLD: torch.Tensor, found_BND: torch.Tensor, gates: Gates
) -> tuple[torch.Tensor, torch.Tensor]:
    """Text and picture, and what a layer found for both of them, each by its gate."""
    text, picture = found_BND.split([text_BSD.shape[1], picture_BLD.shape[1]], dim=1)
    return gated(text_BSD, gates[0], text), gated(picture_BLD, gates[1], picture)


def gated(tokens_BND: torch.Tensor, gate_BFD: torch.Tensor, found_BND: torch.Tensor) -> torch.Tensor:
    """tokens + gate · found, where the gate is per clip (F = 1) or per latent frame."""
    pieces = (gate_BFD.shape[1], -1)
    sum_BFPD = torch.addcmul(tokens_BND.unflatten(1, pieces), gate_BFD[:, :, None], found_BND.unflatten(1, pieces))
    return sum_BFPD.flatten(1, 2)
