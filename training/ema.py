"""The average of the trained parameters over training: smoother than the last step, and what is exported if asked for.

Kept in float32, sharded as the parameters are, at 4 bytes a trained number.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from training.shares import local, settle, trainable


def decay_at(decay: float, step: int) -> float:
    """How much of the average is kept after `step` steps: less at first, so that the random start is forgotten."""
    return min(decay, (1 + step) / (10 + step))


class Ema:
    """An exponential average of a network's trained parameters; `shadow`: this rank's share of it, by name."""

    def __init__(self, portrait: nn.Module, decay: float) -> None:
        settle(portrait)
        self.decay = decay
        self.shadow = {name: local(one).float().clone() for name, one in trainable(portrait).items()}

    def update(self, portrait: nn.Module, step: int) -> None:
        """Take in the parameters as they are after `step` steps."""
        values = [local(one).float() for one in trainable(portrait).values()]
        torch._foreach_lerp_(list(self.shadow.values()), values, 1 - decay_at(self.decay, step))

    @contextmanager
    def applied(self, portrait: nn.Module) -> Iterator[None]:
        """Within, the network's trained parameters are their average: for validation."""
        settle(portrait)
        parameters = {name: local(one) for name, one in trainable(portrait).items()}
        kept = {name: one.clone() for name, one in parameters.items()}
        self._give(portrait, parameters, self.shadow)
        try:
            yield
        finally:
            self._give(portrait, parameters, kept)

    def _give(self, portrait: nn.Module, parameters: dict[str, torch.Tensor], values: dict[str, torch.Tensor]) -> None:
        settle(portrait)
        for name, parameter in parameters.items():
            parameter.copy_(values[name])
