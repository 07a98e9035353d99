"""The identity reference network: what a picture of the person is to each layer of the denoiser (paper, Sec. 3.2).

It is a copy of the denoiser's CogVideoX, given one clean frame at time 0. What its layers see just before attention
(the picture's tokens after the adaptive norm) become further keys and values of the denoiser's layers. It does not
depend on the denoising step, so sampling runs it once.
"""

from __future__ import annotations

import torch

from model.attention import joint_rotary
from model.config import ModelConfig
from model.transformer import Backbone, Block, Conditions


class ReferenceBlock(Block):
    """A block that also hands out what its attention sees of the picture."""

    def forward(  # type: ignore[override]
        self,
        text_BSD: torch.Tensor,
        picture_BRD: torch.Tensor,
        time_BD: torch.Tensor,
        given: Conditions,
        last: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Text and picture after this layer (or before it, if it is the last), and what was seen [B, R, D]."""
        seen_BND, _ = self.norm1(text_BSD, picture_BRD, time_BD)
        seen_BRD = seen_BND[:, text_BSD.shape[1] :]
        if not last:
            text_BSD, picture_BRD = super().forward(text_BSD, picture_BRD, time_BD, given)
        return text_BSD, picture_BRD, seen_BRD


class ReferenceNetwork(Backbone):
    """Features of a reference frame, layer by layer.

    The last block's attention and feed-forward, and the way out, are part of the checkpoint but of no use: they get no
    gradient (`idle_parameters`).
    """

    block = ReferenceBlock

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.backbone())

    def forward(
        self, reference_BCHW: torch.Tensor, text_BSD: torch.Tensor, text_mask_BS: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        """What each layer sees of the reference, [B, R, D] each.

        reference_BCHW: the latent of one frame; it stands in for the noisy latent and for the condition.
        text_BSD: the caption (the released code has it in training and zeros in sampling).
        """
        latent_BFCHW = reference_BCHW[:, None].expand(-1, self.config.patch_frames, -1, -1, -1)
        latents = torch.cat([latent_BFCHW] * (2 if self.config.condition_channels else 1), dim=2)
        text_BSD, picture_BRD = self.patch_embed(text_BSD, latents)
        zero_B = torch.zeros(len(reference_BCHW), device=reference_BCHW.device)
        time_BD = self.embed_time(zero_B, reference_BCHW.dtype)
        mask_BN = None
        if text_mask_BS is not None:
            mask_BN = torch.nn.functional.pad(text_mask_BS, (0, picture_BRD.shape[1]), value=True)
        given = Conditions(joint_rotary(self.places(latents), text_BSD.shape[1]), mask_BN=mask_BN)
        features = []
        for number, block in enumerate(self.transformer_blocks, 1):
            text_BSD, picture_BRD, seen_BRD = block(
                text_BSD, picture_BRD, time_BD, given, last=number == len(self.transformer_blocks)
            )
            features.append(seen_BRD)
        return features

    def idle_parameters(self) -> list[str]:
        """Names of parameters that no feature depends on."""
        final = f"transformer_blocks.{len(self.transformer_blocks) - 1}."
        idle = (f"{final}attn1.", f"{final}norm2.", f"{final}ff.", "norm_final.", "norm_out.", "proj_out.")
        return [name for name, _ in self.named_parameters() if name.startswith(idle)]
