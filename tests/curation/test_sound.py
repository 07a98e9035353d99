"""Loudness and clipping are what their definitions say; DNSMOS is the published one."""

from __future__ import annotations

import numpy as np
import pytest

from curation.backends.sound import WINDOW, Dnsmos, hops
from curation.backends.speech import FRAME, SpeechDetector
from curation.measures.sound import SILENCE, clipped_share, level
from model import media, weights

RATE = 16000


@pytest.fixture(scope="module")
def dnsmos() -> Dnsmos:
    return Dnsmos(weights.path("dnsmos"))


@pytest.fixture(scope="module")
def man() -> np.ndarray:
    """5.8 s of a man talking in a quiet room."""
    return media.audio(weights.path("psychopy-jwpIntro"))


@pytest.fixture(scope="module")
def noisy(man) -> np.ndarray:
    return man + 0.01 * np.random.default_rng(0).normal(size=len(man)).astype(np.float32)


def sine(amplitude: float) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * 100 * np.arange(RATE) / RATE)).astype(np.float32)


# Measured by speechmos 0.0.1.1, its own code, on the same samples: dnsmos.run(samples, 16000).
# The four repetitions make 23.1 s, of whose windows the reference rates 7.
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("once", (3.2941, 3.6749, 2.8451)),
        ("four times", (3.3412, 3.8486, 2.9465)),
        ("noisy", (1.2577, 1.1020, 1.1131)),
        ("one window", (3.2740, 3.7682, 2.8647)),
    ],
)
def test_dnsmos_gives_the_numbers_of_the_published_code(dnsmos, man, noisy, name, expected) -> None:
    samples = {"once": man, "four times": np.tile(man, 4), "noisy": noisy, "one window": np.tile(man, 2)[:WINDOW]}
    assert dnsmos(samples[name]) == pytest.approx(expected, abs=1e-3)


def test_dnsmos_agrees_with_speechmos_where_that_is_installed(dnsmos, man) -> None:
    theirs = pytest.importorskip("speechmos.dnsmos")
    scores = theirs.run(man, RATE)
    assert dnsmos(man) == pytest.approx([scores["sig_mos"], scores["bak_mos"], scores["ovrl_mos"]], abs=1e-4)


def test_noise_costs_the_background_score(dnsmos, man, noisy) -> None:
    assert dnsmos(noisy).background < dnsmos(man).background - 1


def test_samples_beyond_full_scale_are_rated_as_clipped(dnsmos, man) -> None:
    loud = man * 10
    assert np.abs(loud).max() > 1
    assert dnsmos(loud) == dnsmos(np.clip(loud, -1, 1))


def test_windows_start_every_second_as_far_as_the_reference_hears() -> None:
    assert hops(WINDOW) == [0]
    assert hops(11 * RATE) == [0, 1]
    assert hops(40 * RATE) == [0, 1, 2, 3, 4, 5, 6, 24, 25, 26, 27, 28, 29, 30]


def test_rating_nothing_is_refused(dnsmos) -> None:
    with pytest.raises(ValueError, match="no samples"):
        dnsmos(np.zeros(0, np.float32))


def test_the_level_of_a_sine_is_three_decibels_below_its_peak() -> None:
    assert level(sine(1.0)) == pytest.approx(-3.01, abs=0.01)
    assert level(sine(0.1)) == pytest.approx(-23.01, abs=0.01)
    assert level(np.array([1.0, -1.0] * 50)) == pytest.approx(0)


def test_silence_has_a_level_that_a_table_can_hold() -> None:
    assert level(np.zeros(RATE, np.float32)) == level(np.zeros(0, np.float32)) == SILENCE
    assert level(np.full(RATE, 1e-9, np.float32)) == SILENCE


def test_the_clipped_share_is_that_of_the_flat_tops() -> None:
    over = 10 ** (3 / 20)  # 3 dB too loud: |sin| beyond 1 / 1.41 half of the time
    assert clipped_share(np.clip(sine(over), -1, 1)) == pytest.approx(0.5, abs=0.02)
    assert clipped_share(sine(over)) == pytest.approx(0.5, abs=0.02)
    assert clipped_share(sine(0.99)) == 0
    assert clipped_share(np.zeros(0, np.float32)) == 0


def test_the_largest_sample_of_16_bits_is_clipped() -> None:
    assert clipped_share(np.array([32767, -32768, 32000]) / 32768) == pytest.approx(2 / 3)


def test_speech_is_told_from_noise_and_silence(man) -> None:
    detector = SpeechDetector(weights.path("silero-vad"))
    noise = 0.1 * np.random.default_rng(1).normal(size=4 * RATE).astype(np.float32)
    speech = detector(np.concatenate([noise, man, np.zeros(2 * RATE, np.float32)]))
    first, last = 4 * RATE // FRAME, (4 * RATE + len(man)) // FRAME
    assert len(speech) == -(-(6 * RATE + len(man)) // FRAME)
    assert speech[:first].mean() < 0.1
    assert speech[first:last].mean() > 0.6
    assert speech[last + 16 :].mean() < 0.1
    assert len(detector(np.zeros(0, np.float32))) == 0


def test_speech_probabilities_are_those_of_silero_s_own_code(man) -> None:
    speech = SpeechDetector(weights.path("silero-vad"))(man)
    # Measured by silero-vad 6.2.3 on the same samples: load_silero_vad(onnx=True).audio_forward(samples, 16000).
    assert speech.mean() == pytest.approx(0.64332, abs=1e-4)
    assert speech[:4] == pytest.approx([0.0018, 0.0629, 0.0423, 0.0182], abs=1e-4)
