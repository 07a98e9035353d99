"""Faces through a clip: who is where in every frame.

Faces are searched for every fifth frame; those of two searches that overlap are one person, whose box moves evenly in
between. A face that a search misses is looked for again more closely, and then is a gap, not a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import linear_sum_assignment

from model.encoders.detect import Face

EVERY = 5
"""Frames from one search to the next."""
SIDES = (320, 480, 640)
"""Long sides, pixels, at which a picture is searched: the next when faces are missed at the one before."""
MEMORY = 5
"""Searches that a face may be missed in before one found there is somebody new."""
OVERLAP = 0.2
"""Least intersection over union of one person's boxes in two searches."""
NEAR = 0.6
"""Or else: most distance of their centres, in face heights, their sizes being alike."""

Find = Callable[[np.ndarray, int], list[Face]]
"""Faces of a picture uint8 [H, W, 3] RGB, its long side shrunk to so many pixels."""


@dataclass(frozen=True)
class Sight:
    """A face in a frame, in pixels. box: left, top, right, bottom. points: [5, 2] as CenterFace has them."""

    box: np.ndarray
    points: np.ndarray
    score: float

    @staticmethod
    def of(face: Face, width: int, height: int) -> Sight:
        """A face that was found in a picture of that size."""
        box = np.array([face.left * width, face.top * height, face.right * width, face.bottom * height])
        return Sight(box, np.array(face.points) * (width, height), face.score)

    @property
    def area(self) -> float:
        """Of the box, square pixels."""
        return float(np.prod(self.box[2:] - self.box[:2]))

    def towards(self, other: Sight, share: float) -> Sight:
        """A share of the way to another sight of the same face."""
        box = (1 - share) * self.box + share * other.box
        points = (1 - share) * self.points + share * other.points
        return Sight(box, points, min(self.score, other.score))


@dataclass
class _Track:
    number: int
    last: Sight
    missed: int = 0


@dataclass
class Tracker:
    """Follows the faces of one clip.

    tracks are numbered from 0 in order of appearance, the surest face first.
    """

    find: Find
    every: int = EVERY
    _tracks: list[_Track] = field(default_factory=list)
    _side: int = 0
    _count: int = 0

    def __call__(self, frames: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, Mapping[int, Sight]]]:
        """Each frame, uint8 [H, W, 3] RGB, with the faces on show in it, by the number of their track."""
        held: list[np.ndarray] = []
        before: dict[int, Sight] = {}
        for index, frame in enumerate(frames):
            held.append(frame)
            if index % self.every == 0:
                now = self._search(frame)
                yield from _between(held[:-1], before, now)
                held, before = [frame], now
        if len(held) > 1:
            now = self._search(held[-1])
            yield from _between(held[:-1], before, now)
            held, before = held[-1:], now
        for frame in held:
            yield frame, before

    def _search(self, frame: np.ndarray) -> dict[int, Sight]:
        """The faces of a frame, bound to the tracks so far."""
        known = [track for track in self._tracks if track.missed == 0]
        faces: list[Face] = []
        for step in range(self._side, len(SIDES)):
            closer = self.find(frame, SIDES[step])
            if len(closer) > len(faces):
                faces, self._side = closer, step
            if len(faces) >= max(1, len(known)):
                break
        height, width = frame.shape[:2]
        seen = [Sight.of(face, width, height) for face in faces]
        found: dict[int, Sight] = {}
        for track, sight in self._bound(seen):
            track.last, track.missed = sight, -1
            found[track.number] = sight
        for track in self._tracks:
            track.missed += 1
        self._tracks = [track for track in self._tracks if track.missed <= MEMORY]
        return found

    def _bound(self, seen: list[Sight]) -> list[tuple[_Track, Sight]]:
        """Each sight with its track, a new one where none fits."""
        likeness = np.array([[_likeness(track.last, sight) for sight in seen] for track in self._tracks])
        pairs = []
        if likeness.size:
            pairs = [(t, s) for t, s in zip(*linear_sum_assignment(-likeness), strict=True) if likeness[t, s] > 0]
        bound = {s: self._tracks[t] for t, s in pairs}
        for index, sight in enumerate(seen):
            if index not in bound:
                bound[index] = _Track(self._count, sight)
                self._tracks.append(bound[index])
                self._count += 1
        return [(bound[index], sight) for index, sight in enumerate(seen)]


def _between(
    held: list[np.ndarray], before: Mapping[int, Sight], after: Mapping[int, Sight]
) -> Iterator[tuple[np.ndarray, Mapping[int, Sight]]]:
    """The held frames, of which the first was searched, and the one after the last was too."""
    for index, frame in enumerate(held):
        share = index / len(held)
        there = {number: before[number].towards(after[number], share) for number in before if number in after}
        yield frame, (before if index == 0 else there)


def _likeness(first: Sight, second: Sight) -> float:
    """How well two sights are one face, 0 (not at all) to 2."""
    a, b = first.box, second.box
    common = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0).prod()
    areas = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod()
    overlap = common / max(areas - common, 1e-9)
    if overlap >= OVERLAP:
        return 1 + float(overlap)
    heights = a[3] - a[1], b[3] - b[1]
    distance = float(np.linalg.norm((a[:2] + a[2:] - b[:2] - b[2:]) / 2)) / max(min(heights), 1e-9)
    alike = max(heights) <= 1.5 * min(heights)
    return 1 - distance if alike and distance < NEAR else 0.0
