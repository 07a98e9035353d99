"""Pixels to latents and back: `load("dct")` needs no weights, `load("cogvideox")` is CogVideoX's 3D VAE.

Either makes 1 + k latents of 1 + 4k frames: the first frame has a latent to itself, then every four share one. Both are
causal, so latents belong to the window they were made of and cannot be cut out of a longer one's.

T: frame or latent. C: channel. H, W: pixel or latent row and column.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from model.pretrained import PretrainedError

GROUP = 4
"""Frames to a latent, after the first."""
SPATIAL = 8
"""Pixels to a latent's side, in every codec."""
NAMES = ("dct", "cogvideox")


class CodecError(Exception):
    """A codec that cannot be had: which, why, and what to do."""


class Codec(Protocol):
    """Encodes and decodes windows of frames.

    channels: of a latent. spatial: pixels to a latent's side; height and width must be multiples of it.
    condition_scale: what latents are multiplied by to be a condition of the denoiser: motion, or a first picture.
    """

    name: str
    channels: int
    spatial: int
    condition_scale: float

    def encode(self, frames_TCHW: torch.Tensor) -> torch.Tensor:
        """Latents of a window: float32 [1 + k, channels, H / spatial, W / spatial], about unit variance.

        frames_TCHW: [1 + 4k, 3, H, W] RGB, -1 to 1, in any float type; further dimensions may stand in front.
        Raises ValueError for other counts and sizes.
        """
        ...

    def decode(self, latents_TCHW: torch.Tensor) -> torch.Tensor:
        """Frames of latents: float32 [1 + 4k, 3, H, W] RGB, about -1 to 1, not clamped.

        latents_TCHW: [1 + k, channels, h, w], as `encode` gives them; further dimensions may stand in front.
        """
        ...


def latents_for(frames: int) -> int:
    """How many latents so many frames make: 1 + k for 1 + 4k. Raises ValueError for other counts."""
    if frames < 1:
        raise ValueError(f"{frames} frames: at least one is needed to make a latent")
    if (frames - 1) % GROUP:
        below = frames - (frames - 1) % GROUP
        raise ValueError(f"{frames} frames: 1 + 4k are needed; the nearest counts are {below} and {below + GROUP}")
    return 1 + (frames - 1) // GROUP


def frames_for(latents: int) -> int:
    """How many frames so many latents stand for: 1 + 4k for 1 + k. Raises ValueError for fewer than one."""
    if latents < 1:
        raise ValueError(f"{latents} latents: at least one is needed to make a frame")
    return 1 + (latents - 1) * GROUP


def load(
    name: str,
    source: str = "",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    tiling: bool = False,
    whole: bool = False,
) -> Codec:
    """A codec by name, ready to use.

    source, dtype, tiling and whole are CogVideoX's (see `model.codecs.cogvideox`); `dct` has no weights and computes
    in float32. Raises CodecError, which says what to do.
    """
    if name == "dct":
        from model.codecs.dct import Dct

        if source:
            raise CodecError(f"the dct codec has no weights to take from {source!r}: leave its source empty")
        return Dct(device)
    if name == "cogvideox":
        from model.codecs.cogvideox import CogVideoX

        try:
            return CogVideoX.load(source, device, dtype, tiling, whole)
        except PretrainedError as error:
            raise CodecError(str(error)) from error
    raise CodecError(f"no codec is called {name!r}; there is {' and '.join(NAMES)}")


def check(frames_TCHW: torch.Tensor, spatial: int) -> None:
    """Refuse frames that no codec takes. Raises ValueError."""
    if frames_TCHW.ndim < 4 or frames_TCHW.shape[-3] != 3:
        raise ValueError(f"frames of shape {tuple(frames_TCHW.shape)}: [..., T, 3, H, W] is needed")
    if not frames_TCHW.is_floating_point():
        raise ValueError(f"frames of type {frames_TCHW.dtype}: floats from -1 to 1 are needed")
    height, width = frames_TCHW.shape[-2:]
    if height % spatial or width % spatial:
        raise ValueError(f"frames of {width}x{height} pixels: both must be multiples of {spatial}")


def signed(frames: Sequence[np.ndarray] | np.ndarray) -> torch.Tensor:
    """Pictures as a codec takes them: uint8 [H, W, 3] each -> float32 [T, 3, H, W], -1..1."""
    height, width = frames[0].shape[:2]
    signed_TCHW = torch.empty((len(frames), 3, height, width), dtype=torch.float32)
    for signed_CHW, image_HWC in zip(signed_TCHW, frames, strict=True):  # twice as fast as all of them at once
        signed_CHW.copy_(torch.from_numpy(np.ascontiguousarray(image_HWC)).permute(2, 0, 1))
    return signed_TCHW.div_(127.5).sub_(1)


def shown(frames_TCHW: torch.Tensor) -> np.ndarray:
    """Decoded frames as pictures: float [T, 3, H, W] -> uint8 [T, H, W, 3]."""
    levels = ((frames_TCHW.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return levels.permute(0, 2, 3, 1).cpu().numpy()


def each_alone(codec: Codec, frames_NCHW: torch.Tensor) -> torch.Tensor:
    """Latents of single pictures, [N, channels, h, w]: each encoded alone, as a window of one frame."""
    return torch.cat([codec.encode(frame_CHW[None]) for frame_CHW in frames_NCHW])
