"""Which sample stands where in the endless sequence that training reads: computed, never replayed.

An epoch is every sample once. Its shards come in an order drawn for it, their samples as they lie in them, and within
blocks of so many samples (which reach from shard to shard) these are shuffled. So reading stays near one place of one
or two shards, a shard's samples come in another company each epoch, and a position far ahead costs no more than the
first.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

import torch

from training import draws

STAND_INS = 20
"""Other samples that are tried in the place of one that is broken."""


class Order:
    """The sequence. sizes: samples of each shard. block: samples that are shuffled among each other; 1: as they lie."""

    def __init__(self, sizes: Sequence[int], seed: int, block: int) -> None:
        self.sizes, self.seed, self.block = tuple(sizes), seed, block
        self._starts = list(accumulate(self.sizes, initial=0))
        self._last = self._shards(0)

    def __len__(self) -> int:
        return self._starts[-1]

    def __call__(self, position: int) -> int:
        """The number of the sample at a position, counted from 0 over all epochs."""
        epoch, place = divmod(position, len(self))
        block, within = divmod(place, self.block)
        size = min(self.block, len(self) - block * self.block)
        place = block * self.block + _shuffled(self.seed, size, epoch, block)[within]
        last = self._last
        if last[0] != epoch:
            last = self._last = self._shards(epoch)
        _, shards, ends = last
        turn = bisect_right(ends, place)
        before = ends[turn - 1] if turn else 0
        return self._starts[shards[turn]] + place - before

    def stand_ins(self, position: int) -> list[int]:
        """The samples that are tried, one after the other, where the one at a position is broken.

        They are drawn among all, so that a shard that is lost is not made up for by one sample again and again.
        """
        return [draws.whole(self.seed, len(self), "stand-in", position, turn) for turn in range(STAND_INS)]

    def _shards(self, epoch: int) -> tuple[int, list[int], list[int]]:
        """An epoch, its shards in their order, and how many samples there are up to the end of each."""
        generator = draws.generator(self.seed, "shards", epoch)
        shards = torch.randperm(len(self.sizes), generator=generator).tolist()
        return epoch, shards, list(accumulate(self.sizes[shard] for shard in shards))


@lru_cache(maxsize=16)
def _shuffled(seed: int, size: int, epoch: int, block: int) -> list[int]:
    return torch.randperm(size, generator=draws.generator(seed, "block", epoch, block)).tolist()
