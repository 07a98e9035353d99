"""Landmarks lie on the face, follow what it does, and turn with it."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction

import cv2
import numpy as np
import pytest

from curation.backends.faces import CenterFace
from curation.backends.landmarks import BLENDSHAPES, SIDE, Landmarker, Landmarks, resized, square
from model import weights
from model.media import Span, frames

Box = tuple[float, float, float, float]
RIGHT_EYE, LEFT_EYE, NOSE_TIP, RIGHT_CORNER, LEFT_CORNER = 33, 263, 1, 61, 291
"""Of the subject: outer corners of the eyes, corners of the mouth."""
MOVES_SIDEWAYS = np.diag([-1.0, 1, 1, 1])


@pytest.fixture(scope="module")
def landmarker():
    found = Landmarker(weights.path("face-landmarker"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def man() -> list[np.ndarray]:
    """A man talking to the camera, 640 x 480, for 2 s."""
    return list(frames(weights.path("psychopy-jwpIntro"), Span(Fraction(1), Fraction(3))))


@pytest.fixture(scope="module")
def box(man) -> Box:
    [face] = CenterFace(weights.path("centerface"), (320,))(man[0])
    height, width = man[0].shape[:2]
    return face.left * width, face.top * height, face.right * width, face.bottom * height


@pytest.fixture(scope="module")
def seen(landmarker, man, box) -> list[Landmarks]:
    return [landmarker(image, box) for image in man]


def test_the_478_points_lie_on_the_face(seen, box) -> None:
    left, top, right, bottom = box
    slack = 0.15 * (bottom - top)
    for landmarks in seen:
        x, y, z = landmarks.points_P3.T
        assert landmarks.points_P3.shape == (478, 3)
        assert left - slack < x.min() < x.max() < right + slack
        assert top - slack < y.min() < y.max() < bottom + slack
        assert 0.2 < np.ptp(z) / np.ptp(x) < 2


def test_the_points_are_where_the_detector_has_eyes_nose_and_mouth(seen, man) -> None:
    [face] = CenterFace(weights.path("centerface"), (320,))(man[0])
    wanted_52 = np.array(face.points) * [640, 480]
    points = seen[0].points_P3[:, :2]
    eyes = [points[[33, 133]].mean(axis=0), points[[263, 362]].mean(axis=0)]
    found_52 = np.array([*eyes, points[NOSE_TIP], points[RIGHT_CORNER], points[LEFT_CORNER]])
    assert np.linalg.norm(found_52 - wanted_52, axis=1).max() < 0.1 * np.ptp(points[:, 1])


def test_the_jaw_opens_and_shuts_while_he_talks_and_the_lips_with_it(seen) -> None:
    jaw = np.array([landmarks.blendshapes[BLENDSHAPES.index("jawOpen")] for landmarks in seen])
    gap = np.array([np.linalg.norm(np.subtract(*landmarks.points_P3[[13, 14]])) for landmarks in seen])
    assert jaw.min() < 0.1 < 0.3 < jaw.max()
    assert np.corrcoef(jaw, gap)[0, 1] > 0.8


def test_a_mirrored_picture_mirrors_the_pose_and_the_points(landmarker, man, box, seen) -> None:
    width = man[0].shape[1]
    turned = (width - box[2], box[1], width - box[0], box[3])
    for image, straight in zip(man[::10], seen[::10], strict=True):
        mirrored = landmarker(np.ascontiguousarray(image[:, ::-1]), turned)
        assert mirrored.pose_44 == pytest.approx(MOVES_SIDEWAYS @ straight.pose_44 @ MOVES_SIDEWAYS, abs=0.7)
        rotation, expected = mirrored.pose_44[:3, :3], (MOVES_SIDEWAYS @ straight.pose_44 @ MOVES_SIDEWAYS)[:3, :3]
        assert rotation == pytest.approx(expected, abs=0.04)  # about 2 degrees
        assert width - mirrored.points_P3[LEFT_EYE, 0] == pytest.approx(straight.points_P3[RIGHT_EYE, 0], abs=5)


def test_the_pose_is_a_rotation_before_the_camera(seen) -> None:
    for landmarks in seen:
        rotation = landmarks.pose_44[:3, :3]
        assert rotation @ rotation.T == pytest.approx(np.eye(3), abs=1e-4)
        assert np.linalg.det(rotation) == pytest.approx(1, abs=1e-4)
        assert landmarks.pose_44[2, 3] < 0


def test_a_picture_turned_in_its_plane_turns_the_pose_about_the_view(landmarker, man, box) -> None:
    centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    clockwise = cv2.warpAffine(man[0], cv2.getRotationMatrix2D(centre, -20, 1), (640, 480))
    straight, turned = (landmarker(image, box).pose_44[:3, :3] for image in (man[0], clockwise))
    roll = np.degrees([np.arctan2(pose[1, 0], pose[0, 0]) for pose in (straight, turned)])
    assert roll[1] - roll[0] == pytest.approx(-20, abs=2)  # y is up: clockwise is negative


def test_landmarks_do_not_depend_on_the_pictures_before(landmarker, man, box, seen) -> None:
    again = [landmarker(man[n], box) for n in (30, 0, 30)]
    for landmarks, n in zip(again, (30, 0, 30), strict=True):
        assert np.array_equal(landmarks.points_P3, seen[n].points_P3)
        assert np.array_equal(landmarks.blendshapes, seen[n].blendshapes)
        assert np.array_equal(landmarks.pose_44, seen[n].pose_44)


def test_a_moved_picture_moves_the_points(landmarker, man, box, seen) -> None:
    moved = landmarker(np.pad(man[0], [(37, 0), (53, 0), (0, 0)]), (box[0] + 53, box[1] + 37, box[2] + 53, box[3] + 37))
    assert moved.points_P3 == pytest.approx(seen[0].points_P3 + np.array([53, 37, 0]), abs=0.5)


def test_a_picture_twice_as_large_has_points_twice_as_far_apart(landmarker, man, box, seen) -> None:
    large = landmarker(cv2.resize(man[0], None, fx=2, fy=2), tuple(2 * side for side in box))
    assert large.points_P3 == pytest.approx(2 * seen[0].points_P3, abs=8)
    assert large.blendshapes == pytest.approx(seen[0].blendshapes, abs=0.1)


def test_nothing_is_found_in_an_empty_picture_a_lost_face_or_beside_the_picture(landmarker, man, box) -> None:
    assert landmarker(np.zeros_like(man[0]), box) is None
    assert landmarker(man[0], (np.nan,) * 4) is None
    assert landmarker(man[0], (50, 50, 50, 50)) is None
    assert landmarker(man[0], (2000, 2000, 2100, 2100)) is None
    assert landmarker(man[0], (-900, -900, -700, -700)) is None


def test_a_small_face_whose_box_is_too_tight_gets_more_room_and_a_large_one_does_not(landmarker, man, box) -> None:
    left, top, right, bottom = box
    tight = np.array([left + 0.3 * (right - left), top + 0.3 * (bottom - top)] * 2)
    tight[2:] += 0.4 * np.array([right - left, bottom - top])
    small, large = (cv2.resize(man[0], None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) for scale in (0.4, 2))
    assert landmarker(small, tuple(0.4 * tight)) is not None
    assert landmarker(large, tuple(2 * tight)) is None


def test_the_crop_is_black_beyond_the_picture() -> None:
    image = np.arange(1, 13, dtype=np.uint8).reshape(3, 4, 1)
    assert square(image, -1, 1, 3)[..., 0].tolist() == [[0, 5, 6], [0, 9, 10], [0, 0, 0]]
    assert square(image, 2, -1, 3)[..., 0].tolist() == [[0, 0, 0], [3, 4, 0], [7, 8, 0]]
    assert not square(image, 9, 9, 3).any()
    assert not square(image, -9, -9, 3).any()


def test_a_fine_pattern_is_averaged_not_sampled_when_the_crop_shrinks() -> None:
    stripes = np.zeros((4 * SIDE, 4 * SIDE, 3), np.uint8)
    stripes[:, ::2] = 200
    assert resized(stripes) == pytest.approx(100, abs=1)


def test_the_library_says_nothing_on_stderr_that_is_no_error() -> None:
    program = """
import numpy as np
from curation.backends.landmarks import Landmarker
from model import weights
found = Landmarker(weights.path("face-landmarker"))
found(np.zeros((99, 99, 3), np.uint8), (9, 9, 90, 90))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == ""
