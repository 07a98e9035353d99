"""A separator's network is given the sound as it was trained on it, and the voice comes back where it was."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal

from model.encoders.speech import FormatError
from model.encoders.vocals import KNOWN, RATE, Published, VocalSeparator, windows
from tests.model.memory import most_held
from tests.model.separators import LEFT, NEITHER, RIGHT, SHAPE, blurred, rectified, scaled, written

FFT = 7680
TONES = np.array([110.0, 440.0, 1000.0, 3500.0, 6000.0])
"""Hz; all of them in what 16 kHz can say."""
PHASES = np.array([0.1, 1.2, 2.3, 3.4, 4.5])


def tones(seconds: float, rate: int) -> np.ndarray:
    """The same sound at any rate, faded in and out: float32 [ceil(seconds × rate)]."""
    time_N = np.arange(int(np.ceil(round(seconds * rate, 3)))) / rate
    waves_N = np.cos(2 * np.pi * TONES[:, None] * time_N + PHASES[:, None]).sum(axis=0)
    return (0.1 * waves_N * np.sin(np.pi * np.clip(time_N / seconds, 0, 1)) ** 2).astype(np.float32)


def noise(count: int, seed: int = 0) -> np.ndarray:
    """Different noise on either side."""
    return np.random.default_rng(seed).normal(0, 0.1, (2, count)).astype(np.float32)


def smaller(frames: int) -> tuple[int | str, ...]:
    return (*SHAPE[:3], frames)


# What a network makes of the sound ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory) -> VocalSeparator:
    return VocalSeparator(scaled(tmp_path_factory.mktemp("networks") / "unchanged.onnx"), FFT)


@pytest.mark.parametrize("seconds", [0.1, 1.96, 5.7, 5.8, 5.9, 10.4, 60])
def test_a_network_that_changes_nothing_gives_the_sound_back_at_16_kHz(unchanged, seconds):
    """One window lasts 5.8 s."""
    voice_N = unchanged(tones(seconds, RATE))
    expected_N = tones(seconds, 16_000)
    assert voice_N.shape == expected_N.shape and voice_N.dtype == np.float32
    assert np.abs(voice_N - expected_N).max() < 0.004 * np.abs(expected_N).max()


def test_both_sides_count_alike_and_mono_is_heard_on_both(tmp_path, unchanged):
    left_N, right_N = noise(30_000)
    stereo_N = unchanged(np.stack([left_N, right_N]))
    assert np.allclose(stereo_N, unchanged((left_N + right_N) / 2), atol=1e-6)
    assert np.allclose(stereo_N, unchanged(np.stack([right_N, left_N])), atol=1e-6)
    for planes, kept_N in ((LEFT, left_N), (RIGHT, right_N)):
        one = VocalSeparator(scaled(tmp_path / "one.onnx", planes), FFT)
        assert np.allclose(one(np.stack([left_N, right_N])), unchanged(kept_N) / 2, atol=1e-6)


def test_a_network_that_hears_no_voice_leaves_silence(tmp_path):
    assert not VocalSeparator(scaled(tmp_path / "silent.onnx", NEITHER), FFT)(noise(300_000)).any()


def test_silence_stays_silence_and_no_sound_none(unchanged):
    assert not unchanged(np.zeros(44_100, np.float32)).any() and len(unchanged(np.zeros((2, 0), np.float32))) == 0


def loudness(separator: VocalSeparator, tone: float) -> float:
    """How loud a tone of 0.5 is, at its loudest, when it comes back. tone: Hz."""
    sound_N = 0.5 * np.sin(2 * np.pi * tone * np.arange(2 * RATE) / RATE) * np.hanning(2 * RATE)
    return float(np.abs(separator(sound_N.astype(np.float32))).max())


def test_what_lies_below_speech_never_reaches_the_network(unchanged):
    """Three bins of 5.7 Hz."""
    assert loudness(unchanged, 8) < 0.01 and loudness(unchanged, 50) == pytest.approx(0.5, abs=0.01)


def test_what_the_network_has_no_frequencies_for_is_left_out(tmp_path):
    few = VocalSeparator(scaled(tmp_path / "few.onnx", shape=(1, 4, 512, 64)), FFT)  # up to 2.9 kHz
    assert loudness(few, 4000) < 0.005 and loudness(few, 1000) == pytest.approx(0.5, abs=0.005)


def published(sound_CN: np.ndarray, frames: int, bins: int) -> np.ndarray:
    """What the published way makes of a sound that fits into one window, by a network that keeps what is positive."""
    half, window_W = FFT // 2, torch.hann_window(FFT)
    mix_CN = torch.zeros(2, 1024 * (frames - 1))
    mix_CN[:, half : half + sound_CN.shape[1]] = torch.from_numpy(sound_CN)
    spectrum_CFT = torch.stft(mix_CN, FFT, 1024, window=window_W, center=True, return_complex=True)
    spectrum_CFT[:, :3] = 0
    spectrum_CFT[:, bins:] = 0
    voice_CFT = torch.complex(spectrum_CFT.real.relu(), spectrum_CFT.imag.relu())
    voice_CN = torch.istft(voice_CFT, FFT, 1024, window=window_W, center=True)
    return signal.resample_poly(voice_CN[:, half : half + sound_CN.shape[1]].mean(dim=0).numpy(), 160, 441)


def test_the_network_gets_and_gives_the_spectrogram_of_the_published_separator(tmp_path):
    sound_CN = noise(5 * RATE)
    ours_N = VocalSeparator(rectified(tmp_path / "network.onnx"), FFT)(sound_CN)
    theirs_N = published(sound_CN, 256, 3072)
    assert np.abs(theirs_N).max() > 0.02
    np.testing.assert_allclose(ours_N, theirs_N, atol=1e-5)


def test_loud_sound_is_separated_at_its_published_peak_and_is_as_loud_afterwards(tmp_path):
    """A network of a fixed threshold hears where the sound was brought to."""
    nodes = [("Sub", ["input", "least"], "above", {}), ("Relu", ["above"], "output", {})]
    gate = VocalSeparator(written(tmp_path / "gate.onnx", nodes, least=np.full((1,), 20, np.float32)), FFT)
    sound_N = tones(2, RATE)
    peak = np.abs(sound_N).max()
    quiet_N, at_peak_N, loud_N = (gate(sound_N * np.float32(level / peak)) for level in (0.3, 0.9, 3.6))
    assert np.allclose(loud_N, 4 * at_peak_N, rtol=1e-3, atol=1e-4)
    assert not np.allclose(at_peak_N, 3 * quiet_N, rtol=1e-3, atol=1e-3)


# Windows -----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 3000), st.integers(1, 300))
@settings(max_examples=300, deadline=None)
def test_every_frame_is_taken_once_from_a_window_that_knows_its_surroundings(count, length):
    found = windows(count, length)
    assert [first for _, first, _ in found[1:]] == [last for _, _, last in found[:-1]]
    assert found[0][1] == 0 and found[-1][2] == count
    for start, first, last in found:
        assert start <= first < last <= start + length
        assert start + length <= max(count, length), "no window reaches beyond the sound where it is long enough"
        assert first == 0 or first - start >= length // 8
        assert last == count or start + length - last >= length // 8


def test_the_voice_is_the_same_whatever_the_windows(tmp_path):
    sound_CN = noise(round(2.4 * RATE))  # 111 frames
    whole_N, *cut = (
        VocalSeparator(rectified(tmp_path / "network.onnx", smaller(frames)), FFT)(sound_CN)
        for frames in (128, 110, 64, 17)
    )
    for voice_N in cut:
        np.testing.assert_allclose(voice_N, whole_N, atol=1e-6)


def test_a_network_that_looks_around_sees_what_lies_beyond_a_cut(tmp_path):
    sound_CN = noise(round(2.4 * RATE))

    def voice(around: int, frames: int) -> np.ndarray:
        return VocalSeparator(blurred(tmp_path / "network.onnx", around, smaller(frames)), FFT)(sound_CN)

    np.testing.assert_allclose(voice(8, 64), voice(8, 128), atol=1e-6)
    assert np.abs(voice(24, 64) - voice(24, 128)).max() > 1e-3, "further than the windows overlap"


def test_memory_does_not_grow_with_the_sound(tmp_path):
    small = VocalSeparator(scaled(tmp_path / "small.onnx", shape=(1, 4, 3072, 32)), FFT)
    short_N, long_N = np.zeros(RATE, np.float32), np.zeros(4 * RATE, np.float32)
    assert most_held(lambda: small(long_N)) <= most_held(lambda: small(short_N)) + 100_000


# Files -------------------------------------------------------------------------------------------------------------


def test_a_known_network_needs_no_numbers_and_gets_its_gain(tmp_path, monkeypatch):
    file = scaled(tmp_path / "network.onnx")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setitem(KNOWN, digest, Published("this one", FFT, 1.25))
    known, sound_N = VocalSeparator(file), tones(1, RATE)
    assert (known.sha256, known.fft, known.gain) == (digest, FFT, 1.25)
    monkeypatch.delitem(KNOWN, digest)
    assert np.allclose(known(sound_N), 1.25 * VocalSeparator(file, FFT)(sound_N), atol=1e-6)


def test_another_network_s_frames_have_to_be_told(tmp_path):
    with pytest.raises(FormatError, match=r"other\.onnx: not Kim_Vocal_2; say how long its frames are .*vocals_fft="):
        VocalSeparator(scaled(tmp_path / "other.onnx"))
    for fft in (4096, 7681, 1024):
        with pytest.raises(FormatError, match=f"frames of {fft} samples cannot be: it takes 3072 frequencies"):
            VocalSeparator(scaled(tmp_path / "other.onnx"), fft)


SAME = [("Identity", ["input"], "output", {})]


@pytest.mark.parametrize(
    ("shape", "given"),
    [
        (("n", 2, 3072, 256), None),
        (("n", 4, "bins", 256), None),
        (("n", 4, 3072, "frames"), None),
        ((8, 4, 3072, 256), None),
        ((4, 3072, 256), None),
        (("n", 4, 3, 256), None),
        (("n", 3, 112, 112), None),
    ],
)
def test_a_network_of_another_shape_is_refused_in_a_line_that_says_its_shape(tmp_path, shape, given):
    file = written(tmp_path / "another.onnx", SAME, shape, given)
    with pytest.raises(FormatError, match=r"another\.onnx: no MDX-Net separator.*tensor\(float\) \[.*\] -> ") as found:
        VocalSeparator(file, FFT)
    assert "\n" not in str(found.value)


def test_a_network_whose_output_is_another_is_refused(tmp_path):
    halved = [("AveragePool", ["input"], "output", {"kernel_shape": [1, 2], "strides": [1, 2]})]
    with pytest.raises(FormatError, match="no MDX-Net separator"):
        VocalSeparator(written(tmp_path / "halved.onnx", halved, SHAPE, smaller(128)), FFT)


def broken(file: Path, content: bytes) -> str:
    file.write_bytes(content)
    with pytest.raises(FormatError) as found:
        VocalSeparator(file, FFT)
    assert "\n" not in str(found.value)
    return str(found.value)


def test_a_file_that_is_no_network_is_refused_in_a_line(tmp_path):
    whole = scaled(tmp_path / "whole.onnx").read_bytes()
    for content in (b"", b"no network", whole[:40], whole.replace(b"Mul", b"Mux")):
        assert broken(tmp_path / "file.onnx", content).startswith(f"{tmp_path / 'file.onnx'}: no network that")
    with pytest.raises(FormatError, match="no such file; it should be an MDX-Net"):
        VocalSeparator(tmp_path / "none.onnx")
