"""Random draws by name: each is a function of the seed and of what it is for, never of what was drawn before.

So a step draws the same on any number of ranks and workers, and after any interruption.
"""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, *names: object) -> torch.Generator:
    """A generator of its own for these names, on the CPU.

    torch takes 32 bits of a seed, so of a million draws about a hundred share their numbers with another one.
    """
    return torch.Generator().manual_seed(int.from_bytes(_digest(seed, names)[:8], "big") >> 1)


def uniform(seed: int, *names: object) -> float:
    """A number from 0 to below 1."""
    return (int.from_bytes(_digest(seed, names)[:8], "big") >> 11) / 2.0**53


def whole(seed: int, below: int, *names: object) -> int:
    """A whole number from 0 to below `below`. Raises ValueError where there is none."""
    if below < 1:
        raise ValueError(f"there is no whole number from 0 to below {below}")
    return int.from_bytes(_digest(seed, names)[:16], "big") % below  # 128 bits: what is left over is of no weight


def _digest(seed: int, names: tuple[object, ...]) -> bytes:
    """A hash of the names as text, each with its length, so that ("ab", "c") and ("a", "bc") differ."""
    texts = [str(name).encode("utf-8", "surrogatepass") for name in (seed, *names)]
    return hashlib.sha256(b"".join(b"%d:%b" % (len(text), text) for text in texts)).digest()
