"""Music is found, also under speech, and speech is none."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from curation.backends.music import MusicDetector, normalisation
from model import media

RATE = 16_000


@pytest.fixture(scope="module")
def folder() -> Path:
    place = Path(__file__).resolve().parents[3] / "shared" / "weights" / "audio"
    if not place.is_dir():
        pytest.skip("../shared/weights/audio is not there")
    return place


@pytest.fixture(scope="module")
def music(folder) -> MusicDetector:
    return MusicDetector(folder)


def sound(film: Path, seconds: float = 10) -> np.ndarray:
    return media.audio(film)[: round(seconds * RATE)]


@pytest.mark.parametrize("talk", ["sv_head4", "latentsync_demo1", "psychopy_jwpIntro", "May_5s"])
def test_speech_alone_is_no_music(music, footage, talk):
    assert music(sound(footage / f"talking_head/{talk}.mp4")) < 0.02


def test_music_alone_is_music(music, footage):
    assert music(sound(footage / "negative/liveportrait_s13_dance_music.mp4")) > 0.9


@pytest.mark.parametrize(("decibels", "least"), [(0, 0.8), (10, 0.8), (20, 0.3)])
def test_music_under_speech_is_found(music, footage, decibels, least):
    """decibels: how much softer than the speech it is."""
    speech = sound(footage / "talking_head/sv_head4.mp4")
    tune = np.resize(sound(footage / "negative/liveportrait_s13_dance_music.mp4", 4), len(speech))
    gain = np.sqrt(np.mean(speech**2) / np.mean(tune**2)) * 10 ** (-decibels / 20)
    assert music((speech + gain * tune).astype(np.float32)) > least


def test_the_statistics_are_read_as_kaldi_writes_them(tmp_path):
    values = np.random.default_rng(0).normal([[3.0, -2.0]], [[2.0, 0.5]], (1000, 2))
    sums = np.array([[*values.sum(0), 1000], [*(values**2).sum(0), 0]])
    header = b"\0BDM " + struct.pack("<bi", 4, 2) + struct.pack("<bi", 4, 3)
    (tmp_path / "cmvn.ark").write_bytes(header + sums.tobytes())
    mean, deviation = normalisation(tmp_path / "cmvn.ark")
    assert mean == pytest.approx(values.mean(0)) and deviation == pytest.approx(values.std(0))


@pytest.mark.parametrize("content", [b"", b"\0BDM ", b"no matrix at all", b"\0BDM \4\2\0\0\0\4\x51\0\0\0short"])
def test_a_file_of_something_else_is_named(tmp_path, content):
    (tmp_path / "cmvn.ark").write_bytes(content)
    with pytest.raises(ValueError, match=r"cmvn\.ark: not the sums"):
        normalisation(tmp_path / "cmvn.ark")


def test_a_folder_without_the_network_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds no fireredvad_aed\.onnx"):
        MusicDetector(tmp_path)
