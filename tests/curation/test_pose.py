"""Which way a head looks has the sign that is written down, and turning has its speed."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from curation.backends.landmarks import Landmarker
from curation.backends.tracks import Sight
from curation.measures.pose import Angles, angles, angular_speed, pose, rotation
from model import weights
from model.encoders.detect import CenterFace
from model.media import Span, frames


@pytest.fixture(scope="module")
def find() -> CenterFace:
    return CenterFace(weights.path("centerface"), (320,))


@pytest.fixture(scope="module")
def landmarker() -> Landmarker:
    return Landmarker(weights.path("face-landmarker"))


@pytest.fixture(scope="module")
def man() -> list[np.ndarray]:
    """A man talking to the camera, two images a second."""
    film = weights.path("psychopy-jwpIntro")
    return list(frames(film, Span(Fraction(0), Fraction(5)), fps=Fraction(2)))


def head(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """The rotation of a head, out of what the three words mean: rolled, then pitched, then turned; degrees."""
    # Seen from the camera x is the subject's left, y up, z towards the viewer. A turn from z to x is to the left,
    # one from z to y upwards, one from y to x tilts the crown to the left.
    return (
        Rotation.from_euler("y", yaw, degrees=True)
        * Rotation.from_euler("x", -pitch, degrees=True)
        * Rotation.from_euler("z", -roll, degrees=True)
    ).as_matrix()


def looks(image_HWC: np.ndarray, find: CenterFace, landmarker: Landmarker) -> Angles:
    """Where the largest face of a picture looks."""
    height, width = image_HWC.shape[:2]
    face = max(find(image_HWC), key=lambda face: face.bottom - face.top)
    found = landmarker(image_HWC, Sight.of(face, width, height))
    assert found is not None
    return angles(rotation(found.pose_44))


def read(file: Path) -> np.ndarray:
    return cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB)


@pytest.mark.parametrize("yaw", [-170, -60, 0, 25])
@pytest.mark.parametrize("pitch", [-80, 0, 40])
@pytest.mark.parametrize("roll", [-100, 0, 15])
def test_known_turns_come_back_exactly(yaw, pitch, roll) -> None:
    seen = angles(head(yaw, pitch, roll))
    assert (seen.yaw, seen.pitch, seen.roll) == pytest.approx((yaw, pitch, roll), abs=1e-9)


def test_each_angle_moves_the_head_as_its_name_says() -> None:
    right_of_the_picture, up = np.eye(3)[0], np.eye(3)[1]
    nose, crown = np.eye(3)[2], np.eye(3)[1]
    assert head(30, 0, 0) @ nose @ right_of_the_picture == pytest.approx(0.5)  # the subject's left
    assert head(0, 30, 0) @ nose @ up == pytest.approx(0.5)
    assert head(0, 0, 30) @ crown @ right_of_the_picture == pytest.approx(0.5)


def test_a_transformation_s_place_and_scale_do_not_turn_the_head() -> None:
    pose_44 = np.eye(4)
    pose_44[:3, :3] = 1.3 * head(20, -10, 5)
    pose_44[:3, 3] = (4, -2, -50)
    assert rotation(pose_44) == pytest.approx(head(20, -10, 5), abs=1e-12)


def test_a_mirrored_picture_flips_yaw_and_roll_and_keeps_pitch(man, find, landmarker) -> None:
    for image in man:
        seen = looks(image, find, landmarker)
        mirrored = looks(np.ascontiguousarray(image[:, ::-1]), find, landmarker)
        assert (mirrored.yaw, mirrored.pitch, mirrored.roll) == pytest.approx(
            (-seen.yaw, seen.pitch, -seen.roll), abs=3
        )


def test_a_picture_turned_clockwise_adds_to_the_roll(man, find, landmarker) -> None:
    height, width = man[0].shape[:2]
    clockwise = cv2.getRotationMatrix2D((width / 2, height / 2), -20, 1)
    level = looks(man[0], find, landmarker)
    tilted = looks(cv2.warpAffine(man[0], clockwise, (width, height)), find, landmarker)
    assert tilted.roll - level.roll == pytest.approx(20, abs=2)
    assert (tilted.yaw, tilted.pitch) == pytest.approx((level.yaw, level.pitch), abs=5)


def test_mirrored_portraits_look_the_other_way(footage, find, landmarker) -> None:
    for name in ("face_recognition/obama.jpg", "face_recognition/biden.jpg", "skimage_astronaut.png"):
        image = read(footage / "faces" / name)
        seen = looks(image, find, landmarker)
        mirrored = looks(np.ascontiguousarray(image[:, ::-1]), find, landmarker)
        assert abs(seen.yaw) < 25
        assert mirrored.yaw == pytest.approx(-seen.yaw, abs=4)
        assert mirrored.roll == pytest.approx(-seen.roll, abs=3)
        assert mirrored.pitch == pytest.approx(seen.pitch, abs=4)


@pytest.mark.parametrize("speed", [1, 30, 400])
@pytest.mark.parametrize("axis", ["y", "x", "z", "askew"])
def test_a_steady_turn_has_its_speed(speed, axis) -> None:
    along = {"y": (0, 1, 0), "x": (1, 0, 0), "z": (0, 0, 1), "askew": (0.6, 0, 0.8)}[axis]
    turned = np.radians(speed) * np.arange(50)[:, None] / 25 * np.array(along)
    rotations_T33 = (Rotation.from_rotvec(turned) * Rotation.from_matrix(head(20, 10, -5))).as_matrix()
    assert angular_speed(rotations_T33, 25) == pytest.approx(speed)
    rotations_T33[[7, 8, 9, 30]] = np.nan
    assert angular_speed(rotations_T33, 25) == pytest.approx(speed)


def test_jitter_of_single_frames_is_not_summed_up() -> None:
    random = np.random.default_rng(0)
    rotations_T33 = Rotation.from_rotvec(np.radians(random.normal(0, 0.3, (500, 3)))).as_matrix()
    from_frame_to_frame = (
        Rotation.from_matrix(rotations_T33[1:]) * Rotation.from_matrix(rotations_T33[:-1]).inv()
    ).magnitude()
    assert np.degrees(from_frame_to_frame.mean()) * 25 > 15
    assert angular_speed(rotations_T33, 25) < 4


def test_statistics_are_those_of_the_frames_with_a_face() -> None:
    rotations_T33 = np.full((100, 3, 3), np.nan)
    yaws = np.linspace(-40, 40, 41)
    rotations_T33[20:61] = [head(yaw, -10, 5) for yaw in yaws]
    clip = pose(rotations_T33, 25)
    assert (clip.yaw_abs, clip.pitch_abs, clip.roll_abs) == pytest.approx((np.abs(yaws).mean(), 10, 5))
    assert (clip.yaw_p95, clip.pitch_p95, clip.roll_p95) == pytest.approx((np.percentile(np.abs(yaws), 95), 10, 5))
    assert clip.rotation_speed == pytest.approx(2 * 25, rel=1e-6)


def test_without_a_face_nothing_is_known() -> None:
    clip = pose(np.full((50, 3, 3), np.nan), 25)
    assert all(np.isnan(value) for value in vars(clip).values())
    assert np.isnan(pose(np.empty((0, 3, 3)), 25).yaw_abs)


def test_faces_too_far_apart_in_time_have_angles_but_no_speed() -> None:
    rotations_T33 = np.full((50, 3, 3), np.nan)
    rotations_T33[::10] = head(10, 0, 0)
    clip = pose(rotations_T33, 25)
    assert clip.yaw_abs == pytest.approx(10)
    assert np.isnan(clip.rotation_speed)
