"""What is packed, in which order and into which shard: known before the first frame is decoded.

A clip's windows follow from its number of frames. Which shard a window goes to follows from hashes alone, so a clip
that fails leaves a gap and moves nothing else, and shards come out the same whatever was killed when.

The order is random in two steps. Videos are shuffled and gathered into groups of some shards; the windows of a group
are shuffled among its shards. So what has to be kept until it can be written is a group, not the dataset; and the clips
of one video are packed together, which reads it once.

W: window (a sample). S: shard.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Window:
    """A stretch of a clip that becomes one sample. first: its first frame, at 25 fps from the clip's start."""

    clip_id: str
    first: int

    @property
    def key(self) -> str:
        return f"{self.clip_id}-{self.first:06d}"


@dataclass(frozen=True)
class Chosen:
    """A clip to be packed: frames at 25 fps, as curation counted them."""

    clip_id: str
    video_id: str
    frames: int
    split: str


@dataclass(frozen=True)
class Shard:
    """One file of samples, in their order."""

    name: str
    split: str
    windows: tuple[Window, ...]


@dataclass(frozen=True)
class Group:
    """Shards that are made together, and the clips that they are made of."""

    clip_ids: tuple[str, ...]
    shards: tuple[Shard, ...]

    def homes(self) -> dict[str, dict[int, str]]:
        """clip -> first frame of each of its windows -> name of the shard that it belongs to."""
        found: dict[str, dict[int, str]] = {clip_id: {} for clip_id in self.clip_ids}
        for shard in self.shards:
            for window in shard.windows:
                found[window.clip_id][window.first] = shard.name
        return found


def window_starts(frames: int, length: int, stride: int) -> list[int]:
    """First frames of a clip's windows: one every `stride` frames, the last flush with the clip's end.

    None where the clip is shorter than a window.
    """
    if frames < length:
        return []
    starts = list(range(0, frames - length + 1, stride))
    return starts if starts[-1] == frames - length else [*starts, frames - length]


def planned(
    clips: Sequence[Chosen], length: int, stride: int, per_shard: int, shards_per_group: int, seed: int
) -> Iterator[Group]:
    """The groups, training before validation. length, stride: of windows, frames. per_shard: most samples."""
    for split in SPLITS:
        videos: dict[str, list[Chosen]] = {}
        for clip in clips:
            if clip.split == split:
                videos.setdefault(clip.video_id, []).append(clip)
        number = itertools.count()
        for group in _gathered(videos, length, stride, per_shard * shards_per_group, seed):
            windows = [
                Window(clip.clip_id, first) for clip in group for first in window_starts(clip.frames, length, stride)
            ]
            windows.sort(key=lambda window: shuffled(seed, window.key))
            count = math.ceil(len(windows) / per_shard)
            edges = [round(part * len(windows) / count) for part in range(count + 1)]
            shards = tuple(
                Shard(f"{split}-{next(number):06d}", split, tuple(windows[start:end]))
                for start, end in itertools.pairwise(edges)
            )
            yield Group(tuple(clip.clip_id for clip in group), shards)


def _gathered(
    videos: Mapping[str, Sequence[Chosen]], length: int, stride: int, most: int, seed: int
) -> Iterator[list[Chosen]]:
    """Clips, video by video in shuffled order, until a group has about as many windows as it may."""
    group: list[Chosen] = []
    windows = 0
    for video_id in sorted(videos, key=lambda name: shuffled(seed, name)):
        count = sum(len(window_starts(clip.frames, length, stride)) for clip in videos[video_id])
        if windows and windows + count > most:
            yield group
            group, windows = [], 0
        group += videos[video_id]
        windows += count
    if windows:
        yield group


def shuffled(seed: int, name: str) -> bytes:
    """A place in a random order that depends on nothing but the seed and the name."""
    return hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=16).digest()


def picked(seed: int, name: str, frames: np.ndarray, count: int) -> list[int]:
    """Some of the frames, at random, in order of time; all of them where there are no more."""
    by_chance = sorted(frames.tolist(), key=lambda frame: shuffled(seed, f"{name}\0{frame}"))
    return sorted(by_chance[:count])
