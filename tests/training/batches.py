"""Batches of meaningless numbers for small networks."""

from __future__ import annotations

import torch

from model.codecs import frames_for
from model.config import ModelConfig
from training.data import Batch


def batch(network: ModelConfig, keys: tuple[str, ...] = ("a", "b"), *, step: int = 0, frames: int = 3) -> Batch:
    """A batch for a network; a sample's numbers depend on its key alone. Boxes stay where they are."""
    samples = [_sample(network, key, frames) for key in keys]
    stacked = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    return Batch(
        step=step,
        keys=keys,
        places=tuple(range(len(keys))),
        latent_BFCHW=stacked["latent"],
        motion_BNCHW=stacked["motion"],
        reference_BCHW=stacked["reference"],
        face_BC=stacked["face"],
        audio_BTNC=stacked["audio"],
        text_BSD=stacked["text"],
        text_mask_BS=stacked["text_mask"],
        boxes_BT24=stacked["boxes"],
        dropped=tuple(frozenset() for _ in keys),
    )


def _sample(network: ModelConfig, key: str, frames: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(int.from_bytes(key.encode(), "big") % 2**60)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    picture = (network.latent_channels, network.latent_height, network.latent_width)
    heard = frames_for(frames) + 2 * network.audio.window
    height, width = 8.0 * network.latent_height, 8.0 * network.latent_width
    face = torch.tensor(
        [[width / 4, height / 4, width * 3 / 4, height * 3 / 4], [width / 2, height / 2, width, height]]
    )
    return {
        "latent": noise(frames, *picture),
        "motion": noise(network.motion.frames, *picture),
        "reference": noise(*picture),
        "face": noise(network.face_dim),
        "audio": noise(heard, network.audio.layers, network.audio.dim),
        "text": noise(network.text_length, network.text_dim),
        "text_mask": torch.arange(network.text_length) < 4,
        "boxes": face.expand(frames_for(frames), 2, 4),
    }
