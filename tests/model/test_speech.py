"""Whisper's encoder out of a CTranslate2 file: the right numbers, at the right time, for sound of any length."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from model import media, weights
from model.encoders import speech
from model.encoders.speech import BANDS, OVERLAP, POSITIONS, RATE, STATE, FormatError, WhisperEncoder

TRANSFORMERS = {0: (0.7866, 1.1596), 2: (1.0037, 0.3334), 4: (-1.9180, -0.5627)}
"""Numbers 7 and 300 of state 100 in some of its `hidden_states`."""


@pytest.fixture(scope="module")
def encoder() -> WhisperEncoder:
    return WhisperEncoder(weights.path("whisper-tiny.en"))


@pytest.fixture(scope="module")
def talk() -> np.ndarray:
    """5.8 s of a man talking."""
    return media.audio(weights.path("psychopy-jwpIntro"))


@pytest.fixture(scope="module")
def states(encoder, talk) -> np.ndarray:
    return encoder(talk)


def test_there_is_a_state_of_every_layer_every_20_ms(states, talk) -> None:
    assert states.shape == (5, -(-len(talk) // STATE), 384)
    assert states.dtype == np.float32
    assert np.isfinite(states).all()


def test_the_states_are_those_of_transformers(encoder, talk) -> None:
    """Of WhisperModel.encoder of transformers 5.23 with the same weights, on the same sound and 30 s of silence."""
    found = encoder(talk, after=POSITIONS)
    for layer, golden in TRANSFORMERS.items():
        assert found[layer, 100, [7, 300]] == pytest.approx(golden, abs=1e-3)


def test_a_frame_of_video_has_the_mean_of_its_two_states_in_every_layer(talk, states) -> None:
    encoder = speech.load("whisper")
    frames = states.shape[1] // 2
    found = encoder.frames(talk[: frames * 2 * STATE], frames)
    assert (encoder.name, encoder.layers, encoder.dim) == ("whisper", 5, 384)
    assert found.shape == (frames, 5, 384)
    assert found.dtype == np.float32
    exact = encoder(talk[: frames * 2 * STATE])
    assert np.allclose(found[7], (exact[:, 14] + exact[:, 15]) / 2, atol=1e-6)
    assert np.allclose(found[:, 2], exact[2].reshape(frames, 2, 384).mean(axis=1), atol=1e-6)


@pytest.mark.parametrize("frames", [0, 1, 2, 49, 500])
def test_there_are_as_many_states_as_frames_whatever_the_sound_s_length(encoder, talk, frames) -> None:
    for heard in (talk, talk[:100], talk[:0]):
        assert encoder.frames(heard, frames).shape == (frames, 5, 384)


def test_only_the_blocks_asked_for_are_computed(encoder, talk, states) -> None:
    assert np.array_equal(encoder(talk, 2), states[:3])
    assert encoder(talk, 0).shape == (1, *states.shape[1:])
    with pytest.raises(ValueError, match="5 blocks asked for; this encoder has 0 to 4"):
        encoder(talk, 5)


def test_same_sound_same_states(encoder, talk, states) -> None:
    encoder(talk[::-1].copy())
    assert np.array_equal(encoder(talk), states)


def test_a_state_stands_at_its_time(encoder) -> None:
    """A click in silence changes the first layer around the click and nowhere else."""
    second = np.zeros(RATE, np.float32)
    click = second.copy()
    click[30 * STATE] = 0.5
    energy = np.abs(encoder(click, 0)[0] - encoder(second, 0)[0]).sum(axis=1)
    # Silence is as loud as the floor, and the floor is 8 below the loudest: only the click's columns differ.
    assert abs(int(np.argmax(energy)) - 30) <= 1


def test_later_sound_gives_later_states(encoder, talk) -> None:
    late = encoder(np.concatenate([np.zeros(25 * STATE, np.float32), talk]), 2)[2, 25:]
    straight = encoder(talk, 2)[2]
    for lag in (-2, -1, 1, 2):
        assert _correlation(late[50:250], straight[50:250]) > _correlation(late[50:250], straight[50 + lag : 250 + lag])


def test_silence_to_30_s_would_hardly_change_the_states(encoder, talk, states) -> None:
    padded = encoder(talk, after=POSITIONS)
    spread = np.linalg.norm(padded - padded.mean(axis=1, keepdims=True), axis=(1, 2))
    assert (np.linalg.norm(states - padded, axis=(1, 2)) / spread < [0.01, 0.1, 0.2, 0.25, 0.25]).all()


def test_sound_longer_than_a_window_goes_on_at_its_time_and_without_a_jump(encoder, talk) -> None:
    long = np.tile(talk, 6)
    found = encoder(long, 2)
    seam = speech.windows(found.shape[1])[0][1]
    assert found.shape[1] == -(-len(long) // STATE) > POSITIONS
    excerpt = encoder(long[(seam - 200) * STATE : (seam + 200) * STATE], 2)[2, 150:250]
    agreement = [_correlation(excerpt, found[2, seam - 50 + lag : seam + 50 + lag]) for lag in (-2, -1, 0, 1, 2)]
    assert np.argmax(agreement) == 2
    assert agreement[2] > 0.5  # the states know a little of where in the window they are
    steps = np.linalg.norm(np.diff(found[2], axis=0), axis=1)
    assert steps[seam - 1] < np.percentile(steps, 99)


@pytest.mark.parametrize("count", [0, 1, 1000, POSITIONS, POSITIONS + 1, 2 * POSITIONS, 12345])
def test_windows_cover_everything_once_and_are_never_too_long(count) -> None:
    windows = speech.windows(count)
    assert [state for first, last in windows for state in range(first, last)] == list(range(count))
    assert all(min(last + OVERLAP, count) - max(first - OVERLAP, 0) <= POSITIONS for first, last in windows)


@pytest.mark.parametrize("length", [0, 1, STATE, STATE + 1, RATE])
def test_any_length_is_encoded(encoder, length) -> None:
    assert encoder(np.full(length, 0.1, np.float32), 1).shape == (2, -(-length // STATE), 384)


@pytest.mark.parametrize("hertz", [200, 440, 1000, 3000, 6000])
def test_a_tone_is_loudest_in_the_band_of_its_pitch(hertz) -> None:
    tone = 0.5 * np.sin(2 * np.pi * hertz * np.arange(RATE) / RATE).astype(np.float32)
    column = speech.log_mel(tone, 100)[:, 50]
    mel = hertz * 3 / 200 if hertz < 1000 else 15 + 27 * np.log(hertz / 1000) / np.log(6.4)
    top = 15 + 27 * np.log(8) / np.log(6.4)
    assert abs(int(np.argmax(column)) - (mel / top * (BANDS + 1) - 1)) <= 0.75


def test_the_spectrogram_spans_8_powers_of_ten_and_two_units_below_the_loudest() -> None:
    tone = np.sin(np.arange(RATE) * 0.1).astype(np.float32)
    mel = speech.log_mel(tone, 400)  # a second of tone, three of silence
    assert mel.max() - mel.min() == pytest.approx(2)
    assert (mel[:, 200:] == mel.min()).all()


def test_each_band_has_the_same_area() -> None:
    areas = speech.mel_filters().numpy().sum(axis=1) * RATE / speech.FFT
    assert areas[45:] == pytest.approx(1, abs=0.05)  # lower ones are narrower than the grid


def test_the_positions_in_the_file_are_sinusoids() -> None:
    variables = speech.read_encoder(weights.path("whisper-tiny.en"))
    phases = np.outer(np.arange(POSITIONS), np.exp(-np.log(10000) / 191 * np.arange(192)))
    expected = np.hstack([np.sin(phases), np.cos(phases)])
    assert np.abs(variables["position_encodings/encodings"] - expected).max() < 1e-3


def _file(
    variables: list[tuple[str, tuple[int, ...], int, bytes]], spec: str = "WhisperSpec", version: int = 6
) -> bytes:
    def text(words: str) -> bytes:
        return struct.pack("<H", len(words) + 1) + words.encode() + b"\0"

    content = struct.pack("<I", version) + text(spec) + struct.pack("<II", 3, len(variables))
    for name, shape, kind, numbers in variables:
        content += text(name) + struct.pack(f"<B{len(shape)}IBI", len(shape), *shape, kind, len(numbers)) + numbers
    return content


def test_variables_are_read_by_name_shape_and_type_and_others_passed_over(tmp_path) -> None:
    numbers = np.array([[1, -2, 0.5]])
    file = tmp_path / "model.bin"
    file.write_bytes(
        _file(
            [
                ("decoder/a", (3,), 1, b"123"),
                ("encoder/half", (1, 3), 4, numbers.astype("<f2").tobytes()),
                ("encoder/single", (3,), 0, numbers.astype("<f4").tobytes()),
            ]
        )
    )
    read = speech.read_encoder(file)
    assert list(read) == ["half", "single"]
    assert read["half"].tolist() == [[1, -2, 0.5]]
    assert read["single"].tolist() == [1, -2, 0.5]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "not a CTranslate2 file, or cut off"),
        (b"PK\3\4 some archive", "not a CTranslate2 file, or cut off"),
        (_file([("encoder/a", (3,), 4, b"123456")])[:-1], "cut off"),
        (_file([], spec="TransformerSpec"), "version 6 of 'TransformerSpec'"),
        (_file([], version=9), "version 9"),
        (_file([("encoder/a", (3,), 1, b"123")]), "quantised; take a file converted to float16"),
        (_file([("encoder/a", (4,), 4, b"123456")]), "has 6 bytes, not those of"),
        (_file([("encoder/a", (3,), 4, b"123456")]), "holds no Whisper encoder"),
    ],
)
def test_another_file_is_refused_with_what_is_wrong(tmp_path, content, complaint) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(content)
    with pytest.raises(FormatError, match=complaint):
        WhisperEncoder(file)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    return float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))
