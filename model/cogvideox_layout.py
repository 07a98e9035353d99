"""CogVideoX's transformer as diffusers publishes it: its config.json and ours."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from model.config import AudioConfig, ModelConfig

CLASS = "CogVideoXTransformer3DModel"
STEM = "diffusion_pytorch_model"

# What all published checkpoints have, and this network with them.
_FIXED = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "dropout": 0.0,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "norm_elementwise_affine": True,
    "norm_eps": 1e-05,
    "spatial_interpolation_scale": 1.875,
    "temporal_compression_ratio": 4,
    "temporal_interpolation_scale": 1.0,
    "timestep_activation_fn": "silu",
    "use_rotary_positional_embeddings": True,
}
# diffusers' own defaults, for keys that a config.json leaves out.
_DEFAULTS = {
    "attention_head_dim": 64,
    "in_channels": 16,
    "max_text_seq_length": 226,
    "num_attention_heads": 30,
    "num_layers": 30,
    "ofs_embed_dim": None,
    "out_channels": 16,
    "patch_bias": True,
    "patch_size": 2,
    "patch_size_t": None,
    "sample_frames": 49,
    "sample_height": 60,
    "sample_width": 90,
    "text_embed_dim": 4096,
    "time_embed_dim": 512,
    "use_learned_positional_embeddings": False,
}


def config_of(published: Mapping[str, Any]) -> ModelConfig:
    """The backbone that a config.json describes. Raises ValueError where it is one that this network cannot be."""
    for key, value in _FIXED.items():
        default = False if key == "use_rotary_positional_embeddings" else value
        if published.get(key, default) != value:
            raise ValueError(f"{key}={published.get(key, default)!r}, where this network has {value!r}")
    values = {**_DEFAULTS, **published}
    if values["patch_size_t"] is None and not values["patch_bias"]:
        raise ValueError("patch_bias=False, where this network has a bias")
    return ModelConfig(
        width=values["num_attention_heads"] * values["attention_head_dim"],
        heads=values["num_attention_heads"],
        layers=values["num_layers"],
        patch=values["patch_size"],
        patch_frames=values["patch_size_t"] or 1,
        time_dim=values["time_embed_dim"],
        text_dim=values["text_embed_dim"],
        text_length=values["max_text_seq_length"],
        latent_channels=values["out_channels"],
        condition_channels=values["in_channels"] - values["out_channels"],
        latent_frames=(values["sample_frames"] - 1) // 4 + 1,
        latent_height=values["sample_height"],
        latent_width=values["sample_width"],
        learned_positions=values["use_learned_positional_embeddings"],
        ofs_dim=values["ofs_embed_dim"] or 0,
        identity="none",
        audio=AudioConfig(injection="none"),
    )


def published_of(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a backbone."""
    return {
        "_class_name": CLASS,
        "_diffusers_version": "0.36.0",
        **_FIXED,
        "attention_head_dim": config.head_dim,
        "in_channels": config.latent_channels + config.condition_channels,
        "max_text_seq_length": config.text_length,
        "num_attention_heads": config.heads,
        "num_layers": config.layers,
        "ofs_embed_dim": config.ofs_dim or None,
        "out_channels": config.latent_channels,
        "patch_bias": True,
        "patch_size": config.patch,
        "patch_size_t": None if config.patch_frames == 1 else config.patch_frames,
        "sample_frames": (config.latent_frames - 1) * 4 + 1,
        "sample_height": config.latent_height,
        "sample_width": config.latent_width,
        "text_embed_dim": config.text_dim,
        "time_embed_dim": config.time_dim,
        "use_learned_positional_embeddings": config.learned_positions,
    }


def same_backbone(config: ModelConfig, other: ModelConfig) -> list[str]:
    """Names of the backbone's settings in which two configs differ."""
    ours, theirs = config.backbone(), other.backbone()
    names = [field.name for field in dataclasses.fields(ModelConfig)]
    paper = ("identity", "audio", "motion", "compat", "rotary_reference_tokens")
    names = [name for name in names if name not in paper and not name.startswith("face_")]
    return [name for name in names if getattr(ours, name) != getattr(theirs, name)]
