"""Which clips show and say the same: re-uploads and other encodings, found by fingerprints of picture and sound.

A clip has a row of picture hashes (63 bits, one a second) and a row of sound hashes (32 bits, twenty a second), as
curation/measures/fingerprint.py makes them; -1 where there is nothing to tell: a flat picture, silence. Two clips
are copies when there is one shift of time at which both rows agree over half of the shorter clip. The sound alone
does not make a copy (another camera, a dubbed picture), nor does the picture (a head that hardly moves).

Candidates come from equal sound hashes, so that the time grows with the number of clips, not with that of pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

PICTURE_SECONDS = 1.0
SOUND_SECONDS = 0.05
PICTURE_BITS, SOUND_BITS = 63, 32
COLUMNS = ("picture_hash", "sound_hash")
PICTURE_FAR, SOUND_FAR = 0.25, 0.25
"""Greatest mean share of bits that may differ. Copies of ten films: up to 0.16, 0.05; other films: from 0.34, 0.44."""
SHARED = 0.5
"""Least part of the shorter clip that two copies share."""
LEAST_SECONDS = 1.0
"""Least sound that two copies share."""
CROWD = 10
"""A sound hash proposes at most this many pairs for each clip that has it, however many have (a jingle, a hum)."""
_SHIFTS = 3  # best shifts of a pair that are verified


@dataclass(frozen=True)
class Prints:
    """The hashes of N clips, end to end; those of clip n are values[at[n]:at[n + 1]]."""

    picture: np.ndarray
    picture_at: np.ndarray
    sound: np.ndarray
    sound_at: np.ndarray

    @classmethod
    def of(cls, clips: pa.Table) -> Prints:
        """The columns `picture_hash` and `sound_hash` of a table."""
        return cls(*_flat(clips["picture_hash"]), *_flat(clips["sound_hash"]))

    def known(self) -> np.ndarray:
        """Which clips have both hashes: bool [N]."""
        return (np.diff(self.picture_at) > 0) & (np.diff(self.sound_at) > 0)

    def take(self, clips: np.ndarray) -> Prints:
        """The prints of some clips, by their numbers, in that order."""
        return Prints(*_taken(self.picture, self.picture_at, clips), *_taken(self.sound, self.sound_at, clips))


def copies(prints: Prints, rank: np.ndarray) -> np.ndarray:
    """For each clip the clip that it is a copy of, -1 for those to keep: int64 [N].

    rank: of two copies the one of lower rank is kept; no two are equal. A copy of what is itself a copy, but not of
    what is kept, is kept: the two share too little.
    """
    original, left = np.full(len(rank), -1, np.int64), np.arange(len(rank))
    while True:  # of a crowd of copies one round leaves some
        found = _copies(prints.take(left), rank[left])
        gone = found >= 0
        if not gone.any():
            return original
        original[left[gone]] = left[found[gone]]
        left = left[~gone]
        while (later := (original >= 0) & (original[original] >= 0)).any():  # what stood for them is gone too
            original[later] = original[original[later]]


def _copies(prints: Prints, rank: np.ndarray) -> np.ndarray:
    neighbours: dict[int, list[int]] = {}
    for a, b in pairs(prints):
        neighbours.setdefault(a, []).append(b)
        neighbours.setdefault(b, []).append(a)
    original = np.full(len(rank), -1, np.int64)
    for clip in sorted(neighbours, key=lambda clip: rank[clip]):
        kept = [other for other in neighbours[clip] if original[other] < 0 and rank[other] < rank[clip]]
        if kept:
            original[clip] = min(kept, key=lambda other: rank[other])
    return original


def pairs(prints: Prints) -> Iterator[tuple[int, int]]:
    """Pairs of clips, a < b, that are copies of each other."""
    before = (-1, -1)
    for a, b, shift in _candidates(prints):
        if (a, b) != before and any(_agree(prints, a, b, shift + near) for near in (0, -1, 1)):
            before = (a, b)
            yield a, b


def _candidates(prints: Prints) -> Iterator[tuple[int, int, int]]:
    """Pairs of clips with a shift at which sound hashes are equal, pair by pair, the likeliest shifts first.

    shift: a's window n + shift is b's window n.
    """
    owner = np.repeat(np.arange(len(prints.sound_at) - 1), np.diff(prints.sound_at))
    place = np.arange(len(prints.sound)) - prints.sound_at[owner]
    order = np.argsort(prints.sound, kind="stable")  # so that of two clips the lower number comes first
    values = prints.sound[order]
    fresh = np.ones(len(order), bool)  # a clip's first window with a hash stands for all it has
    fresh[1:] = (values[1:] != values[:-1]) | (owner[order[1:]] != owner[order[:-1]])
    fresh &= values >= 0
    values, order = values[fresh], order[fresh]
    found = []
    for step in range(1, CROWD + 1):
        equal = values[:-step] == values[step:]
        first, second = order[:-step][equal], order[step:][equal]
        found.append(np.stack([owner[first], owner[second], place[first] - place[second]], axis=1))
    distinct, votes = np.unique(np.concatenate(found), axis=0, return_counts=True)
    likeliest = np.lexsort((-votes, distinct[:, 1], distinct[:, 0]))
    tried, last = 0, (-1, -1)
    for a, b, shift in distinct[likeliest].tolist():
        tried = tried + 1 if (a, b) == last else 0
        last = (a, b)
        if tried < _SHIFTS:
            yield a, b, shift


def _agree(prints: Prints, a: int, b: int, shift: int) -> bool:
    """Whether two clips show and say the same at a shift of so many windows of sound."""
    sound_a, sound_b = _row(prints.sound, prints.sound_at, a), _row(prints.sound, prints.sound_at, b)
    far, windows = _distance(*_overlap(sound_a, sound_b, shift), SOUND_BITS)
    shorter = min(int((sound_a >= 0).sum()), int((sound_b >= 0).sum()))
    if windows < max(LEAST_SECONDS / SOUND_SECONDS, SHARED * shorter) or far > SOUND_FAR:
        return False
    seconds = round(shift * SOUND_SECONDS / PICTURE_SECONDS)
    picture_a, picture_b = _row(prints.picture, prints.picture_at, a), _row(prints.picture, prints.picture_at, b)
    far, pictures = _distance(*_overlap(picture_a, picture_b, seconds), PICTURE_BITS)
    return pictures > 0 and far <= PICTURE_FAR


def _overlap(a: np.ndarray, b: np.ndarray, shift: int) -> tuple[np.ndarray, np.ndarray]:
    """The stretches of two rows that lie over each other when b begins at a's place `shift`."""
    first, last = max(0, shift), min(len(a), len(b) + shift)
    return a[first : max(first, last)], b[first - shift : max(first, last) - shift]


def _distance(a: np.ndarray, b: np.ndarray, bits: int) -> tuple[float, int]:
    """Mean share of bits that differ, and over how many hashes that both rows know."""
    known = (a >= 0) & (b >= 0)
    if not known.any():
        return 1.0, 0
    return float(np.bitwise_count(a[known] ^ b[known]).mean()) / bits, int(known.sum())


def _row(values: np.ndarray, at: np.ndarray, clip: int) -> np.ndarray:
    return values[at[clip] : at[clip + 1]]


def _taken(values: np.ndarray, at: np.ndarray, clips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    sizes = np.diff(at)[clips]
    ends = np.concatenate([[0], np.cumsum(sizes)])
    places = np.repeat(at[clips] - ends[:-1], sizes) + np.arange(ends[-1])
    return values[places], ends


def _flat(lists: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    sizes = np.concatenate([np.diff(chunk.offsets.to_numpy()) for chunk in lists.chunks] or [np.zeros(0, np.int64)])
    values = [chunk.flatten().to_numpy() for chunk in lists.chunks]
    return np.concatenate([np.zeros(0, np.int64), *values]), np.concatenate([[0], np.cumsum(sizes)])
