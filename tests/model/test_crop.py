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
from model.crop import Crop, CropError, head_crop
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


# Squares, and other sources that are too narrow ----------------------------------------------------------------------

SQUARE = (512, 512)


def test_a_square_that_a_face_fills_is_refused_or_shown_whole_between_black_sides():
    boxes = still(110, 90, 290, 390)
    with pytest.raises(CropError, match="largest 3:2 box in 512x512 is 510x340: pad=true fills its sides with black"):
        head_crop(boxes, *SQUARE)
    crop = head_crop(boxes, *SQUARE, pad=True)
    assert (crop.left, crop.top, crop.width, crop.height) == (-128, 0, 768, 512)
    assert (crop.before, crop.after, crop.scale) == (128, 128, 480 / 512)
    assert crop.padded == pytest.approx(1 / 3) and crop.shown == (120, 0, 600, 480)


def test_what_is_cut_beyond_the_sides_is_what_a_picture_with_black_sides_would_give():
    image = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    crop = head_crop(still(110, 90, 290, 390), *SQUARE, pad=True)
    wide = np.pad(image, [(0, 0), (128, 128), (0, 0)])
    made = crop.cut(image)
    assert made.shape == (480, 720, 3)
    assert np.array_equal(made, Crop(0, 0, 768, 512, 720, 480).cut(wide))
    assert not made[:, :120].any() and not made[:, 600:].any() and made[:, 120:600].any(axis=(0, 2)).all()
    inner = cv2.resize(image, (480, 480), interpolation=cv2.INTER_AREA)
    assert np.abs(made[:, 121:599].astype(int) - inner[:, 1:-1]).max() <= 1, "not stretched, not moved"


def test_a_square_of_the_height_that_is_made_comes_through_pixel_by_pixel():
    image = np.random.default_rng(0).integers(0, 256, (480, 480, 3), np.uint8)
    crop = head_crop(still(100, 60, 300, 400), 480, 480, pad=True)
    made = crop.cut(image)
    assert np.array_equal(made[:, 120:600], image)
    assert not made[:, :120].any() and not made[:, 600:].any()
    box = np.array([100.0, 60, 400, 460])
    assert crop.place(box).tolist() == [220, 60, 520, 460]


def test_of_an_upright_picture_no_more_is_shown_than_the_head_needs():
    crop = head_crop(still(200, 500, 660, 800), 1080, 1920, pad=True)
    assert crop.height == 1.5 * 800 and crop.top == 500 - 0.4 * 800
    assert crop.width == 1800 and (crop.before, crop.after) == (360, 360)


def test_a_source_with_too_few_pixels_is_shown_between_black_sides_unless_it_may_be_enlarged():
    boxes = still(200, 100, 150, 200)
    with pytest.raises(CropError, match="upscale=true enlarges it, pad=true fills its sides with black"):
        head_crop(boxes, 640, 480)
    crop = head_crop(boxes, 640, 480, pad=True)
    assert (crop.width, crop.height, crop.before, crop.after, crop.scale) == (720, 480, 40, 40, 1)
    enlarged = head_crop(boxes, 640, 480, pad=True, upscale=True)
    assert enlarged == head_crop(boxes, 640, 480, upscale=True) and enlarged.padded == 0


def test_black_sides_are_no_help_where_height_is_missing():
    with pytest.raises(CropError, match=r"540x360 pixels to show, .* upscale=true") as caught:
        head_crop(still(200, 100, 150, 200), 640, 360, pad=True)
    assert "pad=" not in str(caught.value)


# Between black bars --------------------------------------------------------------------------------------------------


def test_a_box_stays_in_the_area_it_is_given():
    boxes = still(860, 340, 200, 260)
    whole = head_crop(boxes, *HD)
    assert (whole.top, whole.top + whole.height) == (144, 768)
    within = head_crop(boxes, *HD, area=(0, 260, 1920, 820))
    assert within.height == 560 and within.top == 260 and within.padded == 0
    assert head_crop(boxes, *HD, area=(100, 100, 1800, 900)) == whole, "where there is room nothing changes"


def test_sides_are_black_from_the_area_s_edge_on():
    """What is between the bars' edge and the picture's is bar, and need not be quite black."""
    image = np.full((720, 1280, 3), 9, np.uint8)
    image[100:620, 400:880] = 200
    crop = head_crop(still(500, 150, 280, 400), 1280, 720, pad=True, area=(400, 100, 880, 620))
    made = crop.cut(image)
    left, _, right, _ = (round(edge) for edge in crop.shown)
    assert crop.padded > 0.3
    assert not made[:, : left - 1].any() and not made[:, right + 1 :].any()
    assert (made[:, left + 2 : right - 2] == 200).all()


# For any face --------------------------------------------------------------------------------------------------------

sizes = st.integers(320, 2000)


@settings(max_examples=300, deadline=None)
@given(sizes, sizes, st.booleans(), st.booleans(), st.data())
def test_the_face_is_always_inside_and_the_shape_always_exact(width, height, pad, upscale, data):
    count = data.draw(st.integers(1, 4))
    starts = [[data.draw(st.floats(-20, side * 0.9)) for side in (width, height)] for _ in range(count)]
    lengths = [[data.draw(st.floats(10, side * 0.9)) for side in (width, height)] for _ in range(count)]
    boxes = np.array([[*s, s[0] + n[0], s[1] + n[1]] for s, n in zip(starts, lengths, strict=True)])
    made = data.draw(st.sampled_from([(720, 480), (480, 480), (256, 144)]))
    bars = [data.draw(st.integers(0, side // 5)) for side in (width, height, width, height)]
    area = bars[0], bars[1], width - bars[2], height - bars[3]
    try:
        crop = head_crop(boxes, width, height, made, upscale=upscale, pad=pad, area=area)
    except CropError as error:
        assert "moves over" in str(error) or "pixels to show" in str(error)
        return
    assert crop.width * made[1] == crop.height * made[0]
    assert upscale or crop.scale <= 1
    assert crop.left + crop.before >= area[0] and crop.left + crop.width - crop.after <= area[2]
    assert crop.top >= area[1] and crop.top + crop.height <= area[3]
    if crop.padded:
        assert pad and crop.before + crop.after == crop.width - (area[2] - area[0])
        assert 0 <= crop.after - crop.before <= 1
    elif not pad:
        assert crop.before == crop.after == 0
    if pad and not crop.padded:
        assert crop == head_crop(boxes, width, height, made, upscale=upscale, area=area), "padding is the last resort"
    inside = np.clip(boxes, area[:2] * 2, area[2:] * 2)
    assert (inside[:, :2] >= [crop.left, crop.top]).all()
    assert (inside[:, 2:] <= [crop.left + crop.width, crop.top + crop.height]).all()


def held(path: Path) -> Crop:
    """The face is inside on every frame of the film, and the box, which stands still, moves less than the head."""
    whole = clip(path)
    found = followed(path, whole)
    boxes = np.array([found.left, found.top, found.right, found.bottom]).T
    crop = head_crop(boxes, whole.width, whole.height, upscale=True, pad=True)
    seen = np.isfinite(boxes).all(axis=1)
    made = crop.place(boxes[seen])
    left, top, right, bottom = crop.shown
    assert seen.mean() > 0.8, path.name
    assert (made[:, :2] >= np.array([left, top]) - 1e-3).all(), path.name
    assert (made[:, 2:] <= np.array([right, bottom]) + 1e-3).all(), path.name
    centres = (made[:, :2] + made[:, 2:]) / 2
    assert np.abs(np.diff(centres, axis=0)).max() > 0, "the head moves; one box for all frames does not"
    return crop


@pytest.mark.parametrize(
    ("name", "padded"), [("sv_half4.mp4", False), ("vrt_face4.mp4", False), ("hdtf_WDA_KatieHill_000.mp4", True)]
)
def test_heads_of_real_clips_stay_in_their_box(footage, name, padded, tmp_path):
    short = tmp_path / name
    path = footage / "talking_head" / name
    pictures = media.frames(path, media.Span(Fraction(1), Fraction(2)), Fraction(25))
    media.encode(short, pictures, Fraction(25), preset="ultrafast")
    assert bool(held(short).padded) == padded


@pytest.mark.soak
def test_heads_of_all_clips_stay_in_their_box(footage):
    padded = [path.name for path in sorted((footage / "talking_head").glob("*.mp4")) if held(path).padded]
    # Squares of 512 pixels that the face fills: it is taller than the largest 3:2 box in them.
    assert padded == ["May_5s.mp4", "hdtf_WDA_KatieHill_000.mp4", "talkvid_10_gt.mp4"]
