"""How bright, how sharp and how letterboxed a picture is."""

from __future__ import annotations

from fractions import Fraction

import cv2
import numpy as np
import pytest

from curation.measures.picture import between_bars, face_sharpness, letterbox, luminance, sharpness
from model import weights
from model.encoders.detect import CenterFace
from model.media import Span, frames


@pytest.fixture(scope="module")
def man() -> np.ndarray:
    """Luma of a man talking to the camera, 640 x 480."""
    image = next(frames(weights.path("psychopy-jwpIntro"), Span(Fraction(1), Fraction(2))))
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


@pytest.fixture(scope="module")
def face(man) -> np.ndarray:
    (found,) = CenterFace(weights.path("centerface"), (320,))(cv2.cvtColor(man, cv2.COLOR_GRAY2RGB))
    return np.array([found.left, found.top, found.right, found.bottom]) * np.tile(man.shape[::-1], 2)


def barred(luma_HW: np.ndarray, top: int = 0, bottom: int = 0, left: int = 0, right: int = 0) -> np.ndarray:
    """The picture with black bars over its edges, with the noise that a codec leaves in them."""
    noise = np.random.default_rng(0).integers(0, 12, luma_HW.shape, np.uint8)
    inside = np.zeros(luma_HW.shape, bool)
    inside[top : luma_HW.shape[0] - bottom, left : luma_HW.shape[1] - right] = True
    return np.where(inside, luma_HW, noise)


def test_luminance_is_the_mean_of_0_to_255() -> None:
    assert luminance(np.full((4, 6), 255, np.uint8)) == 255
    assert luminance(np.array([[0, 100], [50, 250]], np.uint8)) == 100


def test_sharpness_of_a_chequered_picture_is_that_of_the_formula() -> None:
    # Around a pixel of a board of single pixels, a and b: its Laplacian is 4 (a - b) or 4 (b - a).
    board = np.indices((360, 640)).sum(0) % 2 * 10 + 100
    assert sharpness(board.astype(np.uint8)) == pytest.approx((4 * 10) ** 2, rel=1e-3)
    assert sharpness(np.full((360, 640), 77, np.uint8)) == 0


def test_blur_costs_sharpness(man, face) -> None:
    blurred = [cv2.GaussianBlur(man, (0, 0), sigma) for sigma in (1, 2, 4)]
    values = [sharpness(luma) for luma in (man, *blurred)]
    faces = [face_sharpness(luma, face) for luma in (man, *blurred)]
    assert values == sorted(values, reverse=True) and values[0] > 10 * values[2]
    assert faces == sorted(faces, reverse=True) and faces[0] > 5 * faces[3]


def test_the_size_of_a_film_does_not_make_it_sharp(man) -> None:
    enlarged = cv2.resize(man, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)
    assert sharpness(enlarged) == pytest.approx(sharpness(man), rel=0.25)


def test_a_face_s_sharpness_is_its_own(man, face) -> None:
    left, top, right, bottom = np.round(face).astype(int)
    elsewhere = cv2.GaussianBlur(man, (0, 0), 4)
    elsewhere[top:bottom, left:right] = man[top:bottom, left:right]
    assert face_sharpness(elsewhere, face) == face_sharpness(man, face)


def test_a_face_of_few_pixels_is_not_sharp(man, face) -> None:
    shrunk = cv2.resize(man, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    assert face_sharpness(shrunk, face / 4) < 0.5 * face_sharpness(man, face)


def test_a_face_that_is_not_in_the_picture_has_no_sharpness(man) -> None:
    assert np.isnan(face_sharpness(man, np.full(4, np.nan)))
    assert np.isnan(face_sharpness(man, np.array([-90.0, 10, -10, 90])))
    assert np.isnan(face_sharpness(man, np.array([700.0, 10, 790, 90])))
    assert np.isnan(face_sharpness(man, np.array([10.0, 10, 10, 10])))


def test_a_face_cut_off_by_the_edge_is_measured_as_far_as_it_is_there(man, face) -> None:
    left = round(float(face[0] + face[2]) / 2)
    assert np.isfinite(face_sharpness(man[:, left:], face - [left, 0, left, 0]))


@pytest.mark.parametrize("bars", [(60, 60, 0, 0), (0, 0, 80, 80), (0, 31, 0, 0), (60, 60, 80, 80), (0, 0, 0, 0)])
def test_the_share_of_bars_is_what_they_cover(man, bars) -> None:
    top, bottom, left, right = bars
    inside = (480 - top - bottom) * (640 - left - right) / (480 * 640)
    assert letterbox(barred(np.maximum(man, 40), *bars)) == pytest.approx(1 - inside, abs=1e-9)
    small = cv2.resize(barred(np.maximum(man, 40), *bars), (320, 240), interpolation=cv2.INTER_AREA)
    assert letterbox(small) == pytest.approx(1 - inside, abs=0.01)


def test_the_picture_between_bars_lies_where_they_end(man) -> None:
    assert between_bars(barred(np.maximum(man, 40), 20, 31, 50, 72)) == (50, 20, 640 - 72, 480 - 31)
    assert between_bars(np.maximum(man, 40)) == (0, 0, 640, 480)
    assert between_bars(np.zeros((180, 320), np.uint8)) is None


def test_a_dark_room_is_no_bar() -> None:
    across = np.linspace(-1, 1, 320)
    spot = 200 * np.exp(-8 * (across[None] ** 2 + across[:180, None] ** 2))
    assert letterbox(spot.astype(np.uint8)) == 0


def test_what_lights_up_once_in_a_clip_is_no_bar(man) -> None:
    dark, lit = barred(man, top=60), np.maximum(man, 40)
    assert letterbox(np.maximum(dark, lit)) == 0


def test_nobody_can_tell_bars_of_a_black_picture() -> None:
    assert np.isnan(letterbox(np.zeros((180, 320), np.uint8)))
