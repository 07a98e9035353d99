"""A codec without weights: 4 x 8 x 8 blocks of YCbCr, of whose cosine transform 16 numbers are kept.

The latents have the shape of CogVideoX's 3D VAE, [1 + k, 16, H / 8, W / 8], so the whole of training and inference
runs, and can be looked at, on any machine. What is kept is what most of the energy of talking heads is in, found once
by `model/codecs/fit_dct.py` and written down below; each number is divided by its standard deviation there.

The first frame stands alone, as 8 x 8 blocks. A channel that means brightness along x there means the same in the
other latents; the channels that hold motion in those hold finer detail in the first.

T: frame or latent. C: colour. t, y, x: place, or frequency, within a block. L: channel of a latent. H, W: row, column.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from model.codecs import GROUP, check, frames_for, latents_for

SIDE = 8
PLANES = ("Y", "Cb", "Cr")


@dataclass(frozen=True)
class Coefficient:
    """One number of a block's transform: its plane, its frequencies in half waves a block, its spread in heads."""

    plane: str
    t: int
    y: int
    x: int
    std: float


# Written by model/codecs/fit_dct.py, of two windows of each of twelve films, most energy first.
FIRST = (
    Coefficient("Y", 0, 0, 0, 3.797),
    Coefficient("Cb", 0, 0, 0, 1.3749),
    Coefficient("Cr", 0, 0, 0, 1.2784),
    Coefficient("Y", 0, 0, 1, 0.3984),
    Coefficient("Y", 0, 1, 0, 0.3851),
    Coefficient("Y", 0, 2, 1, 0.0958),
    Coefficient("Y", 0, 0, 2, 0.1761),
    Coefficient("Y", 0, 1, 1, 0.1619),
    Coefficient("Y", 0, 2, 0, 0.156),
    Coefficient("Y", 0, 3, 0, 0.0906),
    Coefficient("Cr", 0, 0, 1, 0.0934),
    Coefficient("Cb", 0, 1, 0, 0.0806),
    Coefficient("Cr", 0, 1, 0, 0.092),
    Coefficient("Y", 0, 0, 3, 0.1077),
    Coefficient("Y", 0, 1, 2, 0.1032),
    Coefficient("Cb", 0, 0, 1, 0.0851),
)
LATER = (
    Coefficient("Y", 0, 0, 0, 7.566),
    Coefficient("Cb", 0, 0, 0, 2.7475),
    Coefficient("Cr", 0, 0, 0, 2.5507),
    Coefficient("Y", 0, 0, 1, 0.7522),
    Coefficient("Y", 0, 1, 0, 0.7286),
    Coefficient("Y", 1, 0, 0, 0.5536),
    Coefficient("Y", 0, 0, 2, 0.31),
    Coefficient("Y", 0, 1, 1, 0.2875),
    Coefficient("Y", 0, 2, 0, 0.2842),
    Coefficient("Y", 2, 0, 0, 0.2657),
    Coefficient("Y", 1, 0, 1, 0.2102),
    Coefficient("Y", 1, 1, 0, 0.192),
    Coefficient("Y", 3, 0, 0, 0.1916),
    Coefficient("Y", 0, 0, 3, 0.1811),
    Coefficient("Y", 0, 1, 2, 0.1726),
    Coefficient("Cb", 0, 0, 1, 0.1646),
)


class Dct:
    """Encodes and decodes windows; linear, and exact in what it keeps: encoding what was decoded gives it back."""

    name = "dct"
    spatial = SIDE
    condition_scale = 1.0

    def __init__(
        self,
        device: str | torch.device = "cpu",
        first: Sequence[Coefficient] = FIRST,
        later: Sequence[Coefficient] = LATER,
    ) -> None:
        if len(first) != len(later):
            raise ValueError(f"{len(first)} numbers of a first frame's block, {len(later)} of others: as many, please")
        self.channels = len(first)
        self.first = Basis(first, 1, device)
        self.later = Basis(later, GROUP, device)

    def encode(self, frames_TCHW: torch.Tensor) -> torch.Tensor:
        """Latents of a window: float32 [1 + k, 16, H / 8, W / 8].

        frames_TCHW: [1 + 4k, 3, H, W] RGB, -1 to 1; further dimensions may stand in front.
        """
        check(frames_TCHW, SIDE)
        latents_for(frames_TCHW.shape[-4])
        x = frames_TCHW.to(self.first.analysis.device, torch.float32)
        lead, window = x.shape[:-4], x.flatten(0, -5) if x.ndim > 4 else x[None]
        latents = torch.cat([self.first.analyse(window[:, :1]), self.later.analyse(window[:, 1:])], dim=1)
        return latents.reshape(*lead, *latents.shape[1:])

    def decode(self, latents_TCHW: torch.Tensor) -> torch.Tensor:
        """Frames of latents: float32 [1 + 4k, 3, H, W] RGB, about -1 to 1, not clamped.

        latents_TCHW: [1 + k, 16, h, w]; further dimensions may stand in front.
        """
        if latents_TCHW.ndim < 4 or latents_TCHW.shape[-3] != self.channels:
            raise ValueError(f"latents of shape {tuple(latents_TCHW.shape)}: [..., T, {self.channels}, h, w] is needed")
        frames_for(latents_TCHW.shape[-4])
        z = latents_TCHW.to(self.first.analysis.device, torch.float32)
        lead, window = z.shape[:-4], z.flatten(0, -5) if z.ndim > 4 else z[None]
        frames = torch.cat([self.first.synthesise(window[:, :1]), self.later.synthesise(window[:, 1:])], dim=1)
        return frames.reshape(*lead, *frames.shape[1:])


class Basis:
    """Some numbers of a block's transform.

    analysis: float32 [L, t C y x], what makes them of a block of RGB. synthesis: [L, t C y x], what each adds to one.
    """

    def __init__(self, kept: Sequence[Coefficient], length: int, device: str | torch.device = "cpu") -> None:
        self.length = length
        in_time, in_space, colours = cosines(length), cosines(SIDE), ycbcr()
        mixing = torch.linalg.inv(colours)
        analysis, synthesis = [], []
        for c in kept:
            plane, waves = PLANES.index(c.plane), (in_space[c.y], in_space[c.x])
            analysis.append(torch.einsum("t,c,y,x->tcyx", in_time[c.t], colours[plane], *waves) / c.std)
            synthesis.append(torch.einsum("t,c,y,x->tcyx", in_time[c.t], mixing[:, plane], *waves) * c.std)
        self.analysis = torch.stack(analysis).flatten(1).to(device, torch.float32)
        self.synthesis = torch.stack(synthesis).flatten(1).to(device, torch.float32)

    def analyse(self, frames_BTCHW: torch.Tensor) -> torch.Tensor:
        """[B, k t, 3, H, W] -> [B, k, L, H / 8, W / 8]."""
        # A convolution would be the same and a little faster on a CPU, but a GPU would compute it in TF32.
        return (blocks(frames_BTCHW, self.length) @ self.analysis.T).movedim(-1, 2).contiguous()

    def synthesise(self, latents_BTCHW: torch.Tensor) -> torch.Tensor:
        """[B, k, L, h, w] -> [B, k t, 3, 8 h, 8 w]."""
        return joined(latents_BTCHW.movedim(2, -1) @ self.synthesis, self.length)


def blocks(frames_BTCHW: torch.Tensor, length: int) -> torch.Tensor:
    """Frames cut into blocks: [B, k t, 3, 8 h, 8 w] -> [B, k, h, w, t 3 y x]."""
    cut_BkTCHW = frames_BTCHW.unflatten(1, (frames_BTCHW.shape[1] // length, length))
    cut_BktChywx = cut_BkTCHW.unflatten(-2, (-1, SIDE)).unflatten(-1, (-1, SIDE))
    return cut_BktChywx.permute(0, 1, 4, 6, 2, 3, 5, 7).flatten(4)


def joined(blocks_BkhwN: torch.Tensor, length: int) -> torch.Tensor:
    """The inverse of `blocks`."""
    cut_BkhwtCyx = blocks_BkhwN.unflatten(-1, (length, 3, SIDE, SIDE))
    return cut_BkhwtCyx.permute(0, 1, 4, 5, 2, 6, 3, 7).flatten(6).flatten(4, 5).flatten(1, 2)


def cosines(count: int) -> torch.Tensor:
    """The orthonormal DCT-II: float64 [frequency, place]."""
    place, frequency = torch.arange(count, dtype=torch.float64), torch.arange(count, dtype=torch.float64)[:, None]
    waves = torch.cos(math.pi * (place + 0.5) * frequency / count) * math.sqrt(2 / count)
    waves[0] /= math.sqrt(2)
    return waves


def ycbcr() -> torch.Tensor:
    """What makes Y, Cb and Cr of R, G and B (ITU-R BT.601): float64 [plane, colour]; grey has no chroma, all are ±1."""
    luma = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    red, _, blue = torch.eye(3, dtype=torch.float64)
    return torch.stack([luma, (blue - luma) / (2 - 2 * luma[2]), (red - luma) / (2 - 2 * luma[0])])
