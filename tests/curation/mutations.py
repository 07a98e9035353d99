"""Files broken in the ways that files break, by seed."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path

KINDS = ("truncated", "flipped", "zeroed", "renamed", "empty", "folder", "pipe", "dangling", "spliced", "inserted")


def mutate(originals: Sequence[Path], folder: Path, seed: int) -> Path:
    """One broken version of one of the files, in the folder; what was done to it is in its name."""
    dice = random.Random(seed)
    original, kind = dice.choice(originals), dice.choice(KINDS)
    data = bytearray(original.read_bytes())
    ending = original.suffix
    if kind == "truncated":
        data = data[: dice.randrange(len(data))]
    elif kind == "flipped":
        for _ in range(dice.choice([1, 10, 100, 1000])):
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    elif kind == "zeroed":
        start = dice.randrange(len(data))
        length = dice.randrange(1, 1 + len(data) // 4)
        data[start : start + length] = bytes(len(data[start : start + length]))
    elif kind == "renamed":
        ending = dice.choice([".avi", ".mkv", ".ts", ".flv", ".mp4", ".webm"])
    elif kind == "empty":
        data = bytearray()
    elif kind == "spliced":
        other = dice.choice(originals).read_bytes()
        data = data[: dice.randrange(len(data))] + other[dice.randrange(len(other)) :]
    elif kind == "inserted":
        start = dice.randrange(len(data))
        data[start:start] = dice.randbytes(dice.randrange(1, 5000))
    target = folder / f"{seed:04}-{kind}-{original.stem}{ending}"
    if kind == "folder":
        target.mkdir()
    elif kind == "pipe":
        os.mkfifo(target)
    elif kind == "dangling":
        target.symlink_to(folder / "nowhere")
    else:
        target.write_bytes(data)
    return target
