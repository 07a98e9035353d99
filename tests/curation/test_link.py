"""What clips of one video say together: who is who, whose voice is whose, and where the two do not belong together."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from curation.stages.link import DUBBED, LISTENER, SPEAKS, UNDETERMINED, VOICE_OVER, Scored, link
from manifests.schema import UNMEASURED, Clip, Track, schema
from manifests.store import from_arrow, to_arrow

RANDOM = np.random.default_rng(0)
ANNA, BERT = (RANDOM.normal(size=128) for _ in range(2))


def clip(name: str, speaker: str = "S0", seconds: float = 6.0) -> Clip:
    defaults = {"string": "", "int64": 0, "double": 0.0}
    columns = {field.name: defaults[str(field.type)] for field in schema(Clip) if str(field.type) in defaults}
    known = {"video_id": "v", "clip_id": name, "speaker": speaker, "duration": seconds}
    return Clip(**{**columns, **vars(UNMEASURED), **known})


def scored(name: str, *faces: np.ndarray, lip_sync: float | None = None, mouth_motion: float = 0.1) -> Scored:
    """A clip that shows these faces and is bound to the first."""
    empty = {field.name: [] for field in schema(Track) if str(field.type).startswith("list")}
    tracks = [
        Track(**{**empty, "video_id": "v", "clip_id": name, "track": number, "person": None, "lip_sync": None})
        for number in range(len(faces))
    ]
    noisy = [face + 0.05 * RANDOM.normal(size=(3, 128)) for face in faces]
    metrics = dataclasses.replace(
        UNMEASURED, status="scored", track=0 if faces else None, lip_sync=lip_sync, mouth_motion=mouth_motion
    )
    return Scored(metrics, tracks, noisy, same=0.9)


def linked(*scenes: tuple[Clip, Scored]) -> list[Clip]:
    clips, tracks = link([clip for clip, _ in scenes], {clip.clip_id: found for clip, found in scenes})
    to_arrow(Track, tracks)
    return from_arrow(Clip, to_arrow(Clip, clips))


def test_a_face_is_one_person_through_all_clips():
    clips = linked((clip("a"), scored("a", ANNA)), (clip("b"), scored("b", BERT, ANNA)), (clip("c"), scored("c", ANNA)))
    assert [clip.person for clip in clips] == ["P0", "P1", "P0"]


def test_lips_that_fit_the_sound_speak():
    (only,) = linked((clip("a"), scored("a", ANNA, lip_sync=0.8)))
    assert (only.binding, only.speaker_person) == (SPEAKS, "P0")


@pytest.mark.parametrize(("lip_sync", "seconds"), [(0.55, 6.0), (0.3, 3.0)])
def test_between_and_in_short_clips_nothing_is_claimed(lip_sync, seconds):
    (only,) = linked((clip("a", seconds=seconds), scored("a", ANNA, lip_sync=lip_sync)))
    assert only.binding == UNDETERMINED


def test_a_mouth_that_speaks_otherwise_is_dubbed():
    clips = linked(
        (clip("a"), scored("a", ANNA, lip_sync=0.8)),
        (clip("b"), scored("b", BERT, lip_sync=0.2, mouth_motion=0.1)),
    )
    assert [clip.binding for clip in clips] == [SPEAKS, DUBBED]
    assert [clip.speaker_person for clip in clips] == ["P0", "P0"]


def test_a_still_mouth_listens_to_somebody_else_of_the_video():
    clips = linked(
        (clip("a"), scored("a", ANNA, lip_sync=0.8)),
        (clip("b"), scored("b", BERT, lip_sync=0.2, mouth_motion=0.001)),
    )
    assert clips[1].binding == LISTENER


def test_a_still_mouth_under_a_voice_that_fits_no_face_is_a_voice_over():
    clips = linked(
        (clip("a", "S0"), scored("a", ANNA, lip_sync=0.8)),
        (clip("b", "S1"), scored("b", BERT, lip_sync=0.2, mouth_motion=0.001)),
    )
    assert (clips[1].binding, clips[1].speaker_person) == (VOICE_OVER, None)


def test_a_voice_belongs_to_the_face_it_fits_for_longest():
    clips = linked(
        (clip("a", seconds=4), scored("a", ANNA, lip_sync=0.9)),
        (clip("b", seconds=9), scored("b", BERT, lip_sync=0.7)),
    )
    assert {clip.speaker_person for clip in clips} == {"P1"}


def test_a_clip_that_was_not_scored_says_so():
    clips, tracks = link([clip("a")], {})
    assert (clips[0].status, clips[0].unmeasured, tracks) == ("failed", ["all: see the table failures"], [])


def test_two_faces_of_one_picture_are_two_people_however_alike():
    both = scored("a", ANNA, ANNA)
    tracks = [dataclasses.replace(track, left=[1.0, 2.0]) for track in both.tracks]
    _, named = link([clip("a")], {"a": dataclasses.replace(both, tracks=tracks)})
    assert [track.person for track in named] == ["P0", "P1"]


def test_without_a_face_or_a_score_nothing_is_claimed():
    (faceless,) = linked((clip("a"), scored("a")))
    assert (faceless.person, faceless.binding) == (None, None)
