"""Motion frames: the last frames of the clip before, as the latents that the next clip goes on from.

Ours (and the paper's): each of the n last frames is encoded alone, the n latents stand in the first n latent frames of
the condition, and zeros follow. The released code makes one latent of three frames; `joint` is that. Either is scaled
as the codec's conditions are (`condition_scale`): latents as they are for CogVideoX-5b and Hallo3, divided by the
VAE's scale twice for CogVideoX 1.5, whose pictures in the condition's place were divided by it in training.

N frames of pixels, F latent frames, C channels, H×W pixels, h×w latent positions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from model.codecs import each_alone

if TYPE_CHECKING:
    from model.codecs import Codec

RELEASED_MASK = 0.1
"""Share of the motion frames' pixels that the released code greys, in training and in sampling."""


def encode(codec: Codec, frames_NCHW: torch.Tensor) -> torch.Tensor:
    """Latents of motion frames, each encoded alone, in order, scaled as conditions are.

    frames_NCHW: float RGB in -1..1. Returns [N, c, h, w]. A frame alone is a clip's first frame to a causal codec, so
    it becomes one latent that knows nothing of its neighbours.
    """
    return each_alone(codec, frames_NCHW) * codec.condition_scale


def joint(codec: Codec, reference_CHW: torch.Tensor, frames_NCHW: torch.Tensor) -> torch.Tensor:
    """The released code's motion latent: the reference picture and the motion frames, encoded as one clip.

    reference_CHW, frames_NCHW: float RGB in -1..1; for a first clip the frames are the reference, repeated. With two
    motion frames the CogVideoX VAE makes one latent of the three. Returns [n, c, h, w], scaled as conditions are.
    """
    return codec.encode(torch.cat([reference_CHW[None], frames_NCHW])) * codec.condition_scale


def condition(motion_NCHW: torch.Tensor, latent_frames: int) -> torch.Tensor:
    """The condition that is joined to the noisy latent's channels: the motion latents, then zeros (paper, Sec. 3.3).

    motion_NCHW: [n, C, h, w] or [B, n, C, h, w]. Returns [F, C, h, w] or [B, F, C, h, w].
    Raises ValueError when there are more motion latents than latent frames.
    """
    *batch, n, channels, height, width = motion_NCHW.shape
    if n > latent_frames:
        raise ValueError(f"{n} motion latents do not fit into {latent_frames} latent frames")
    rest = motion_NCHW.new_zeros(*batch, latent_frames - n, channels, height, width)
    return torch.cat([motion_NCHW, rest], dim=-4)


def masked(frames_NCHW: torch.Tensor, share: float, generator: torch.Generator, alike: bool = False) -> torch.Tensor:
    """Motion with a share of its positions put out, so that training does not lean on it.

    frames_NCHW: latents [n, C, h, w] (the paper masks 0.25 of them) or pixels in -1..1 (the released code masks
    RELEASED_MASK of those, where 0 is mid-grey). Each position of each frame is drawn for itself, and all its channels
    go together; alike: the same positions in all frames, as in the released code.
    """
    n, _, height, width = frames_NCHW.shape
    drawn = (1 if alike else n, 1, height, width)
    draw_N1HW = torch.rand(drawn, generator=generator, device=generator.device)
    return frames_NCHW * (draw_N1HW >= share).to(frames_NCHW)


def last(frames_NCHW: torch.Tensor, n: int) -> torch.Tensor:
    """The n last frames of a clip; a clip shorter than that repeats its first frame in front."""
    missing = max(0, n - frames_NCHW.shape[0])
    return torch.cat([frames_NCHW[:1].expand(missing, -1, -1, -1), frames_NCHW])[-n:]
