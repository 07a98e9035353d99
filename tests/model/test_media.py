"""model/media.py: the clock, spans, looks, sound, writing, and files that are damaged or hostile."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from model import media
from model.media import Decode, MediaError, Span
from tests.model.synthetic import clicks, number, numbered, onset, write

ROOT = Path(__file__).resolve().parents[2]
CFR = [Fraction(k, 25) for k in range(100)]
FLASHES = (25, 50, 75)
GOP = {"bf": "2", "g": "12"}
OPEN_GOP = {"x264-params": "open-gop=1:bframes=3:b-adapt=0:keyint=12:min-keyint=12:scenecut=0"}
HEVC = {"x265-params": "open-gop=1:keyint=12:bframes=3:pools=none:frame-threads=1:log-level=none"}


def sound(codec: str, rate: int, begin: Fraction = Fraction(0)) -> tuple[str, int, np.ndarray, Fraction]:
    """Four seconds on the container's time, clicks where the flashes of a film that starts at 0 are."""
    return codec, rate, clicks(4 - float(begin), [1.0, 2.0, 3.0], rate, float(begin)), begin


FILMS: dict[str, dict] = {
    "h264.mp4": {"options": GOP, "sound": sound("aac", 44100)},
    "opengop.mp4": {"options": OPEN_GOP, "sound": sound("aac", 48000)},
    "hevc.mp4": {"codec": "libx265", "options": HEVC, "sound": sound("aac", 48000)},
    "fragmented.mp4": {
        "options": GOP,
        "container": {"movflags": "frag_keyframe+empty_moov"},
        "sound": sound("aac", 44100),
    },
    "pcm.mov": {"options": GOP, "sound": sound("pcm_s16le", 16000)},
    "mp3.mkv": {"options": OPEN_GOP, "sound": sound("libmp3lame", 44100)},
    "live.mkv": {"options": GOP, "container": {"live": "1"}, "sound": sound("aac", 48000)},
    "vp9.webm": {
        "codec": "libvpx-vp9",
        "options": {"g": "12", "deadline": "realtime", "cpu-used": "8"},
        "sound": sound("libopus", 48000),
    },
    "long.ts": {"options": {"bf": "2", "g": "250"}, "sound": sound("aac", 48000)},
    "opengop.ts": {"options": OPEN_GOP, "sound": sound("aac", 44100)},
    "mpeg2.ts": {
        "codec": "mpeg2video",
        "time_base": Fraction(1, 25),
        "options": GOP,
        "sound": sound("mp2", 48000),
    },
    "mpeg2.mpg": {
        "codec": "mpeg2video",
        "time_base": Fraction(1, 25),
        "options": GOP,
        "sound": sound("mp2", 48000),
    },
    "h264.flv": {"options": GOP, "sound": sound("aac", 44100)},
    "h264.avi": {"time_base": Fraction(1, 25), "options": GOP, "sound": sound("pcm_s16le", 16000)},
    "mpeg4.avi": {
        "codec": "mpeg4",
        "time_base": Fraction(1, 25),
        "options": GOP,
        "sound": sound("libmp3lame", 44100),
    },
    "bare.h264": {"options": GOP},
    "bare.hevc": {"codec": "libx265", "options": HEVC},
    "late_sound.mkv": {"options": GOP, "sound": sound("aac", 44100, Fraction(1, 2))},
    "late_sound.mp4": {"options": GOP, "sound": sound("aac", 44100, Fraction(1, 2))},
    "late_video.mp4": {
        "options": GOP,
        "times": [time + Fraction(1, 2) for time in CFR],
        "sound": ("aac", 44100, clicks(4.5, [1.5, 2.5, 3.5], 44100), Fraction(0)),
    },
    "odd.mp4": {  # 2500/83 frames a second
        "options": GOP,
        "times": [Fraction(83 * k, 2500) for k in range(100)],
        "time_base": Fraction(83, 2500),
        "rate": Fraction(2500, 83),
        "container": {"video_track_timescale": "2500"},
    },
    "ntsc.mp4": {
        "options": GOP,
        "times": [Fraction(1001 * k, 30000) for k in range(100)],
        "time_base": Fraction(1001, 30000),
        "rate": Fraction(30000, 1001),
    },
    "vfr.mp4": {"options": GOP, "times": [Fraction(k * k, 900) + Fraction(k, 50) for k in range(60)]},
}
# An mp3 stream in AVI has nowhere to say how long encoder and decoder take; players are late by it, too.
CODEC_DELAY = {"mpeg4.avi": 1105 / 44100}


@pytest.fixture(scope="session")
def film(tmp_path_factory: pytest.TempPathFactory):
    """Makes a film of FILMS once and gives its path and the times of its frames on the clock."""
    folder = tmp_path_factory.mktemp("films")

    def make(name: str) -> tuple[Path, list[Fraction]]:
        facts = dict(FILMS[name])
        times = facts.pop("times", CFR)
        path = folder / name
        if not path.exists():
            write(path, times, flashes=FLASHES, **facts)
        return path, [time - times[0] for time in times]

    return make


def fingerprints(pictures: Iterator[media.Picture]) -> list[tuple[int, int]]:
    """(ticks, hash of all decoded samples): equal only for the same picture, decoded without damage."""
    return [(picture.ticks, zlib.crc32(picture.image().tobytes())) for picture in pictures]


# --- the clock --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILMS)
def test_every_picture_comes_once_at_its_time_and_the_first_at_zero(film, name: str):
    path, times = film(name)
    shown = list(media.pictures(path))
    tick = shown[0].time + Fraction(1, 900) if path.suffix in (".mkv", ".webm", ".flv") else Fraction(1, 80000)
    assert shown[0].ticks == 0
    assert [number(picture.image()) for picture in shown] == list(range(len(times)))
    assert max(abs(picture.time - time) for picture, time in zip(shown, times, strict=True)) < tick


@pytest.mark.parametrize("name", FILMS)
def test_a_probe_tells_when_the_video_ends(film, name: str):
    path, times = film(name)
    video = media.probe(path).video
    assert video is not None
    if name != "vfr.mp4":  # its writer guessed how long the last picture stays
        last = 1 / FILMS[name].get("rate", Fraction(25))
        assert abs(video.duration - times[-1] - last) < Fraction(1, 500)
    assert (video.width, video.height, video.rotation) == (160, 96, 0)
    assert video.codec in ("h264", "hevc", "vp9", "mpeg2video", "mpeg4")


@pytest.mark.parametrize("name", [name for name, facts in FILMS.items() if "sound" in facts])
def test_a_click_is_heard_when_the_flash_is_seen(film, name: str):
    path, _ = film(name)
    flashes = [float(p.time) for p in media.pictures(path) if p.image()[-8:].min() > 200]
    assert len(flashes) == 3
    delay = CODEC_DELAY.get(name, 0)
    heard = media.audio(path)
    for flash in flashes:
        assert abs(onset(heard, 16000, flash - 0.3) - flash - delay) < 1e-3
        span = Span(Fraction(flash) - Fraction(1, 3), Fraction(flash) + Fraction(1, 3))
        part = media.audio(path, span)
        assert len(part) == round((span.end - span.start) * 16000)
        # Seeking in containers that keep whole milliseconds moves sound by up to one.
        assert abs(onset(part, 16000) - 1 / 3 - delay) < 1.1e-3


def test_a_probe_tells_where_sound_lies_on_the_pictures_clock(film):
    for name, start in (("late_sound.mkv", 0.5), ("late_video.mp4", -0.5), ("h264.mp4", 0)):
        audio = media.probe(film(name)[0]).audio
        assert audio is not None
        assert float(audio.start) == pytest.approx(start, abs=2e-3)
        assert audio.codec == "aac" and audio.sample_rate == 44100 and audio.channels == 1


def test_a_file_with_sound_alone_starts_at_its_first_sample(tmp_path: Path):
    path = tmp_path / "sound.wav"
    samples = (clicks(3, [1.0], 16000) * 32767).astype(np.int16)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("pcm_s16le", rate=16000, layout="mono")
        block = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        block.sample_rate = 16000
        out.mux(stream.encode(block))
        out.mux(stream.encode(None))
    facts = media.probe(path)
    assert facts.video is None and facts.duration == 3
    np.testing.assert_allclose(media.audio(path), samples / 32768, atol=1e-6)
    with pytest.raises(MediaError, match="has no video"):
        next(media.pictures(path))


# --- spans ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILMS)
def test_a_span_gives_the_very_pictures_of_a_full_decode(film, name: str):
    path, times = film(name)
    base = media.probe(path).video.time_base
    whole = fingerprints(media.pictures(path))
    rng = random.Random(name)
    for _ in range(4):
        start = Fraction(rng.randrange(0, 1000), 1000) * times[-1]
        span = Span(start, start + Fraction(rng.choice([1, 4, 30]), 20))
        wanted = [one for one in whole if span.start <= one[0] * base < span.end]
        assert fingerprints(media.pictures(path, span)) == wanted, f"{name} {span}"


def test_spans_of_real_footage_give_the_very_pictures_of_a_full_decode(footage: Path):
    rng = random.Random(7)
    chosen = [
        "multishot/opencv_Megamind.avi",  # packed B-frames
        "multishot/short_hamilton_clip.mp4",  # sound first
        "negative/pyfeat_no_face.mp4",  # an edit list cuts into a GOP
        "negative/pyfeat_face_noface.mov",  # hevc, variable rate
        "talking_head/talkvid_10_gt.mp4",
    ]
    for name in chosen:
        path = footage / name
        base = media.probe(path).video.time_base
        whole = fingerprints(media.pictures(path))
        start = Fraction(rng.randrange(1000), 1000) * whole[-1][0] * base
        span = Span(start, start + Fraction(3, 5))
        assert fingerprints(media.pictures(path, span)) == [
            one for one in whole if span.start <= one[0] * base < span.end
        ], name


def test_packed_b_frames_are_all_there_and_evenly_spaced(footage: Path):
    ticks = [picture.ticks for picture in media.pictures(footage / "multishot/opencv_Megamind.avi")]
    assert ticks == list(range(270))


def test_a_span_ends_before_the_picture_at_its_end(film):
    path, times = film("h264.mp4")
    shown = [number(p.image()) for p in media.pictures(path, Span(times[10], times[14]))]
    assert shown == [10, 11, 12, 13]
    through_floats = Span(Fraction(float(times[10]) + 1e-9), Fraction(float(times[14]) + 1e-9))
    assert [number(p.image()) for p in media.pictures(path, through_floats)] == shown


def test_spans_outside_the_film_are_empty(film):
    for name in ("h264.mp4", "long.ts", "h264.avi", "bare.h264"):
        path, _ = film(name)
        assert list(media.pictures(path, Span(Fraction(50), Fraction(60)))) == []
        assert list(media.pictures(path, Span(Fraction(10**30), Fraction(10**31)))) == []
        assert list(media.pictures(path, Span(Fraction(-2), Fraction(0)))) == []


def test_frames_hold_the_picture_that_is_on_show(film):
    path, times = film("vfr.mp4")
    start, fps = Fraction(7, 10), Fraction(25)
    shown = [number(image) for image in media.frames(path, Span(start, start + 2), fps)]
    wanted = [max(k for k, time in enumerate(times) if time <= start + k_ / fps) for k_ in range(50)]
    assert shown == wanted


def test_frames_stop_when_the_last_picture_has_been_shown(film):
    path, _ = film("h264.mp4")
    images = list(media.frames(path, Span(Fraction(39, 10), Fraction(6)), Fraction(50), size=(80, 48)))
    assert [number(image) for image in images] == [97, 98, 98, 99, 99]
    assert images[0].shape == (48, 80, 3)


def test_frames_of_a_real_clip_are_as_many_as_asked_for(footage: Path):
    span = Span(Fraction(1, 3), Fraction(1, 3) + Fraction(49, 25))
    assert sum(1 for _ in media.frames(footage / "talking_head/vrt_face4.mp4", span, size=(64, 64))) == 49


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "name", ["h264.mp4", "opengop.mp4", "hevc.mp4", "fragmented.mp4", "long.ts", "mpeg4.avi", "live.mkv"]
)
def test_less_decoding_gives_some_of_the_pictures_at_the_same_times(film, name: str, threads: int):
    path, _ = film(name)
    whole = [(p.ticks, number(p.image()), p.key) for p in media.pictures(path, threads=threads)]
    assert [number for _, number, _ in whole] == list(range(100))
    for decode in (Decode.REFERENCE, Decode.KEY):
        shown = [(p.ticks, number(p.image()), p.key) for p in media.pictures(path, decode=decode, threads=threads)]
        assert set(shown) <= set(whole) and shown == sorted(shown) and shown[0] == whole[0]
        assert len(shown) >= 20 or decode is Decode.KEY
    assert shown == [one for one in whole if one[2]]
    span = Span(Fraction(1), Fraction(3))
    late = [number(p.image()) for p in media.pictures(path, span, Decode.KEY, threads)]
    assert late == [number for _, number, key in whole if key and 25 <= number < 75]


def test_keyframes_of_real_footage_are_the_same_in_a_full_decode(footage: Path):
    for name in (
        "multi_speaker/visualvoice_interview.mp4",
        "multishot/opencv_Megamind.avi",
        "negative/pyfeat_no_face.mp4",
    ):
        whole = [p for p in media.pictures(footage / name) if p.key or p.ticks == 0]
        assert fingerprints(media.pictures(footage / name, decode=Decode.KEY)) == fingerprints(iter(whole)), name


# --- looks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
def test_pictures_come_upright(tmp_path: Path, rotation: int, mirrored: bool):
    path = write(tmp_path / "turned.mp4", CFR[:6], size=(320, 96), rotation=rotation, mirrored=mirrored)
    video = media.probe(path).video
    assert (video.rotation, video.mirrored) == (rotation, mirrored)
    assert (video.width, video.height) == ((96, 320) if rotation % 180 else (320, 96))
    image = list(media.pictures(path))[5].image()
    assert image.shape == (video.height, video.width, 3) and image.flags.c_contiguous
    stored = np.rot90(image[:, ::-1] if mirrored else image, rotation // 90)
    assert number(stored) == 5


def test_the_turn_is_clockwise(tmp_path: Path):
    path = write(tmp_path / "turned.mp4", CFR[:1], size=(320, 96), rotation=90, flashes=[0])
    image = next(media.pictures(path)).image()  # the white lower half ends up on the left
    assert image[:, :40].min() > 200 and image[:, 60:].mean() < 40


def test_pixels_come_out_square(tmp_path: Path, footage: Path):
    path = write(tmp_path / "wide.mp4", CFR[:2], sample_aspect_ratio=Fraction(16, 11), size=(176, 144))
    video = media.probe(path).video
    assert (video.width, video.height, video.coded_width) == (256, 144, 176)
    assert next(media.pictures(path)).image().shape == (144, 256, 3)
    assert next(media.pictures(path)).image(height=72).shape == (72, 128, 3)
    real = media.probe(footage / "multishot/psd_issue-195-aspect-ratio.mp4").video
    assert (real.width, real.height) == (1024, 576)


COLOURS = np.array([[200, 30, 40], [20, 180, 60], [30, 50, 190], [128, 128, 128], [240, 240, 240], [12, 12, 12]])


def coloured(path: Path, matrix: str, full: bool, tagged: bool, size: tuple[int, int], kind: str) -> Path:
    """Six bars of known colours, converted to YUV by the textbook."""
    kr, kb = {"709": (0.2126, 0.0722), "601": (0.299, 0.114)}[matrix]
    rgb = COLOURS / 255
    luma = kr * rgb[:, 0] + (1 - kr - kb) * rgb[:, 1] + kb * rgb[:, 2]
    blue, red = (rgb[:, 2] - luma) / (2 - 2 * kb), (rgb[:, 0] - luma) / (2 - 2 * kr)
    scale = (255, 0, 255) if full else (219, 16, 224)
    deep = 4 if "10" in kind else 1
    values = [luma * scale[0] + scale[1], blue * scale[2] + 128, red * scale[2] + 128]
    width, height = size
    frame = av.VideoFrame(width, height, kind)
    for plane, value in zip(frame.planes, values, strict=False):
        rows = np.frombuffer(plane, np.uint16 if deep > 1 else np.uint8)
        rows = rows.reshape(-1, plane.line_size // rows.itemsize)
        rows[: plane.height, : plane.width] = np.repeat(
            np.round(value * deep).astype(rows.dtype), plane.width // 6 + 1
        )[: plane.width]
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=25, options={"crf": "2"})
        video.width, video.height, video.pix_fmt = width, height, kind
        if tagged:
            video.codec_context.colorspace = 1 if matrix == "709" else 6
        video.codec_context.color_range = 2 if full else 1
        frame.color_range = 2 if full else 1
        frame.pts = 0
        out.mux(video.encode(frame))
        out.mux(video.encode(None))
    return path


@pytest.mark.parametrize(
    ("matrix", "full", "tagged", "size", "kind"),
    [
        ("601", False, True, (192, 96), "yuv420p"),
        ("709", False, True, (192, 96), "yuv420p"),
        ("709", True, True, (192, 96), "yuvj420p"),
        ("601", False, False, (192, 96), "yuv420p"),
        ("709", False, False, (1280, 720), "yuv420p"),  # untagged HD
        ("709", False, True, (192, 96), "yuv422p"),
        ("601", False, True, (192, 96), "yuv444p"),
        ("709", False, True, (192, 96), "yuv420p10le"),
    ],
)
def test_colours_follow_the_files_tags(tmp_path: Path, matrix: str, full: bool, tagged: bool, size, kind: str):
    path = coloured(tmp_path / "bars.mp4", matrix, full, tagged, size, kind)
    picture = next(media.pictures(path))
    for image in (picture.image(), picture.thumbnail(48)[:, :, ::-1]):
        bar = image.shape[1] // 6
        seen = [image[image.shape[0] // 2, bar * k + bar // 2].astype(int) for k in range(6)]
        assert np.abs(np.array(seen) - COLOURS).max() <= 6


@pytest.mark.parametrize("kind", ["yuv420p", "yuvj420p", "yuv422p", "yuv444p", "nv12", "yuv420p10le", "gray"])
def test_a_thumbnail_is_a_small_picture(tmp_path: Path, kind: str):
    path = write(tmp_path / "small.mp4", CFR[:8], size=(482, 270), pix_fmt=kind)
    *_, picture = media.pictures(path)
    small = picture.thumbnail(100)
    assert small.shape == (67, 120, 3) and small.dtype == np.uint8  # every fourth sample
    assert number(small) == 7
    assert np.abs(small[:, :, ::-1].astype(int) - picture.image(120, 67)).mean() < 8


def test_a_thumbnail_works_for_formats_without_planes(tmp_path: Path):
    path = write(tmp_path / "rgb.avi", CFR[:2], codec="rawvideo", pix_fmt="bgr24", time_base=Fraction(1, 25))
    *_, picture = media.pictures(path)
    assert picture.thumbnail(40).shape == (24, 40, 3) and number(picture.thumbnail(40)) == 1


def test_a_change_of_size_in_mid_stream_does_not_show(tmp_path: Path):
    first = write(tmp_path / "a.ts", CFR[:10], options={"bf": "0"})
    second = write(tmp_path / "b.ts", [t + 1 for t in CFR[:10]], options={"bf": "0"}, size=(320, 192))
    joined = tmp_path / "joined.ts"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    images = [(p.image(), p.thumbnail(100)) for p in media.pictures(joined)]
    assert len(images) == 20
    assert {image.shape for image, _ in images} == {(96, 160, 3)}
    assert {small.shape for _, small in images} == {(96, 160, 3)}
    assert [number(image) for image, _ in images] == [*range(10), *range(10)]


# --- sound ------------------------------------------------------------------------------------------------


def packets_of_sound(path: Path, blocks: list[tuple[float, np.ndarray]], layout: str = "mono") -> Path:
    """A mkv of 16 kHz PCM whose packets carry the given times."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("pcm_f32le", rate=16000, layout=layout)
        stream.codec_context.time_base = Fraction(1, 1000)
        for time, samples in blocks:
            block = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="flt", layout=layout)
            block.sample_rate, block.time_base, block.pts = 16000, Fraction(1, 1000), round(time * 1000)
            out.mux(stream.encode(block))
        out.mux(stream.encode(None))
    return path


def test_gaps_in_the_sound_are_silence_and_overlaps_are_heard_once(tmp_path: Path):
    half = np.full(1600, 0.5, np.float32)
    path = packets_of_sound(tmp_path / "gap.mkv", [(0, half), (0.1, half), (1.0, half / 2), (1.05, half)])
    heard = media.audio(path)
    assert len(heard) == round(1.15 * 16000)
    np.testing.assert_allclose(heard[:3200], 0.5, atol=1e-6)
    assert not heard[3200:16000].any()
    np.testing.assert_allclose(heard[16000:17600], 0.25, atol=1e-6)
    np.testing.assert_allclose(heard[17600:], 0.5, atol=1e-6)


def test_sound_whose_times_wobble_stays_whole(tmp_path: Path):
    tone = np.sin(np.arange(16000 * 2) * 0.1).astype(np.float32)
    wobble = [0, 0.004, -0.005, 0.01, -0.01] * 4
    blocks = [(k / 10 + wobble[k], tone[k * 1600 : (k + 1) * 1600]) for k in range(20)]
    np.testing.assert_allclose(media.audio(packets_of_sound(tmp_path / "wobble.mkv", blocks)), tone, atol=1e-6)


def test_channels_are_averaged(tmp_path: Path):
    both = np.tile(np.array([0.9, 0.9], np.float32), 1600)
    left = np.tile(np.array([0.8, 0.0], np.float32), 1600)
    heard = media.audio(packets_of_sound(tmp_path / "stereo.mkv", [(0, both), (0.1, left)], "stereo"))
    np.testing.assert_allclose(heard[:1600], 0.9, atol=1e-6)
    np.testing.assert_allclose(heard[1600:], 0.4, atol=1e-6)


def test_two_channels_are_kept_apart_on_request_and_a_single_one_is_heard_on_both(tmp_path: Path):
    random = np.random.default_rng(0)
    left, right = random.uniform(-0.5, 0.5, (2, 1600)).astype(np.float32)
    stereo = packets_of_sound(tmp_path / "stereo.mkv", [(0, np.stack([left, right], axis=1).ravel())], "stereo")
    mono = packets_of_sound(tmp_path / "mono.mkv", [(0, left)])
    np.testing.assert_allclose(media.audio(stereo, layout="stereo"), [left, right], atol=1e-6)
    np.testing.assert_allclose(media.audio(mono, layout="stereo"), [left, left], atol=1e-6)
    np.testing.assert_allclose(media.audio(stereo), (left + right) / 2, atol=1e-6)
    span = Span(Fraction(1, 20), Fraction(1, 5))
    np.testing.assert_allclose(
        media.audio(stereo, span, layout="stereo")[:, :800], [left[800:], right[800:]], atol=1e-6
    )
    assert media.audio(stereo, span, layout="stereo").shape == (2, 2400)
    assert not media.audio(stereo, span, layout="stereo")[:, 800:].any()


def test_a_film_without_sound_is_silent(film):
    path, _ = film("vfr.mp4")
    assert media.probe(path).audio is None
    heard = media.audio(path, Span(Fraction(1), Fraction(2)))
    assert heard.shape == (16000,) and heard.dtype == np.float32 and not heard.any()
    assert media.audio(path).shape == (0,)
    assert media.audio(path, layout="stereo").shape == (2, 0)


def test_sound_is_bounded_whatever_the_times_claim(tmp_path: Path, film):
    half = np.full(1600, 0.5, np.float32)
    path = packets_of_sound(tmp_path / "far.mkv", [(0, half), (900_000, half)])
    with pytest.raises(MediaError, match="more than 43200 s"):
        media.audio(path)
    with pytest.raises(MediaError, match="more than 2 s"):
        media.audio(film("h264.mp4")[0], Span(Fraction(0), Fraction(3)), limit_seconds=2)
    assert len(media.audio(path, Span(Fraction(0), Fraction(1)))) == 16000


def test_a_span_of_sound_is_the_slice_of_the_whole(tmp_path: Path):
    noise = np.random.default_rng(1).normal(0, 0.1, 44100 * 5).astype(np.float32)
    path = write(tmp_path / "noise.mov", CFR, options=GOP, sound=("pcm_s16le", 44100, noise, Fraction(0)))
    whole = media.audio(path)
    for start in (Fraction(5, 2), Fraction(37, 10)):
        part = media.audio(path, Span(start, start + 1))
        wanted = whole[round(start * 16000) :][:16000]
        np.testing.assert_allclose(part[: len(wanted)], wanted, atol=1e-3)


def test_a_span_of_real_sound_is_the_slice_of_the_whole(footage: Path):
    for name in (
        "multishot/opencv_Megamind.avi",
        "negative/moviepy_chaplin_silentfilm_music.mp4",
        "talking_head/psychopy_jwpIntro.mp4",
        "multi_speaker/pyannote_sample.wav",
    ):
        whole = media.audio(footage / name)
        part = media.audio(footage / name, Span(Fraction(3), Fraction(5)))
        assert np.corrcoef(part, whole[48000:80000])[0, 1] > 0.995, name  # aac fills bands with noise


# --- writing ----------------------------------------------------------------------------------------------


def test_what_is_written_is_read_back(tmp_path: Path):
    path = tmp_path / "out.mp4"
    images = [numbered(k, flash=k == 25) for k in range(50)]
    media.encode(path, iter(images), Fraction(25), clicks(2, [1.0], 16000), 16000)
    facts = media.probe(path)
    assert facts.video.codec == "h264" and facts.video.fps == 25 and facts.video.duration == 2
    assert facts.audio.codec == "aac" and facts.audio.sample_rate == 16000
    back = list(media.frames(path, Span(Fraction(0), Fraction(2))))
    assert [number(image) for image in back] == list(range(50))
    error = np.mean([(a.astype(float) - b) ** 2 for a, b in zip(back, images, strict=True)])
    assert 10 * np.log10(255**2 / error) > 30
    assert abs(onset(media.audio(path), 16000) - 1) < 1e-3
    stored = path.read_bytes()
    assert stored.index(b"moov") < stored.index(b"mdat")
    media.encode(tmp_path / "again.mp4", images, Fraction(25), clicks(2, [1.0], 16000), 16000)
    assert (tmp_path / "again.mp4").read_bytes() == stored


def test_written_colours_are_bt709_and_come_back(tmp_path: Path):
    image = np.repeat(np.repeat(COLOURS.astype(np.uint8)[None], 96, 0), 32, 1)
    media.encode(tmp_path / "bars.mp4", [image] * 3, Fraction(25), crf=4)
    back = next(media.pictures(tmp_path / "bars.mp4"))
    assert back.frame.colorspace == 1
    assert np.abs(back.image()[48, 16::32].astype(int) - COLOURS).max() <= 5


def test_a_film_that_cannot_be_finished_leaves_nothing_behind(tmp_path: Path):
    def torn() -> Iterator[np.ndarray]:
        yield from map(numbered, range(120))  # enough for the encoder to have begun the file
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        media.encode(tmp_path / "out.mp4", torn(), Fraction(25))
    with pytest.raises(MediaError, match=r"even sizes, not 161x96; crop or pad"):
        media.encode(tmp_path / "out.mp4", [numbered(0, 161)], Fraction(25))
    with pytest.raises(MediaError, match="frame 1 is"):
        media.encode(tmp_path / "out.mp4", [numbered(0), numbered(1, 320)], Fraction(25))
    with pytest.raises(MediaError, match="no frames"):
        media.encode(tmp_path / "out.mp4", [], Fraction(25))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(MediaError, match="cannot be written"):
        media.encode(tmp_path / "absent" / "out.mp4", [numbered(0)], Fraction(25))


# --- hostile and damaged files ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["-i.mp4", "a:b.mp4", "http:x.mp4", "clip%03d.mp4", "concat:a|b.mp4", "pipe:0", "a?b#c.mp4", "ü\n.mp4"]
)
def test_any_file_name_is_just_a_name(film, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    (tmp_path / name).write_bytes(film("h264.mp4")[0].read_bytes())
    monkeypatch.chdir(tmp_path)
    assert media.probe(name).video.frames == 100
    media.encode(f"out{name}", [numbered(0)], Fraction(25))
    assert media.probe(f"out{name}").video.frames == 1


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:4,\n{film}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile {film}\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5000 RTP/AVP 96\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
    '<Representation id="1"><BaseURL>{film}</BaseURL></Representation></AdaptationSet></Period></MPD>',
}


@pytest.mark.parametrize("kind", PLAYLISTS)
@pytest.mark.parametrize("suffix", [".mp4", ".m3u8", ".ffconcat", ".sdp", ".mpd"])
def test_playlists_are_not_followed_under_any_name(film, tmp_path: Path, kind: str, suffix: str):
    path = tmp_path / f"list{suffix}"
    path.write_text(PLAYLISTS[kind].format(film=film("opengop.ts")[0]))
    for source in (path, io.BytesIO(path.read_bytes())):
        with pytest.raises(MediaError):
            media.probe(source)


def test_what_is_no_file_is_refused_in_plain_words(tmp_path: Path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no film\n" * 99)
    for name, words in {
        ".": "not a file",
        "fifo": "not a file",
        "dangling": "No such file",
        "absent.mp4": "No such file",
        "empty.mp4": "the file is empty",
        "text.mp4": "cannot be read as video or sound",
        "a\0b": "no file can have this name",
    }.items():
        for read in (media.probe, lambda path: next(media.pictures(path)), media.audio):
            with pytest.raises(MediaError, match=words):
                read(tmp_path / name)


def test_a_file_object_is_as_good_as_a_path(film):
    path, _ = film("opengop.ts")
    span = Span(Fraction(2), Fraction(5, 2))
    with path.open("rb") as file:
        assert fingerprints(media.pictures(file, span)) == fingerprints(media.pictures(path, span))
        assert media.probe(file).video == media.probe(path).video
        np.testing.assert_array_equal(media.audio(file), media.audio(path))
        assert not file.closed
    heard = media.audio(io.BytesIO(path.read_bytes()), span)
    np.testing.assert_allclose(heard, media.audio(path, span), atol=0.05)


def test_pictures_too_large_to_hold_are_refused(film, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(media, "MAX_PIXELS", 100 * 100)
    with pytest.raises(MediaError, match="announces 160x96 pixels; at most 10000"):
        media.probe(film("h264.mp4")[0])
    monkeypatch.undo()
    path = write(tmp_path / "sar.mp4", CFR[:1], sample_aspect_ratio=Fraction(255), size=(1280, 720))
    with pytest.raises(MediaError, match="announces"):
        media.probe(path)
    jpeg = bytearray(write(tmp_path / "j.avi", CFR[:1], codec="mjpeg", pix_fmt="yuvj420p").read_bytes())
    size = jpeg.index(b"\xff\xc0") + 5
    jpeg[size : size + 4] = b"\xfd\xe8\xfd\xe8"  # 65000 x 65000
    (tmp_path / "j.avi").write_bytes(jpeg)
    with pytest.raises(MediaError):
        list(media.pictures(tmp_path / "j.avi"))


def test_a_cut_off_film_gives_what_it_has_and_ends(tmp_path: Path):
    whole = write(tmp_path / "whole.mp4", CFR, options=GOP, container={"movflags": "+faststart"})
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    shown = [number(picture.image()) for picture in media.pictures(path)]
    assert 20 < len(shown) < 100 and shown[:-2] == list(range(len(shown) - 2))
    assert media.probe(path).video.duration == 4  # as its index says


def test_pictures_go_on_after_damage(film, tmp_path: Path):
    path, _ = film("opengop.ts")
    stored = bytearray(path.read_bytes())
    middle = len(stored) // 2
    stored[middle : middle + 3000] = bytes(3000)
    (tmp_path / "hole.ts").write_bytes(stored)
    shown = [number(picture.image()) for picture in media.pictures(tmp_path / "hole.ts")]
    assert 60 < len(shown) < 100 and shown[0] == 0 and shown[-1] == 99


def test_a_film_of_which_nothing_can_be_decoded_is_an_error(film, tmp_path: Path):
    stored = bytearray(film("h264.mp4")[0].read_bytes())
    start, end = stored.index(b"mdat") + 4, stored.index(b"moov") - 4
    stored[start:end] = bytes(end - start)
    (tmp_path / "hollow.mp4").write_bytes(stored)
    with pytest.raises(MediaError, match="no picture of its video can be decoded"):
        list(media.pictures(tmp_path / "hollow.mp4"))


def test_one_wild_time_stamp_costs_one_picture_and_one_packet_of_sound(film, tmp_path: Path):
    stored = bytearray(film("h264.flv")[0].read_bytes())
    at, seen = 13, {8: 0, 9: 0}
    while at < len(stored):
        kind, size = stored[at], int.from_bytes(stored[at + 1 : at + 4], "big")
        if kind in seen:
            seen[kind] += 1
            if seen[kind] == 60:
                stored[at + 7] = 1  # 2 ** 24 ms, 4.7 hours, later
        at += size + 15
    path = tmp_path / "wild.flv"
    path.write_bytes(stored)
    shown = list(media.pictures(path))
    assert len(shown) == 99 and shown[-1].time == Fraction(99, 25)
    heard = media.audio(path)
    assert len(heard) / 16000 == pytest.approx(4.02, abs=0.01)
    assert onset(heard, 16000, 2.5) == pytest.approx(3, abs=1e-3)


def test_a_stream_that_turns_up_late_does_no_harm(film, tmp_path: Path):
    text = b"\x02\x00\x0aonTextData\x08\x00\x00\x00\x01\x00\x04text\x02\x00\x02hi\x00\x00\x09"
    head = bytes([18]) + len(text).to_bytes(3, "big") + (4000).to_bytes(3, "big") + bytes(4)
    stored = film("h264.flv")[0].read_bytes() + head + text + (11 + len(text)).to_bytes(4, "big")
    (tmp_path / "late.flv").write_bytes(stored)
    assert len(list(media.pictures(tmp_path / "late.flv"))) == 100


def streams_of(path: Path, levels: dict[float, av.stream.Disposition], cover: bool, video: bool) -> Path:
    """A film of one picture, with or without cover art, and tones of the given loudness."""
    with av.open(str(path), "w", options={"default_mode": "passthrough"} if path.suffix == ".mkv" else {}) as out:
        packets = []
        for wanted, codec, kind, size in (
            (cover, "mjpeg", "yuvj420p", (64, 64)),
            (video, "libx264", "yuv420p", (160, 96)),
        ):
            if wanted:
                stream = out.add_stream(codec, rate=25)
                stream.width, stream.height, stream.pix_fmt = *size, kind
                if codec == "mjpeg":
                    stream.disposition = av.stream.Disposition.attached_pic
                packets.append((stream, av.VideoFrame.from_ndarray(numbered(5, *size), format="rgb24")))
        for level, disposition in levels.items():
            track = out.add_stream("aac", rate=16000, layout="mono")
            track.disposition = disposition
            tone = level * np.sin(np.arange(6400) * 0.3, dtype=np.float32)[None]
            packets.append((track, av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")))
            packets[-1][1].sample_rate = 16000
        encoded = []
        for stream, frame in packets:
            frame.pts = 0
            if isinstance(frame, av.VideoFrame):
                frame = frame.reformat(format=stream.pix_fmt)
            encoded += stream.encode(frame) + stream.encode(None)
        for packet in encoded:
            out.mux(packet)
    return path


def test_cover_art_is_no_video(tmp_path: Path):
    default = av.stream.Disposition.default
    song = streams_of(tmp_path / "song.mp4", {0.5: default}, cover=True, video=False)
    assert media.probe(song).video is None and media.probe(song).audio is not None
    film = streams_of(tmp_path / "film.mp4", {0.5: default}, cover=True, video=True)
    assert [number(picture.image()) for picture in media.pictures(film)] == [5]


def test_the_default_sound_is_heard(tmp_path: Path):
    none, default = av.stream.Disposition(0), av.stream.Disposition.default
    film = streams_of(tmp_path / "film.mkv", {0.1: none, 0.5: default}, cover=False, video=True)
    assert np.abs(media.audio(film)).max() > 0.4
    film = streams_of(tmp_path / "first.mkv", {0.1: none, 0.5: none}, cover=False, video=True)
    assert np.abs(media.audio(film)).max() < 0.2


def damaged(stored: bytes, rng: random.Random) -> bytes:
    """Cut off, bits turned, zeroed, shifted, or a wrong head."""
    data = bytearray(stored)
    kind = rng.choice(["cut", "turn", "zero", "shift", "head"])
    at = rng.randrange(len(data))
    if kind == "cut":
        del data[at:]
    elif kind == "turn":
        for _ in range(rng.choice([1, 20, 200])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "zero":
        end = min(len(data), at + rng.randrange(1, len(data) // 2))
        data[at:end] = bytes(end - at)
    elif kind == "shift":
        data[at:at] = data[:997]
    else:
        for _ in range(8):
            data[rng.randrange(600)] = rng.choice([0, 127, 128, 255])
    return bytes(data)


@pytest.mark.parametrize("name", ["h264.mp4", "hevc.mp4", "mp3.mkv", "opengop.ts", "mpeg4.avi", "vp9.webm", "h264.flv"])
def test_damaged_films_give_fewer_pictures_or_a_media_error(film, tmp_path: Path, name: str):
    path, _ = film(name)
    rng = random.Random(name)
    span = Span(Fraction(1), Fraction(2))
    for _ in range(8):
        broken = tmp_path / name
        broken.write_bytes(damaged(path.read_bytes(), rng))
        for read in (
            lambda source: media.probe(source),
            lambda source: [p.thumbnail(80) for p in media.pictures(source)],
            lambda source: list(media.pictures(source, span, Decode.KEY)),
            lambda source: list(media.frames(source, span)),
            lambda source: media.audio(source),
            lambda source: media.audio(source, span),
        ):
            try:
                assert len(read(broken)) <= 4.2 * 16000 if read is media.audio else True
            except MediaError as error:
                assert name in str(error)


def test_ffmpegs_own_words_reach_stderr(film, tmp_path: Path):
    """They are kept with a failure as its log."""
    stored = bytearray(film("h264.mp4")[0].read_bytes())
    start, end = stored.index(b"mdat") + 4, stored.index(b"moov") - 4
    stored[start:end] = bytes(end - start)
    (tmp_path / "hollow.mp4").write_bytes(stored)
    code = "import sys; from model import media; media.probe(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "hollow.mp4")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "[h264 @" in done.stderr and "MediaError" in done.stderr
