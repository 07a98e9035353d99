"""Whose voice it is: real shots with their own sound, and with somebody else's."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from curation.config import ScoreConfig
from curation.stages.link import DUBBED, SPEAKS, link
from curation.stages.score import RATE, Score
from manifests.schema import Clip
from model import media
from tests.curation.clips import clip, speech

FPS = Fraction(25)
CUTS = [0, 100, 225, 253, 353, 473]
VOICES = {0: "A", 1: "B", 3: "A", 4: "B"}  # shot 2 is a street


@pytest.fixture(scope="module")
def score() -> Score:
    return Score(ScoreConfig())


def linked(score: Score, film: Path, voices: dict[int, str]) -> dict[int, Clip]:
    """The shots of the film, each scored as a clip with that voice, and linked."""
    shots = {n: clip(film, CUTS[n] / 25, CUTS[n + 1] / 25, str(n), voice) for n, voice in voices.items()}
    clips, _ = link(list(shots.values()), {str(n): score(film, shot, speech(shot)) for n, shot in shots.items()})
    return dict(zip(shots, clips, strict=True))


def test_who_speaks_in_each_shot_of_an_interview_is_who_is_seen(score, footage):
    clips = linked(score, footage / "multishot/edited_interview_dev.mp4", VOICES)
    assert {n: (found.binding, found.person, found.speaker_person) for n, found in clips.items()} == {
        0: (SPEAKS, "P0", "P0"),
        1: (SPEAKS, "P1", "P1"),
        3: (SPEAKS, "P0", "P0"),
        4: (SPEAKS, "P1", "P1"),
    }


def test_two_shots_that_carry_the_other_voice_are_found_out(score, footage, tmp_path):
    original = footage / "multishot/edited_interview_dev.mp4"
    sound = media.audio(original, None, RATE)
    pieces = [sound[start * 640 : end * 640] for start, end in zip(CUTS, CUTS[1:], strict=False)]
    # Shot 1 carries what was said in shot 0, and shot 3 what was said in shot 4.
    carried = [np.resize(pieces[n], len(own)) for n, own in zip([0, 0, 2, 4, 4], pieces, strict=True)]
    voices = {**VOICES, 1: "A", 3: "B"}
    whole = media.Span(Fraction(0), Fraction(CUTS[-1], 25))
    media.encode(tmp_path / "dubbed.mp4", media.frames(original, whole, FPS), FPS, np.concatenate(carried), RATE)
    clips = linked(score, tmp_path / "dubbed.mp4", voices)
    assert {n: found.binding for n, found in clips.items()} == {0: SPEAKS, 1: DUBBED, 3: DUBBED, 4: SPEAKS}
    owners = {n: found.speaker_person for n, found in clips.items()}
    assert owners == {n: {"A": "P0", "B": "P1"}[voice] for n, voice in voices.items()}


def test_of_two_men_in_one_picture_the_one_who_speaks_is_bound(score, footage):
    film = footage / "multi_speaker/visualvoice_interview.mp4"
    whole = clip(film, 0.0, 8.0)
    found = score(film, whole, speech(whole))
    tracks = {track.track: track for track in found.tracks if track.lip_sync is not None}
    assert len(tracks) == 2 and found.metrics.binding_margin is not None
    assert found.metrics.lip_sync == max(track.lip_sync for track in tracks.values())


def test_a_face_that_does_not_say_what_is_heard_is_not_said_to_speak(score, footage):
    film = footage / "negative/dj_video5_voiceover.mp4"
    whole = clip(film, 0.0, 8.0)
    (bound,), _ = link([whole], {"c": score(film, whole, speech(whole))})
    assert bound.binding != SPEAKS
    assert dataclasses.asdict(bound)["speaker_person"] is None
