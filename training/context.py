"""Context parallelism: ranks that share a sample split its picture tokens, and in self-attention its heads.

Each rank has some patches of every latent frame, so that all that goes frame by frame stays as it is. Around
self-attention tokens are traded for heads and back (DeepSpeed-Ulysses, arXiv 2309.14509): each rank sees all tokens in
its share of the heads. Text and reference are on all ranks. Gradients of the ranks add up to those of one.

B batch, H heads, S text tokens, F latent frames of P patches, N ranks with p patches of a frame each, E head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed._functional_collectives import all_to_all_single_autograd

from model.attention import Rotary
from model.portrait import Portrait
from model.settings import SettingsError
from model.transformer import Conditions


@dataclass
class Context:
    """The ranks of one sample, and how the picture at hand is split; set anew by every pass."""

    group: dist.ProcessGroup
    ranks: int
    rank: int
    frames: int = 0
    patches: int = 0  # of a latent frame

    @property
    def share(self) -> int:
        """Patches of a frame that a rank has; the last ones may be nothing but padding."""
        return -(-self.patches // self.ranks)

    def own(self, tokens: torch.Tensor, dim: int) -> torch.Tensor:
        """This rank's tokens of a whole picture's, which lie along `dim`."""
        by_frame = tokens.movedim(dim, 0).unflatten(0, (self.frames, self.patches))
        padded = _padded(by_frame, self.ranks * self.share)
        return padded.unflatten(1, (self.ranks, self.share))[:, self.rank].flatten(0, 1).movedim(0, dim)

    def whole(self, tokens_NXFpY: torch.Tensor) -> torch.Tensor:
        """All ranks' tokens [N, X, F·p, Y] as the whole picture's [X, F·P, Y]."""
        by_frame = tokens_NXFpY.unflatten(2, (self.frames, self.share)).permute(1, 2, 0, 3, 4)
        return by_frame.flatten(2, 3)[:, :, : self.patches].flatten(1, 2)

    def parted(self, tokens_XLY: torch.Tensor) -> torch.Tensor:
        """The reverse of `whole`: [X, F·P, Y] as [N, X, F·p, Y]."""
        by_frame = tokens_XLY.unflatten(1, (self.frames, self.patches)).movedim(0, 2)  # [F, P, X, Y]
        padded = _padded(by_frame, self.ranks * self.share).unflatten(1, (self.ranks, self.share))
        return padded.permute(1, 3, 0, 2, 4).flatten(2, 3)

    def traded(self, parts: torch.Tensor) -> torch.Tensor:
        """[N, …]: part i goes to rank i; what comes back is in the order of those that sent it."""
        return all_to_all_single_autograd(parts.contiguous(), None, None, self.group)


def split(portrait: Portrait, group: dist.ProcessGroup) -> None:
    """Let the denoiser split its picture over the ranks of `group`. Raises SettingsError where heads do not divide."""
    context = Context(group, dist.get_world_size(group), dist.get_rank(group))
    denoiser = portrait.denoiser
    if denoiser.config.heads % context.ranks:
        raise SettingsError(
            f"parallel.context={context.ranks} does not divide the network's heads ({denoiser.config.heads})"
        )
    embed, conditions, project = denoiser.patch_embed.forward, denoiser._conditions, denoiser.proj_out.forward

    def embedded(text_BSD: torch.Tensor, latents_BFCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        text_BSD, picture_BLD = embed(text_BSD, latents_BFCHW)
        context.frames = latents_BFCHW.shape[1] // denoiser.config.patch_frames
        context.patches = picture_BLD.shape[1] // context.frames
        return text_BSD, context.own(picture_BLD, 1)

    def projected(picture_BND: torch.Tensor) -> torch.Tensor:
        return _Gathered.apply(project(picture_BND), context)

    denoiser.patch_embed.forward = embedded  # type: ignore[method-assign]
    denoiser.proj_out.forward = projected  # type: ignore[method-assign, assignment]
    denoiser._conditions = _owned(conditions, context)  # type: ignore[method-assign]
    for block in denoiser.transformer_blocks:
        block.attn1.attend = _Exchange(context)  # type: ignore[union-attr]


@dataclass(frozen=True)
class _Exchange:
    """Attention over all tokens in this rank's heads, in place of `JointAttention.attend`."""

    context: Context

    def __call__(
        self,
        queries_BHNE: torch.Tensor,
        keys_BHME: torch.Tensor,
        values_BHME: torch.Tensor,
        mask_BM: torch.Tensor | None,
        text: int,
    ) -> torch.Tensor:
        context = self.context
        batch, heads, tokens, _ = queries_BHNE.shape
        here = slice(context.rank * heads // context.ranks, (context.rank + 1) * heads // context.ranks)
        three = [one[:, :, text:tokens] for one in (queries_BHNE, keys_BHME, values_BHME)]
        sent = torch.stack(three).unflatten(2, (context.ranks, -1)).movedim(2, 0)  # [N, 3, B, H/N, F·p, E]
        whole = context.whole(context.traded(sent).flatten(1, 3)).unflatten(0, (3, batch, -1))
        queries, keys, values = (
            torch.cat([one[:, here, :text], picture, one[:, here, tokens:]], dim=2)
            for one, picture in zip((queries_BHNE, keys_BHME, values_BHME), whole, strict=True)
        )
        mask = None if mask_BM is None else self._mask(mask_BM, text, tokens)
        found = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        picture = context.parted(found[:, :, text:].flatten(0, 1)).unflatten(1, (batch, -1))
        words = found[:, :, :text].expand(context.ranks, -1, -1, -1, -1)
        back = context.traded(torch.cat([words, picture], dim=3))  # [N, B, H/N, S + F·p, E]
        return back.movedim(0, 1).flatten(1, 2)

    def _mask(self, mask_BM: torch.Tensor, text: int, tokens: int) -> torch.Tensor:
        """The mask of all tokens."""
        real_BF = mask_BM[:, text:tokens].unflatten(1, (self.context.frames, -1))[:, :, 0]
        picture_BL = real_BF.repeat_interleave(self.context.patches, 1)
        return torch.cat([mask_BM[:, :text], picture_BL, mask_BM[:, tokens:]], dim=1)[:, None, None]


def _owned(conditions: Callable[..., Conditions], context: Context) -> Callable[..., Conditions]:
    """What blocks are given, for this rank's tokens."""

    def table(rotary: Rotary) -> Rotary:
        text = len(rotary[0]) - context.frames * context.patches
        cosines, sines = (torch.cat([one[:text], context.own(one[text:], 0)]) for one in rotary)
        return cosines, sines

    def owned(*given: Any) -> Conditions:
        whole = conditions(*given)
        mask_BN = whole.mask_BN
        if mask_BN is not None:  # a frame's patches are all real or all not
            text = mask_BN.shape[1] - context.frames * context.patches
            real_BF = mask_BN[:, text :: context.patches]
            mask_BN = torch.cat([mask_BN[:, :text], real_BF.repeat_interleave(context.share, 1)], dim=1)
        cross = None if whole.cross_rotary is None else table(whole.cross_rotary)
        return whole._replace(rotary=table(whole.rotary), cross_rotary=cross, mask_BN=mask_BN)

    return owned


class _Gathered(torch.autograd.Function):
    """All ranks' tokens [B, F·p, O] as the whole picture's [B, F·P, O], on every rank.

    Every rank computes the same loss of it, so each passes back the gradient of its own tokens alone.
    """

    @staticmethod
    def forward(ctx: Any, own_BNO: torch.Tensor, context: Context) -> torch.Tensor:
        ctx.context = context
        parts = [torch.empty_like(own_BNO) for _ in range(context.ranks)]
        dist.all_gather(parts, own_BNO.contiguous(), group=context.group)
        return context.whole(torch.stack(parts))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.context.own(gradients[0], 1), None


def _padded(by_frame: torch.Tensor, count: int) -> torch.Tensor:
    """[F, P, …] with zeros (False) up to `count` patches of a frame."""
    missing = count - by_frame.shape[1]
    return F.pad(by_frame, (0, 0) * (by_frame.ndim - 2) + (0, missing)) if missing else by_frame
