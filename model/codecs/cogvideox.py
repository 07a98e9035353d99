"""CogVideoX's causal 3D VAE (Yang et al. 2024, arXiv 2408.06072), as diffusers carries it.

Four frames become one latent of 16 channels at an eighth of the size, scaled as its configuration says (0.7 for
CogVideoX-5b-I2V). The source is a folder or a repository of the hub: a pipeline's with a part `vae`, or the VAE's own.

Memory: a window of 720 x 480 in float32 needs some 20 GB to decode; `dtype=torch.bfloat16` halves that, and
`tiling=True` computes in four overlapping tiles, a quarter of it, with slightly other numbers.

B: window. T: frame or latent. C: channel. H, W: row and column.
"""

from __future__ import annotations

from typing import Any

import torch

from model import pretrained
from model.codecs import CodecError, check, frames_for, latents_for

PUBLISHED = "THUDM/CogVideoX-5b-I2V"
_ENDLESS = 1 << 30  # more frames than there are


class CogVideoX:
    """Encodes and decodes windows with an AutoencoderKLCogVideoX.

    scale: what the VAE's numbers are multiplied by. condition_scale: what latents of `encode` must be multiplied by
    to serve as the picture that the denoiser starts from: 1, or 1 / scale² for models that were trained on
    conditions divided by the scale (`invert_scale_latents`, CogVideoX 1.5).
    """

    name = "cogvideox"

    def __init__(self, network: Any, whole: bool = False) -> None:
        """network: an AutoencoderKLCogVideoX, ready to use.

        whole: encode a window in one pass, as Hallo3 does; diffusers goes by eight frames, whose statistics in the
        group norms differ. Takes as much more memory as the window is longer than that.
        """
        self.network = network
        self.channels: int = network.config.latent_channels
        self.spatial = 2 ** (len(network.config.block_out_channels) - 1)
        self.scale = float(network.config.scaling_factor)
        self.condition_scale = self.scale**-2 if network.config.invert_scale_latents else 1.0
        network.enable_slicing()  # windows of a batch one after the other
        if whole:
            network.num_sample_frames_batch_size = _ENDLESS

    @classmethod
    def load(
        cls,
        source: str = "",
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        tiling: bool = False,
        whole: bool = False,
    ) -> CogVideoX:
        """The codec with the weights of a folder or a repository of the hub.

        Raises CodecError without diffusers, PretrainedError when the weights cannot be had.
        """
        try:
            from diffusers import AutoencoderKLCogVideoX
        except ImportError as error:
            raise CodecError(
                f'CogVideoX\'s VAE runs in diffusers, which cannot be imported ({error}): pip install -e ".[cogvideox]"'
            ) from error
        place = pretrained.part(pretrained.folder(source or PUBLISHED, ["vae"]), "vae")
        network = pretrained.network(AutoencoderKLCogVideoX, place, torch_dtype=dtype).to(device)
        if tiling:
            network.enable_tiling()
        return cls(network, whole)

    @torch.no_grad()
    def encode(self, frames_TCHW: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Latents of a window: float32 [1 + k, channels, H / 8, W / 8], scaled.

        frames_TCHW: [1 + 4k, 3, H, W] RGB, -1 to 1, or [B, T, 3, H, W]. Three frames are taken, too, and make one
        latent: so Hallo3 encodes a reference picture and two motion frames.
        generator: draws the latents from the posterior; without it they are the posterior's mean.
        """
        check(frames_TCHW, self.spatial)
        if frames_TCHW.shape[-4] != 3:
            latents_for(frames_TCHW.shape[-4])
        posterior = self.network.encode(self._inward(frames_TCHW)).latent_dist
        latents_BCTHW = posterior.mode() if generator is None else posterior.sample(generator)
        return self._outward(latents_BCTHW, frames_TCHW.ndim) * self.scale

    @torch.no_grad()
    def decode(self, latents_TCHW: torch.Tensor) -> torch.Tensor:
        """Frames of latents: float32 [1 + 4k, 3, H, W] RGB, about -1 to 1.

        latents_TCHW: [1 + k, channels, h, w], or [B, T, channels, h, w]. diffusers makes four frames of the first
        latent, too, where their count is even; so an even count is decoded with its last latent twice, and what that
        one adds is cut off. The decoder looks only back, but the group norms' statistics know of it.
        """
        count = latents_TCHW.shape[-4]
        frames = frames_for(count)
        latents_BCTHW = self._inward(latents_TCHW.float() / self.scale)
        if count % 2 == 0:
            latents_BCTHW = torch.cat([latents_BCTHW, latents_BCTHW[:, :, -1:]], dim=2)
        return self._outward(self.network.decode(latents_BCTHW).sample[:, :, :frames], latents_TCHW.ndim)

    def _inward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, C, H, W] or [B, T, C, H, W] as the network's [B, C, T, H, W]."""
        x_BTCHW = x if x.ndim == 5 else x[None]
        return x_BTCHW.transpose(1, 2).to(self.network.device, self.network.dtype)

    def _outward(self, x_BCTHW: torch.Tensor, ndim: int) -> torch.Tensor:
        x_BTCHW = x_BCTHW.transpose(1, 2).float()
        return x_BTCHW if ndim == 5 else x_BTCHW[0]
