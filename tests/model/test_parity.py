"""The backbone against diffusers' CogVideoX transformer, on the same weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed, get_3d_sincos_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

from model.cogvideox_layout import config_of
from model.embedding import sincos_positions
from model.transformer import Denoiser
from tests.model.networks import shaken

COMMON = {
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "time_embed_dim": 24,
    "text_embed_dim": 20,
    "num_layers": 2,
    "max_text_seq_length": 6,
    "use_rotary_positional_embeddings": True,
}


@dataclass(frozen=True)
class Flavour:
    """A published kind of CogVideoX, small, and latents for it: frames, height, width."""

    settings: dict[str, Any]
    latents: tuple[int, int, int]


FLAVOURS = {
    "1.0 image-to-video, learned positions, its own size": Flavour(
        {
            "in_channels": 8,
            "out_channels": 4,
            "sample_height": 8,
            "sample_width": 12,
            "sample_frames": 9,
            "use_learned_positional_embeddings": True,
        },
        (3, 8, 12),
    ),
    "1.0 text-to-video, wider than its own size, odd patches": Flavour(
        {"in_channels": 4, "out_channels": 4, "sample_height": 12, "sample_width": 18}, (5, 10, 22)
    ),
    "1.0 text-to-video, taller than its own size, odd patches": Flavour(
        {"in_channels": 4, "out_channels": 4, "sample_height": 12, "sample_width": 18}, (1, 14, 6)
    ),
    "1.5 image-to-video, ofs, patches of two frames": Flavour(
        {
            "in_channels": 8,
            "out_channels": 4,
            "sample_height": 20,
            "sample_width": 20,
            "sample_frames": 81,
            "patch_size_t": 2,
            "ofs_embed_dim": 24,
            "patch_bias": False,
        },
        (4, 6, 10),
    ),
}


def rotary_as_its_pipeline_does(theirs: CogVideoXTransformer3DModel, latents: tuple[int, int, int]) -> Any:
    config = theirs.config
    grid = (latents[1] // config.patch_size, latents[2] // config.patch_size)
    base = (config.sample_height // config.patch_size, config.sample_width // config.patch_size)
    if config.patch_size_t is None:
        crops = get_resize_crop_region_for_grid(grid, base[1], base[0])
        return get_3d_rotary_pos_embed(config.attention_head_dim, crops, grid, latents[0])
    times = latents[0] // config.patch_size_t
    return get_3d_rotary_pos_embed(config.attention_head_dim, None, grid, times, grid_type="slice", max_size=base)


@pytest.fixture(params=FLAVOURS.values(), ids=FLAVOURS)
def pair(request: pytest.FixtureRequest) -> tuple[CogVideoXTransformer3DModel, Denoiser, tuple[int, int, int]]:
    theirs = shaken(CogVideoXTransformer3DModel(**COMMON, **request.param.settings), seed=3)
    ours = Denoiser(config_of(theirs.config))
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours, request.param.latents


def test_output_and_gradients_are_those_of_diffusers(
    pair: tuple[CogVideoXTransformer3DModel, Denoiser, tuple[int, int, int]],
) -> None:
    theirs, ours, latents = pair
    generator = torch.Generator().manual_seed(0)
    frames, height, width = latents
    x = torch.randn(2, frames, theirs.config.in_channels, height, width, generator=generator)
    text = torch.randn(2, 6, 20, generator=generator)
    weight = torch.randn(2, frames, 4, height, width, generator=generator)
    timestep = torch.tensor([999, 19])
    split = ours.config.latent_channels
    leaves = []

    def ready(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        leaves.append(tuple(tensor.clone().requires_grad_() for tensor in tensors))
        return leaves[-1]

    their_x, their_text = ready(x, text)
    expected = theirs(
        their_x,
        their_text,
        timestep,
        ofs=torch.full((1,), 2.0) if theirs.config.ofs_embed_dim else None,
        image_rotary_emb=rotary_as_its_pipeline_does(theirs, latents),
        return_dict=False,
    )[0]
    our_x, our_text = ready(x, text)
    motion = our_x[:, :, split:] if ours.config.condition_channels else None
    found = ours(our_x[:, :, :split], timestep, our_text, motion_BFCHW=motion)
    assert expected.std() > 0.3  # the comparison is of numbers of this size
    assert (found - expected).abs().max() <= 1e-5

    (expected * weight).sum().backward()
    (found * weight).sum().backward()
    their_gradients = {name: value.grad for name, value in theirs.named_parameters()}
    for name, value in ours.named_parameters():
        theirs_grad = their_gradients.pop(name)
        assert theirs_grad.abs().max() > 0, name
        assert (value.grad - theirs_grad).abs().max() <= 1e-5 * max(1.0, float(theirs_grad.abs().max())), name
    assert not their_gradients
    for our_leaf, their_leaf in zip(leaves[1], leaves[0], strict=True):
        assert (our_leaf.grad - their_leaf.grad).abs().max() <= 1e-5 * max(1.0, float(their_leaf.grad.abs().max()))


def test_a_fresh_position_embedding_is_the_one_diffusers_starts_from() -> None:
    theirs = CogVideoXTransformer3DModel(
        **COMMON, sample_height=8, sample_width=12, sample_frames=9, use_learned_positional_embeddings=True
    )
    ours = Denoiser(config_of(theirs.config))
    assert theirs.patch_embed.pos_embedding.abs().max() == 1
    difference = ours.patch_embed.pos_embedding - theirs.patch_embed.pos_embedding
    assert difference.abs().max() < 1e-6
    direct = get_3d_sincos_pos_embed(64, (6, 4), 3, 1.875).flatten(0, 1)
    assert (sincos_positions(ours.config) - direct).abs().max() < 1e-6
