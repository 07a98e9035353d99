"""What Hallo3's released code has otherwise than the paper: its audio path, and the names of its checkpoint.

The rest of its differences are small and stand where they matter, under `compat == "hallo3"`;
docs/paper-and-code.md lists them all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from model.attention import Rotary, video_rotary
from model.config import AudioConfig, ModelConfig


class Hallo3AudioTokens(nn.Module):
    """The released code's tokens of speech: per video frame, then halved in time twice by one and the same convolution.

    A convolution over all tokens of a frame at once has tokens · token_dim channels: 1.2 B parameters at full size. Of
    an odd number of frames the first passes by, so 49 become 25 and then 13, and latent frame i takes frames
    4i − 3 … 4i; 48 become 24 and 12.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        audio = config.audio
        channels = audio.tokens * audio.token_dim
        self.tokens = audio.tokens
        self.proj1 = nn.Linear(audio.span * audio.layers * audio.dim, audio.inner)
        self.proj2 = nn.Linear(audio.inner, audio.inner)
        self.proj3 = nn.Linear(audio.inner, channels)
        self.norm = nn.LayerNorm(audio.token_dim, 1e-5)
        self.conv1 = nn.Conv1d(channels, channels, kernel_size=2, stride=2)

    def forward(self, audio_BTWNC: torch.Tensor) -> torch.Tensor:
        """audio_BTWNC: windows of speech embeddings. Returns [B, F, tokens, token_dim]."""
        tokens_BTC = self.proj3(F.relu(self.proj2(F.relu(self.proj1(audio_BTWNC.flatten(2))))))
        halved_BFC = self._halved(self._halved(tokens_BTC))
        return self.norm(halved_BFC.unflatten(-1, (self.tokens, -1)))

    def _halved(self, tokens_BTC: torch.Tensor) -> torch.Tensor:
        odd = tokens_BTC.shape[1] % 2
        if tokens_BTC.shape[1] == odd:  # the first frame alone: nothing to halve
            return tokens_BTC
        rest_BFC = self.conv1(tokens_BTC[:, odd:].transpose(1, 2)).transpose(1, 2)
        return torch.cat([tokens_BTC[:, :odd], rest_BFC], dim=1)


def as_if_reference(config: ModelConfig, rotary: Rotary, frames: int) -> tuple[Rotary, Rotary]:
    """The released code's rotary embeddings: of self-attention, and of the queries to face and sound.

    rotary: of all picture tokens. The queries of every frame are turned as those of frame 0. In self-attention the
    released code finds the end of the picture by a fixed number of reference tokens, which is right at 480 × 720
    alone: `rotary_reference_tokens` says that number, 0 that it is right.
    """
    cosines, sines = rotary
    patches = len(cosines) // frames
    queries = (cosines[:patches].repeat(frames, 1), sines[:patches].repeat(frames, 1))
    if assumed := config.rotary_reference_tokens:
        turned = max(0, len(cosines) + patches - assumed)  # a reference is one frame of patches
        cosines = torch.cat([cosines[:turned], torch.ones_like(cosines[turned:])])
        sines = torch.cat([sines[:turned], torch.zeros_like(sines[turned:])])
    return (cosines, sines), queries


# --- Names -----------------------------------------------------------------------------------------------------------

DENOISER = "model.diffusion_model."
REFERENCE = "ref_model.diffusion_model."
# What the published file holds besides, for others to read: the VAE and the text encoder.
OTHERS = ("first_stage_model.", "conditioner.")
# Present and without effect: tables that are computed here, and an embedding that nothing reads.
_IDLE = re.compile(r"(mixins\.pos_embed\.freqs_(sin|cos)|transformer\.position_embeddings\.weight)")


@dataclass(frozen=True)
class Source:
    """Where a parameter of ours lies in the published checkpoint: rows of a tensor, in `parts` equal parts."""

    name: str
    parts: tuple[int, ...] = (0,)
    of: int = 1

    def read(self, tensor: torch.Tensor) -> torch.Tensor:
        """Our parameter out of theirs; a view where its rows lie together."""
        if self.of == 1:
            return tensor
        chunks = tensor.chunk(self.of)
        low, high = self.parts[0], self.parts[-1]
        if self.parts == tuple(range(low, high + 1)):
            size = tensor.shape[0] // self.of
            return tensor[low * size : (high + 1) * size]
        return torch.cat([chunks[part] for part in self.parts])


# Our names without the block -> theirs; `{}` is the block's number.
_WHOLE = {
    "patch_embed.pos_embedding": Source("mixins.pos_embed.pos_embedding"),
    "patch_embed.proj": Source("mixins.patch_embed.proj"),
    "patch_embed.text_proj": Source("mixins.patch_embed.text_proj"),
    "time_embedding.linear_1": Source("time_embed.0"),
    "time_embedding.linear_2": Source("time_embed.2"),
    "norm_final": Source("transformer.final_layernorm"),
    "norm_out.norm": Source("mixins.final_layer.norm_final"),
    "norm_out.linear": Source("mixins.final_layer.adaLN_modulation.1"),
    "proj_out": Source("mixins.final_layer.linear"),
    "face_tokens.proj": Source("transformer.face_proj.proj"),
    "face_tokens.norm": Source("transformer.face_proj.norm"),
    "audio_tokens.proj1": Source("transformer.audio_proj.proj1"),
    "audio_tokens.proj2": Source("transformer.audio_proj.proj2"),
    "audio_tokens.proj3": Source("transformer.audio_proj.proj3"),
    "audio_tokens.norm": Source("transformer.audio_proj.norm"),
    "audio_tokens.conv1": Source("transformer.audio_proj.conv1"),
}
_BLOCK = {
    # Twelve parts: shift, scale, gate of the picture in attention, in feed-forward, then the same of the text.
    "norm1.linear": Source("mixins.adaln_layer.adaLN_modulations.{}.1", (0, 1, 2, 6, 7, 8), 12),
    "norm2.linear": Source("mixins.adaln_layer.adaLN_modulations.{}.1", (3, 4, 5, 9, 10, 11), 12),
    "norm1.norm": Source("transformer.layers.{}.input_layernorm"),
    "norm2.norm": Source("transformer.layers.{}.post_attention_layernorm"),
    "attn1.to_q": Source("transformer.layers.{}.attention.query_key_value", (0,), 3),
    "attn1.to_k": Source("transformer.layers.{}.attention.query_key_value", (1,), 3),
    "attn1.to_v": Source("transformer.layers.{}.attention.query_key_value", (2,), 3),
    "attn1.to_out.0": Source("transformer.layers.{}.attention.dense"),
    "attn1.norm_q": Source("mixins.adaln_layer.query_layernorm_list.{}"),
    "attn1.norm_k": Source("mixins.adaln_layer.key_layernorm_list.{}"),
    "ff.net.0.proj": Source("transformer.layers.{}.mlp.dense_h_to_4h"),
    "ff.net.2": Source("transformer.layers.{}.mlp.dense_4h_to_h"),
    **{
        f"{kind}_attention.{part}": Source(f"transformer.layers.{{}}.{kind}_{theirs}", parts, of)
        for kind in ("face", "audio")
        for part, theirs, parts, of in (
            ("norm", "input_layernorm", (0,), 1),
            ("to_q", "attn.query", (0,), 1),
            ("to_k", "attn.key_value", (0,), 2),
            ("to_v", "attn.key_value", (1,), 2),
            ("to_out.0", "attn.dense", (0,), 1),
        )
    },
}
NETWORKS = {"denoiser.": DENOISER, "reference.": REFERENCE}


def source_of(name: str) -> Source:
    """Where the parameter `name` of a Portrait lies in the published checkpoint. Raises KeyError."""
    for ours, theirs in NETWORKS.items():
        if name.startswith(ours):
            inner = name.removeprefix(ours)
            if inner in _WHOLE:
                source, leaf, block = _WHOLE[inner], "", ""
            else:
                stem, _, leaf = inner.rpartition(".")
                block = ""
                if stem.startswith("transformer_blocks."):
                    _, block, stem = stem.split(".", 2)
                source = (_BLOCK if block else _WHOLE)[stem]
            full = theirs + source.name.format(block) + (f".{leaf}" if leaf else "")
            return Source(full, source.parts, source.of)
    raise KeyError(name)


def read(published: Mapping[str, torch.Tensor], names: Iterator[str] | list[str]) -> dict[str, torch.Tensor]:
    """The parameters `names` of a Portrait, as far as the published checkpoint has them."""
    found = {}
    for name in names:
        try:
            source = source_of(name)
        except KeyError:
            continue
        if source.name in published:
            found[name] = source.read(published[source.name])
    return found


def unread(published: Mapping[str, torch.Tensor], names: Iterator[str] | list[str]) -> list[str]:
    """Names of the published checkpoint's networks that nothing of ours is read from, idle ones left out."""
    taken = set()
    for name in names:
        try:
            taken.add(source_of(name).name)
        except KeyError:
            continue
    return [name for name in published if name not in taken and not name.startswith(OTHERS) and not _IDLE.search(name)]


def write(ours: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our parameters under the published names, put together again; the idle tables are not written.

    Raises KeyError for a parameter that the published layout has no place for.
    """
    parts: dict[str, dict[int, torch.Tensor]] = {}
    counts: dict[str, int] = {}
    for name, tensor in ours.items():
        source = source_of(name)
        counts[source.name] = source.of
        for part, rows in zip(source.parts, tensor.chunk(len(source.parts)), strict=True):
            parts.setdefault(source.name, {})[part] = rows
    for name, count in counts.items():
        if sorted(parts[name]) != list(range(count)):
            raise KeyError(f"{name}: only parts {sorted(parts[name])} of {count} are there")
    return {
        name: rows[0] if counts[name] == 1 else torch.cat([rows[part] for part in range(counts[name])])
        for name, rows in parts.items()
    }


def config_of(published: Mapping[str, torch.Tensor]) -> ModelConfig:
    """The sizes of a published checkpoint, from its tensors.

    What shapes do not tell is as published: heads of 64, 13 latent frames of 2:3, windows of 5 frames. How many hidden
    states of which width a window holds is not told either, and does not matter to the network.
    Raises KeyError or ValueError when it is not such a checkpoint.
    """

    def shape(name: str) -> torch.Size:
        return published[DENOISER + name].shape

    width, channels, patch, _ = shape("mixins.patch_embed.proj.weight")
    positions = shape("mixins.pos_embed.pos_embedding")[1]
    table = published.get(DENOISER + "mixins.pos_embed.freqs_cos")
    places = positions - 226 if table is None else table.shape[0]
    rows = math.isqrt(places // 13 * 2 // 3)
    if 13 * rows * rows * 3 // 2 != places:
        raise ValueError(f"{places} places are not 13 frames of height to width as 2:3")
    audio = AudioConfig(injection="none")
    if DENOISER + "transformer.audio_proj.proj1.weight" in published:
        inner, seen = shape("transformer.audio_proj.proj1.weight")
        (token_dim,) = shape("transformer.audio_proj.norm.weight")
        states = 12 if seen % (5 * 12) == 0 else 1
        tokens = shape("transformer.audio_proj.proj3.weight")[0] // token_dim
        audio = AudioConfig("cross", states, seen // 5 // states, 2, inner, tokens, token_dim)
    (face_out, face_dim), (face_token_dim,) = (
        shape("transformer.face_proj.proj.weight"),
        shape("transformer.face_proj.norm.weight"),
    )
    layers = sum(name.endswith(".attention.dense.bias") and name.startswith(DENOISER) for name in published)
    return ModelConfig(
        width=width,
        heads=width // 64,
        layers=layers,
        patch=patch,
        time_dim=shape("time_embed.2.weight")[0],
        text_dim=shape("mixins.patch_embed.text_proj.weight")[1],
        text_length=positions - places,
        latent_channels=channels // 2,
        condition_channels=channels // 2,
        latent_height=rows * patch,
        latent_width=rows * 3 // 2 * patch,
        face_dim=face_dim,
        face_tokens=face_out // face_token_dim,
        face_token_dim=face_token_dim,
        audio=audio,
        compat="hallo3",
    )


def idle(config: ModelConfig, network: str) -> dict[str, torch.Tensor]:
    """The tensors without effect that the released code's strict loading asks for: its tables, and unused positions."""
    rows, columns = config.grid
    cosines, sines = video_rotary(config, config.latent_frames, rows, columns, torch.device("cpu"))
    return {
        f"{network}mixins.pos_embed.freqs_cos": cosines,
        f"{network}mixins.pos_embed.freqs_sin": sines,
        f"{network}transformer.position_embeddings.weight": torch.zeros(64, config.width),
    }
