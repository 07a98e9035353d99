"""The whole network: denoiser and reference network, as one module to train, to load and to sample from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from model.attention import Keys
from model.config import ModelConfig
from model.reference import ReferenceNetwork
from model.transformer import Denoiser


class Portrait(nn.Module):
    """A talking portrait's denoiser and, where identity has one, its reference network."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.denoiser = Denoiser(config)
        self.reference = ReferenceNetwork(config) if config.has_reference else None

    def forward(
        self,
        noisy_BFCHW: torch.Tensor,
        timestep_B: torch.Tensor,
        text_BSD: torch.Tensor,
        *,
        reference_BCHW: torch.Tensor | None = None,
        reference_text_BSD: torch.Tensor | None = None,
        reference_keys: Sequence[Keys] | None = None,
        motion_BFCHW: torch.Tensor | None = None,
        face_BC: torch.Tensor | None = None,
        audio_BTWNC: torch.Tensor | None = None,
        text_mask_BS: torch.Tensor | None = None,
        frame_mask_BF: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The predicted v, [B, F, C, h, w]; the arguments are the denoiser's.

        reference_BCHW: latent of the reference frame; in sampling give `reference_keys`, made once by `look`, instead.
        reference_text_BSD: the reference network's own text (None: the same).
        """
        reference: Sequence[Keys | torch.Tensor] | None = reference_keys
        if self.reference is not None and reference_BCHW is not None:
            same = reference_text_BSD is None
            reference = self.reference(
                reference_BCHW, text_BSD if same else reference_text_BSD, text_mask_BS if same else None
            )
        return self.denoiser(
            noisy_BFCHW,
            timestep_B,
            text_BSD,
            motion_BFCHW=motion_BFCHW,
            reference=reference,
            face_BC=face_BC,
            audio_BTWNC=audio_BTWNC,
            text_mask_BS=text_mask_BS,
            frame_mask_BF=frame_mask_BF,
        )

    @torch.no_grad()
    def look(
        self, reference_BCHW: torch.Tensor, text_BSD: torch.Tensor, text_mask_BS: torch.Tensor | None = None
    ) -> list[Keys] | None:
        """Keys and values of a reference, for every step of sampling; None where there is no reference network."""
        if self.reference is None:
            return None
        return self.denoiser.reference_keys(self.reference(reference_BCHW, text_BSD, text_mask_BS))

    def idle_parameters(self) -> list[str]:
        """Names of parameters that the output does not depend on: the reference network's end."""
        return [] if self.reference is None else [f"reference.{name}" for name in self.reference.idle_parameters()]


def build(config: ModelConfig, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Portrait:
    """A fresh network; on device "meta" it takes no memory and waits for `checkpoint.load`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return Portrait(config)
    finally:
        torch.set_default_dtype(before)
