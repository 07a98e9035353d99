"""Adapters of low rank (LoRA, arXiv 2106.09685): linear layers stay as they are, a small correction beside each learns.

An adapted layer computes W·x + b + (alpha / rank) · up·(down·x). Its weight and bias keep their names, so checkpoints
load as ever; `merged` adds the correction to the weights, and the network is a plain one again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from torch import nn

from model.settings import SettingsError, option

DOWN, UP = "lora_down", "lora_up"


@dataclass(frozen=True)
class LoraConfig:
    """Section `lora`: rank 0 is none."""

    rank: int = option(0, "rank of the adapters; 0: none, the weights themselves are trained")
    alpha: float = option(16.0, "how much they count: their output is multiplied by alpha / rank")
    patterns: list[str] = option(["*"], "names of linear layers to adapt, among those that the stage trains")

    def check(self) -> None:
        """Raises SettingsError where a value makes no sense."""
        if self.rank < 0:
            raise SettingsError(f"lora.rank={self.rank}: at least 0 (0: no adapters)")
        if self.rank and self.alpha <= 0:
            raise SettingsError(f"lora.alpha={self.alpha}: more than 0")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class Adapted(nn.Linear):
    """A linear layer with an adapter, which starts as nothing: `up` is zero."""

    def __init__(self, base: nn.Linear, rank: int, scale: float) -> None:
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        device = base.weight.device
        self.scale = scale
        self.lora_down = nn.Parameter(torch.empty(rank, base.in_features, device=device))
        self.lora_up = nn.Parameter(torch.empty(base.out_features, rank, device=device))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        correction = F.linear(F.linear(input, self.lora_down), self.lora_up)
        return torch.add(super().forward(input), correction, alpha=self.scale)


def adapt(portrait: nn.Module, config: LoraConfig, trained: Collection[str]) -> list[str]:
    """Give adapters to the linear layers whose weight is among `trained` and whose name a pattern matches.

    Returns the adapters' parameters, which are what is trained then. Raises SettingsError for a pattern that matches no
    such layer.
    """
    linear = {
        name: module
        for name, module in portrait.named_modules()
        if isinstance(module, nn.Linear) and f"{name}.weight" in trained
    }
    for pattern in config.patterns:
        if not any(fnmatchcase(name, pattern) for name in linear):
            raise SettingsError(f"lora.patterns: {pattern!r} matches no linear layer that the stage trains")
    names = []
    for name, module in linear.items():
        if any(fnmatchcase(name, pattern) for pattern in config.patterns):
            parent, _, leaf = name.rpartition(".")
            setattr(portrait.get_submodule(parent), leaf, Adapted(module, config.rank, config.scale))
            names += [f"{name}.{DOWN}", f"{name}.{UP}"]
    return names


def start(leaf: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """A fresh adapter's parameter: `down` as a linear layer starts, `up` zero."""
    if leaf == UP:
        return torch.zeros(shape)
    bound = shape[1] ** -0.5
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def merged(tensors: Mapping[str, torch.Tensor], scale: float) -> dict[str, torch.Tensor]:
    """A network's tensors with the adapters' corrections added to the weights, and without adapters.

    Sums are float32. An adapter that has learnt nothing leaves its weight as it is, to the bit.
    """
    plain = {name: tensor for name, tensor in tensors.items() if not name.endswith((f".{DOWN}", f".{UP}"))}
    for name, up in tensors.items():
        if not name.endswith(f".{UP}") or not up.any():
            continue
        layer = name.removesuffix(f".{UP}")
        correction = up.float() @ tensors[f"{layer}.{DOWN}"].float()
        plain[f"{layer}.weight"] = plain[f"{layer}.weight"].float() + scale * correction
    return plain


def scale_of(portrait: nn.Module) -> float | None:
    """What the adapters of a network are multiplied by; None: it has none."""
    return next((module.scale for module in portrait.modules() if isinstance(module, Adapted)), None)
