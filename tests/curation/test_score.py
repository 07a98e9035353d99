"""A clip's metrics: all of them where they can be measured, and nulls with a reason where not."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch

from curation.backends.syncnet import Cropper, crops
from curation.config import ScoreConfig
from curation.stages.link import Scored
from curation.stages.score import RATE, Score
from manifests.bounds import BoundError
from manifests.schema import Metrics, Track, Turn
from manifests.store import to_arrow
from model import media, weights
from tests.curation.clips import clip
from tests.curation.syncnet_package import Published

FPS = Fraction(25)
EDGES = ("left", "top", "right", "bottom")


@pytest.fixture(scope="module")
def score() -> Score:
    return Score(ScoreConfig())


@pytest.fixture(scope="module")
def speaker() -> Path:
    """A man talks to the camera for 5.8 s, 640 x 480, 29.97 pictures a second."""
    return weights.path("psychopy-jwpIntro")


@pytest.fixture(scope="module")
def pictures(speaker) -> list[np.ndarray]:
    """The first five seconds of him at 25 pictures a second."""
    return list(media.frames(speaker, media.Span(Fraction(0), Fraction(5)), FPS))


@pytest.fixture(scope="module")
def sound(speaker) -> np.ndarray:
    return media.audio(speaker, media.Span(Fraction(0), Fraction(5)), RATE)


@pytest.fixture(scope="module")
def upright(score, pictures, sound, tmp_path_factory) -> Scored:
    """Those five seconds, encoded at 25 pictures a second, and scored."""
    path = tmp_path_factory.mktemp("plain") / "plain.mp4"
    media.encode(path, pictures, FPS, sound, RATE)
    return scored(score, path)


@pytest.fixture(scope="module")
def plain(upright) -> Metrics:
    return upright.metrics


def scored(score: Score, path: Path, speech: tuple[float, float] | None = None) -> Scored:
    """The file scored as one clip in which somebody speaks throughout, or from .. to."""
    film = clip(path)
    start, end = speech or (film.start, film.end)
    return score(path, film, [Turn("v", start, end, "S0", 0, 0, 0, None, None, None)])


def reasons(metrics: Metrics) -> dict[str, str]:
    """Why each column is null."""
    lines = (line.split(": ", 1) for line in metrics.unmeasured)
    return {column: reason for columns, reason in lines for column in columns.split(", ")}


def nulls(metrics: Metrics) -> set[str]:
    return {name for name, value in vars(metrics).items() if value is None}


LINKED = {"person", "binding", "speaker_person"}  # what is known only beside the video's other clips
SYNCNET = {"sync_c", "sync_d", "sync_offset"}


def test_everything_is_measured_of_a_man_who_talks_to_the_camera(plain):
    assert nulls(plain) == LINKED | SYNCNET | {"binding_margin", "text_share", "music_share"}
    assert plain.faces_max == 1 and plain.face_share == 1 and plain.landmark_share == 1
    assert plain.yaw_abs < 15 and plain.camera_pan < 0.02 and plain.identity_min > 0.92
    assert plain.lip_sync > 0.6 and abs(plain.lip_offset) < 2
    assert plain.speech_share == 1 and plain.overlap_share == 0 and plain.speakers == 1
    assert 0.2 < plain.face_ratio < 0.8 and plain.face_px == pytest.approx(plain.face_ratio * 480, rel=0.05)


def test_what_is_said_of_the_face_is_what_its_track_says_frame_by_frame(upright):
    [track], found = upright.tracks, upright.metrics
    for angle in ("yaw", "pitch", "roll"):
        assert np.mean(np.abs(getattr(track, angle))) == pytest.approx(getattr(found, f"{angle}_abs"), abs=1e-6)
    edges = [min(track.left) / 640, min(track.top) / 480, max(track.right) / 640, max(track.bottom) / 480]
    assert found.crop == pytest.approx(edges, abs=1e-6)
    assert found.face_px == pytest.approx(np.median(np.subtract(track.bottom, track.top)), rel=1e-6)
    lips, face = (np.array([getattr(track, f"{part}{edge}") for edge in EDGES]) for part in ("lips_", ""))
    assert (lips[:2] > face[:2]).all() and (lips[2:] < face[2:] + 5).all()
    assert len(track.points) == len(track.left) * 10
    assert track.lip_sync == found.lip_sync and found.track == track.track


def test_no_metric_is_not_a_number(plain):
    assert not [name for name, value in vars(plain).items() if isinstance(value, float) and not math.isfinite(value)]


def test_the_same_clip_gives_the_same_bytes_twice(score, speaker):
    first, second = (scored(score, speaker) for _ in range(2))
    assert first.metrics == second.metrics
    assert to_arrow(Track, first.tracks).equals(to_arrow(Track, second.tracks))
    assert all(np.array_equal(a, b) for a, b in zip(first.faces, second.faces, strict=True))


def test_a_clip_without_sound_has_no_metrics_of_sound_and_all_of_the_picture(score, pictures, plain, tmp_path):
    media.encode(tmp_path / "silent.mp4", pictures, FPS)
    metrics = scored(score, tmp_path / "silent.mp4").metrics
    missing = {"level", "clipped", "dnsmos_sig", "dnsmos_bak", "dnsmos_ovr", "lip_sync", "lip_offset"}
    assert nulls(metrics) - nulls(plain) == missing
    assert {reasons(metrics)[column] for column in missing} == {"no sound"}
    assert metrics.yaw_abs == pytest.approx(plain.yaw_abs, abs=0.1)


def test_digital_silence_is_heard_as_such(score, pictures, tmp_path):
    media.encode(tmp_path / "still.mp4", pictures, FPS, np.zeros(5 * RATE, np.float32), RATE)
    metrics = scored(score, tmp_path / "still.mp4").metrics
    assert metrics.level == -100 and metrics.dnsmos_ovr is None and metrics.lip_sync is None
    assert reasons(metrics)["dnsmos_ovr"] == "silent" and "silent" in reasons(metrics)["lip_sync"]


def test_a_face_that_leaves_is_measured_while_it_is_there(score, pictures, sound, plain, tmp_path):
    empty = np.full_like(pictures[0], 90)
    media.encode(tmp_path / "leaves.mp4", [*pictures[:60], *[empty] * 65], FPS, sound, RATE)
    metrics = scored(score, tmp_path / "leaves.mp4").metrics
    assert metrics.face_share == pytest.approx(60 / 125, abs=0.05)
    assert metrics.landmark_share == pytest.approx(60 / 125, abs=0.05)
    assert metrics.yaw_abs == pytest.approx(plain.yaw_abs, abs=3)
    assert metrics.lip_sync is None and "landmarks in 4" in reasons(metrics)["lip_sync"]


def test_black_pictures_have_no_face_and_no_numbers_made_up(score, tmp_path):
    media.encode(
        tmp_path / "black.mp4", [np.zeros((180, 320, 3), np.uint8)] * 60, FPS, np.zeros(38400, np.float32), RATE
    )
    metrics = scored(score, tmp_path / "black.mp4").metrics
    assert (metrics.faces_max, metrics.luminance) == (0, 0) and metrics.track is None
    assert reasons(metrics)["yaw_abs"] == reasons(metrics)["face_px"] == reasons(metrics)["lip_sync"] == "no face"
    assert metrics.camera_pan is None and metrics.letterbox is None
    assert reasons(metrics)["camera_pan"].startswith("the background can be followed in 0%")


@pytest.mark.parametrize("frames", [1, 2, 10])
def test_a_clip_shorter_than_any_window_is_no_error(score, pictures, sound, frames, tmp_path):
    media.encode(tmp_path / "short.mp4", pictures[:frames], FPS, sound[2 * RATE :][: frames * RATE // 25], RATE)
    metrics = scored(score, tmp_path / "short.mp4").metrics
    assert metrics.status == "scored" and metrics.face_share == 1
    assert {"lip_sync", "dnsmos_ovr"} <= nulls(metrics) and "shorter than" in reasons(metrics)["lip_sync"]


def test_sound_that_is_planted_late_is_found_so(score, pictures, sound, plain, tmp_path):
    late = np.concatenate([np.zeros(6 * RATE // 25, np.float32), sound])[: len(sound)]
    media.encode(tmp_path / "late.mp4", pictures, FPS, late, RATE)
    metrics = scored(score, tmp_path / "late.mp4").metrics
    assert metrics.lip_offset == pytest.approx(plain.lip_offset - 6, abs=1)


def test_shares_of_speech_come_from_the_turns(score, speaker):
    film = clip(speaker)
    turns = [Turn("v", a, b, who, 0, 0, 0, None, None, None) for a, b, who in [(-1, 2, "S0"), (1, 3, "S1")]]
    metrics = score(speaker, film, turns).metrics
    assert metrics.speech_share == pytest.approx(3 / film.duration)
    assert metrics.overlap_share == pytest.approx(1 / film.duration)
    assert metrics.speakers == 2


def test_writing_is_looked_for_on_request(tmp_path):
    empty = np.full((360, 640, 3), 90, np.uint8)
    titled = cv2.putText(empty.copy(), "Burnt into it", (40, 330), cv2.FONT_HERSHEY_SIMPLEX, 1.5, (255, 255, 255), 3)
    looking = Score(ScoreConfig(text=True))
    for name, shown in (("empty", empty), ("titled", titled)):
        media.encode(tmp_path / f"{name}.mp4", [shown] * 25, FPS)
    found = [scored(looking, tmp_path / f"{name}.mp4").metrics.text_share for name in ("empty", "titled")]
    assert found[0] == 0 and found[1] > 0.04


def test_music_is_listened_for_on_request(footage, tmp_path):
    listening = Score(ScoreConfig(music=str(footage.parent / "weights" / "audio")))
    still = [np.full((64, 64, 3), 90, np.uint8)] * 75
    tune = media.audio(footage / "negative/liveportrait_s13_dance_music.mp4")[: 3 * 16_000]
    media.encode(tmp_path / "tune.mp4", still, FPS, tune, 16_000)
    assert scored(listening, tmp_path / "tune.mp4").metrics.music_share > 0.8


def test_a_cascade_spares_the_pictures_of_clips_whose_sound_is_out_of_bounds(speaker, plain):
    strict = Score(ScoreConfig(cascade=["speech_share>=0.5", "dnsmos_bak>=4.9"]))
    found = scored(strict, speaker)
    assert found.metrics.status == "stopped" and found.tracks == [] and found.metrics.face_share is None
    assert found.metrics.dnsmos_bak == pytest.approx(plain.dnsmos_bak, abs=0.3)
    assert found.metrics.unmeasured == [
        "music_share: score.music names no network",
        f"the picture: not looked at, as dnsmos_bak is {found.metrics.dnsmos_bak:.3g} "
        "and dnsmos_bak>=4.9 was asked for",
    ]


def test_a_cascade_cannot_ask_for_what_only_the_pictures_tell():
    with pytest.raises(BoundError, match="face_px"):
        Score(ScoreConfig(cascade=["face_px>=100"]))


def test_turned_footage_gives_what_upright_footage_gives(score, pictures, plain, tmp_path):
    turned = [np.ascontiguousarray(np.rot90(picture)) for picture in pictures]
    times = [n / FPS for n in range(len(pictures))]
    path = written(tmp_path / "turned.mp4", turned, times, rotation=90)
    assert (media.probe(path).video.width, media.probe(path).video.rotation) == (640, 90)
    same(scored(score, path).metrics, plain)


def test_with_weights_syncnet_scores_the_bound_face(score, speaker, tmp_path):
    torch.manual_seed(0)
    torch.save(Published().state_dict(), tmp_path / "syncnet_v2.model")
    metrics = scored(Score(ScoreConfig(syncnet=str(tmp_path / "syncnet_v2.model"))), speaker).metrics
    assert not {"sync_c", "sync_d", "sync_offset"} & nulls(metrics)
    assert metrics.sync_d > 0 and -15 <= metrics.sync_offset <= 15


def test_crops_cut_as_frames_come_are_those_cut_with_all_boxes_known(pictures):
    path = np.linspace(0, 60, 40)[:, None] + [150.0, 100, 390, 380]
    boxes_T4 = path + np.random.default_rng(0).normal(0, 5, (40, 4))
    cropper = Cropper()
    for picture, box in zip(pictures, boxes_T4, strict=False):
        cropper.see(picture, box)
    assert np.array_equal(cropper.finish(), list(crops(pictures[:40], boxes_T4)))


# --- the clock and the shape of the picture -------------------------------------------------------------------

TOLERANCE = {
    **dict.fromkeys(("yaw_abs", "pitch_abs", "roll_abs", "yaw_p95", "pitch_p95", "roll_p95"), 1.0),
    **dict.fromkeys(("face_share", "landmark_share"), 0.02),
    **dict.fromkeys(("face_ratio", "subject_motion", "background_motion", "camera_pan"), 0.01),
    **dict.fromkeys(("head_travel_speed", "mouth_motion", "dnsmos_bak", "dnsmos_ovr", "lip_sync"), 0.1),
    **{"identity_mean": 0.01, "luminance": 2.0, "level": 0.3, "lip_offset": 0.5, "head_rotation_speed": 4.0},
}


def written(
    path: Path, pictures: list[np.ndarray], times: list[Fraction], codec: str = "libx264", **look: object
) -> Path:
    """Pictures shown at given times; look: rotation (degrees, anticlockwise as stored) or sample_aspect_ratio."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30)
        height, width = pictures[0].shape[:2]
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 90000)
        stream.options = {"crf": "16"} | ({"x265-params": "log-level=none"} if "265" in codec else {})
        if "rotation" in look:
            stream.set_display_rotation(-look["rotation"])
        if "sample_aspect_ratio" in look:
            stream.codec_context.sample_aspect_ratio = look["sample_aspect_ratio"]
        for picture, time in zip(pictures, times, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = round(time * 90000), Fraction(1, 90000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def same(metrics: Metrics, plain: Metrics) -> None:
    off = {
        name: (getattr(metrics, name), getattr(plain, name))
        for name, most in TOLERANCE.items()
        if getattr(metrics, name) is not None and abs(getattr(metrics, name) - getattr(plain, name)) > most
    }
    assert not off


def test_footage_at_29_97_gives_what_its_25_fps_encoding_gives(score, speaker, plain):
    same(score(speaker, clip(speaker, 0.0, 5.0), [Turn("v", 0, 5, "S0", 0, 0, 0, None, None, None)]).metrics, plain)


def test_a_varying_rate_gives_what_25_fps_gives(score, pictures, plain, tmp_path):
    kept = [n for n in range(len(pictures)) if n % 7 != 3]
    path = written(tmp_path / "vfr.mp4", [pictures[n] for n in kept], [n / FPS for n in kept])
    same(scored(score, path).metrics, plain)


def test_hevc_gives_what_h264_gives(score, pictures, plain, tmp_path):
    times = [n / FPS for n in range(len(pictures))]
    same(scored(score, written(tmp_path / "hevc.mp4", pictures, times, "libx265")).metrics, plain)


def test_non_square_pixels_give_what_square_ones_give(score, pictures, plain, tmp_path):
    narrow = [cv2.resize(picture, (480, 480), interpolation=cv2.INTER_AREA) for picture in pictures]
    times = [n / FPS for n in range(len(pictures))]
    path = written(tmp_path / "wide.mp4", narrow, times, sample_aspect_ratio=Fraction(4, 3))
    assert media.probe(path).video.width == 640
    same(scored(score, path).metrics, plain)
