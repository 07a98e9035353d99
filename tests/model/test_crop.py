"""The box that a head is cut out with: steady, never stretched, the head inside."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model import media
from model.crop import CropError, head_crop
from tests.curation.clips import clip
from tests.curation.packed import followed

HD = (1920, 1080)


def still(left: float, top: float, width: float, height: float, frames: int = 3) -> np.ndarray:
    """A face that does not move."""
    return np.tile(np.array([left, top, left + width, top + height]), (frames, 1))


def test_a_head_in_the_middle_of_a_large_picture_lies_in_the_middle_of_its_box():
    crop = head_crop(still(860, 340, 200, 260), *HD)
    assert (crop.width, crop.height) == (936, 624)  # 2.4 faces of 260 pixels
    assert crop.left + crop.width / 2 == pytest.approx(960, abs=1)
    head_top, head_bottom = 340 - 0.40 * 260, 600 + 0.10 * 260
    assert crop.top + 0.46 * crop.height == pytest.approx((head_top + head_bottom) / 2, abs=1)


def test_a_small_face_gets_a_box_of_the_pixels_that_are_made_and_is_not_enlarged():
    crop = head_crop(still(900, 500, 60, 80), *HD)
    assert (crop.width, crop.height, crop.scale) == (720, 480, 1)


def test_a_box_stays_in_the_picture_where_the_head_is_at_its_edge():
    crop = head_crop(still(0, 0, 200, 260), *HD)
    assert (crop.left, crop.top) == (0, 0)
    crop = head_crop(still(1720, 820, 200, 260), *HD)
    assert (crop.left + crop.width, crop.top + crop.height) == HD


def test_an_upright_picture_gives_a_box_as_wide_as_it_is():
    crop = head_crop(still(300, 500, 480, 620), 1080, 1920)
    assert (crop.left, crop.width, crop.height) == (0, 1080, 720)


def test_frames_in_which_the_face_is_lost_do_not_count():
    boxes = still(860, 340, 200, 260)
    assert head_crop(np.concatenate([boxes, np.full((2, 4), np.nan)]), *HD) == head_crop(boxes, *HD)
    with pytest.raises(CropError, match="no frame shows the face"):
        head_crop(np.full((2, 4), np.nan), *HD)


def test_a_source_with_fewer_pixels_is_enlarged_only_when_asked():
    boxes = still(200, 100, 150, 200)
    with pytest.raises(CropError, match=r"640x426|639x426.* upscale=true"):
        head_crop(boxes, 640, 480)
    crop = head_crop(boxes, 640, 480, upscale=True)
    assert crop.height == 426 and crop.scale == pytest.approx(480 / 426)


def test_a_source_that_has_the_pixels_is_not_enlarged_even_when_allowed():
    boxes = still(900, 500, 60, 80)
    assert head_crop(boxes, *HD, upscale=True) == head_crop(boxes, *HD)


def test_a_face_that_moves_over_more_than_any_box_holds_is_refused():
    with pytest.raises(CropError, match="moves over 1900x900 pixels; the largest 3:2 box in 1920x1080 is 1620x1080"):
        head_crop(np.array([[0, 0, 200, 260], [1700, 640, 1900, 900]], float), *HD)


def test_hair_gives_way_before_the_face_does():
    # 620 of the picture's 720 lines are face: there is no room for all of the head.
    crop = head_crop(still(400, 90, 480, 620), 1280, 720)
    assert crop.height == 720 and crop.top == 0


def test_what_is_cut_is_scaled_alike_in_both_directions():
    image = np.zeros((1080, 1920, 3), np.uint8)
    cv2.circle(image, (960, 470), 100, (255, 255, 255), -1)
    crop = head_crop(still(860, 340, 200, 260), *HD)
    ys, xs = np.nonzero(crop.cut(image)[..., 0] > 127)
    assert crop.cut(image).shape == (480, 720, 3)
    assert np.ptp(xs) == pytest.approx(np.ptp(ys), abs=1)
    assert np.ptp(xs) + 1 == pytest.approx(201 * crop.scale, abs=1.5)


def test_boxes_move_to_where_the_picture_shows_what_was_in_them():
    crop = head_crop(still(860, 340, 200, 260), *HD)
    image = np.zeros((1080, 1920, 3), np.uint8)
    image[340:600, 860:1060] = 255
    ys, xs = np.nonzero(crop.cut(image)[..., 0] > 127)
    box = crop.place(np.array([860.0, 340, 1060, 600]))
    assert np.allclose(box, [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], atol=1)
    assert np.isnan(crop.place(np.full(4, np.nan))).all()


sizes = st.integers(320, 2000)


@settings(max_examples=300, deadline=None)
@given(sizes, sizes, st.data())
def test_the_face_is_always_inside_and_the_shape_always_exact(width, height, data):
    count = data.draw(st.integers(1, 4))
    starts = [[data.draw(st.floats(-20, side * 0.9)) for side in (width, height)] for _ in range(count)]
    lengths = [[data.draw(st.floats(10, side * 0.5)) for side in (width, height)] for _ in range(count)]
    boxes = np.array([[*s, s[0] + n[0], s[1] + n[1]] for s, n in zip(starts, lengths, strict=True)])
    made = data.draw(st.sampled_from([(720, 480), (480, 480), (256, 144)]))
    try:
        crop = head_crop(boxes, width, height, made, upscale=True)
    except CropError as error:
        assert "moves over" in str(error)
        return
    assert crop.width * made[1] == crop.height * made[0]
    assert crop.left >= 0 and crop.left + crop.width <= width
    assert crop.top >= 0 and crop.top + crop.height <= height
    inside = np.clip(boxes, 0, [width, height, width, height])
    assert (inside[:, :2] >= [crop.left, crop.top]).all()
    assert (inside[:, 2:] <= [crop.left + crop.width, crop.top + crop.height]).all()


def held(path: Path) -> None:
    """The face is inside on every frame of the film, and the box, which stands still, moves less than the head."""
    whole = clip(path)
    found = followed(path, whole)
    boxes = np.array([found.left, found.top, found.right, found.bottom]).T
    crop = head_crop(boxes, whole.width, whole.height, upscale=True)
    seen = np.isfinite(boxes).all(axis=1)
    made = crop.place(boxes[seen])
    assert seen.mean() > 0.8, path.name
    assert (made[:, :2] >= -1e-3).all() and (made[:, 2:] <= np.array([720, 480]) + 1e-3).all(), path.name
    centres = (made[:, :2] + made[:, 2:]) / 2
    assert np.abs(np.diff(centres, axis=0)).max() > 0, "the head moves; one box for all frames does not"


@pytest.mark.parametrize("name", ["sv_half4.mp4", "vrt_face4.mp4"])
def test_heads_of_real_clips_stay_in_their_box(footage, name, tmp_path):
    short = tmp_path / name
    path = footage / "talking_head" / name
    pictures = media.frames(path, media.Span(Fraction(1), Fraction(2)), Fraction(25))
    media.encode(short, pictures, Fraction(25), preset="ultrafast")
    held(short)


@pytest.mark.soak
def test_heads_of_all_clips_stay_in_their_box_or_are_refused_as_too_tight(footage):
    refused = []
    for path in sorted((footage / "talking_head").glob("*.mp4")):
        try:
            held(path)
        except CropError as error:
            assert "the face moves over" in str(error)
            refused.append(path.name)
    # Squares of 512 pixels that the face fills: it is taller than the largest 3:2 box in them.
    assert refused == ["May_5s.mp4", "hdtf_WDA_KatieHill_000.mp4", "talkvid_10_gt.mp4"]
