"""Proposing: clips where one shot, one voice and a face meet; a reason for every other second."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.config import ProposeConfig
from curation.stages.propose import Propose
from manifests.schema import Clip, Look, Loss, Shot, Solo, Turn, Video

TICK = Fraction(1, 12800)


def video(seconds: float, sound: bool = True) -> Video:
    values = dict.fromkeys(Video.__dataclass_fields__, "")
    numbers = {"bytes": 1, "modified": 1, "width": 640, "height": 360, "fps": 25.0, "frames": 1, "rotation": 0}
    more = {"video_id": "v" * 64, "duration": seconds, "time_base": str(TICK), "asked": [], "speakers": 1}
    return Video(**{**values, **numbers, **more, "audio_codec": "aac" if sound else None})


def shot(number: int, start: float, end: float) -> Shot:
    ticks = (round(start / TICK), round(end / TICK))
    return Shot("v", number, start, end, *ticks, round(start * 25), round(end * 25), 100.0, 10.0, 0.0, 0.0, 1.0, 1)


def looks(number: int, start: float, end: float, faces: int = 1, every: float = 1.0) -> list[Look]:
    count = int((end - start) / every)
    box = (0.4, 0.2, 0.6, 0.5, 0.9) if faces else (None,) * 5
    return [Look("v", number, start + (index + 0.5) * every, faces, *box) for index in range(count)]


def turn(start: float, end: float, speaker: str = "S0") -> Turn:
    return Turn("v", start, end, speaker, 0.0, -20.0, 0.0, None, None, None)


def propose(seconds, shots, looks, turns, solos, lost=(), sound=True, **config):
    stage = Propose(ProposeConfig(**config))
    return stage(video(seconds, sound), shots, looks, turns, solos, lost)


def spans(rows) -> list[tuple[float, float]]:
    return [(round(row.start, 3), round(row.end, 3)) for row in rows]


def reasons(losses: list[Loss]) -> dict[tuple[float, float], str]:
    return {(round(loss.start, 3), round(loss.end, 3)): loss.reason for loss in losses}


def test_a_clip_is_where_one_shot_one_voice_and_a_face_meet():
    clips, losses = propose(
        10, [shot(0, 0, 4), shot(1, 4, 10)], looks(0, 0, 4) + looks(1, 4, 10), [turn(1, 9)], [Solo("v", 1.0, 9.0, "S0")]
    )
    assert spans(clips) == [(1, 4), (4, 9)]
    assert [clip.shot for clip in clips] == [0, 1]
    assert reasons(losses) == {(0, 1): "no speech", (9, 10): "no speech"}


def test_a_shot_without_a_face_is_proposed_no_further():
    clips, losses = propose(
        8,
        [shot(0, 0, 4), shot(1, 4, 8)],
        looks(0, 0, 4) + looks(1, 4, 8, faces=0),
        [turn(0, 8)],
        [Solo("v", 0, 8, "S0")],
    )
    assert spans(clips) == [(0, 4)]
    assert reasons(losses) == {(4, 8): "no face"}


def test_a_picture_of_somebody_is_nobody_talking():
    slide = dataclasses.replace(shot(1, 4, 8), static_share=0.9)
    clips, losses = propose(
        8, [shot(0, 0, 4), slide], looks(0, 0, 4) + looks(1, 4, 8), [turn(0, 8)], [Solo("v", 0, 8, "S0")]
    )
    assert spans(clips) == [(0, 4)]
    assert reasons(losses) == {(4, 8): "still picture"}


def test_two_voices_are_two_clips_and_overlap_is_none():
    turns = [turn(0, 5.5), turn(4.5, 10, "S1")]
    solos = [Solo("v", 0, 4.4, "S0"), Solo("v", 5.6, 10, "S1")]
    clips, losses = propose(10, [shot(0, 0, 10)], looks(0, 0, 10), turns, solos)
    assert [(clip.speaker, *span) for clip, span in zip(clips, spans(clips), strict=True)] == [
        ("S0", 0, 4.4),
        ("S1", 5.6, 10),
    ]
    assert reasons(losses) == {
        (4.4, 4.5): "no clear single voice",
        (4.5, 5.5): "several voices at once",
        (5.5, 5.6): "no clear single voice",
    }


def test_what_is_too_short_is_no_clip_and_49_frames_are_enough():
    shots = [shot(0, 0, 1.92), shot(1, 1.92, 3.88)]
    clips, losses = propose(
        3.88, shots, looks(0, 0, 1.92) + looks(1, 1.92, 3.88), [turn(0, 4)], [Solo("v", 0, 4, "S0")]
    )
    assert spans(clips) == [(1.92, 3.88)]
    assert reasons(losses) == {(0, 1.92): "too short for a clip"}


def test_a_long_stretch_is_cut_into_equal_parts():
    clips, losses = propose(50, [shot(0, 0, 50)], looks(0, 0, 50), [turn(0, 50)], [Solo("v", 0, 50, "S0")])
    assert [round(clip.duration, 2) for clip in clips] == [16.67, 16.67, 16.67]
    assert not losses


def test_one_missed_face_is_bridged_and_a_longer_absence_is_not():
    seen = looks(0, 0, 20)
    seen[5] = dataclasses.replace(seen[5], faces=0)
    seen[12:15] = [dataclasses.replace(look, faces=0) for look in seen[12:15]]
    clips, losses = propose(20, [shot(0, 0, 20)], seen, [turn(0, 20)], [Solo("v", 0, 20, "S0")])
    assert spans(clips) == [(0, 12), (15, 20)]
    assert reasons(losses) == {(12, 15): "no face"}


def test_without_sound_nothing_is_proposed():
    clips, losses = propose(5, [shot(0, 0, 5)], looks(0, 0, 5), [], [], sound=False)
    assert not clips and reasons(losses) == {(0, 5): "no sound track"}


def test_what_the_scan_lost_stays_lost_for_its_reason():
    lost = [Loss("v", 4.0, 10.0, "could not be decoded", "scan")]
    clips, losses = propose(10, [shot(0, 0, 4)], looks(0, 0, 4), [turn(0, 10)], [Solo("v", 0, 10, "S0")], lost)
    assert spans(clips) == [(0, 4)]
    assert [(loss.start, loss.end, loss.reason, loss.stage) for loss in losses] == [
        (4.0, 10.0, "could not be decoded", "scan")
    ]


def test_a_clip_id_depends_on_footage_span_and_settings_alone():
    def ids(seconds=10.0, **config) -> list[str]:
        clips, _ = propose(
            seconds, [shot(0, 0, 10)], looks(0, 0, 10), [turn(0, 9)], [Solo("v", 0.0, 9.0, "S0")], **config
        )
        return [clip.clip_id for clip in clips]

    assert ids() == ids(seconds=12.0)
    assert ids() != ids(min_seconds=1.0)
    assert len(set(ids(max_seconds=3.0))) == 3


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="min_seconds"):
        Propose(ProposeConfig(min_seconds=5, max_seconds=3))


seconds = st.floats(0, 30, allow_nan=False)


@st.composite
def stretches(draw) -> list[tuple[float, float]]:
    edges = sorted(draw(st.lists(seconds, max_size=12, unique=True)))
    return list(zip(edges[::2], edges[1::2], strict=False))


@settings(max_examples=300, deadline=None)
@given(
    st.floats(0.1, 32),
    st.lists(seconds, max_size=4),
    st.lists(st.booleans(), min_size=40),
    stretches(),
    stretches(),
    stretches(),
)
def test_clips_and_losses_together_cover_the_video_exactly_once(length, cuts, faces, turns, solos, lost):
    edges = sorted({0.0, *[cut for cut in cuts if cut < length], length})
    shots = [shot(number, *pair) for number, pair in enumerate(zip(edges, edges[1:], strict=False))]
    seen = [look for part in shots for look in looks(part.shot, part.start, part.end)]
    seen = [dataclasses.replace(look, faces=int(face)) for look, face in zip(seen, faces, strict=False)]
    clips, losses = propose(
        length,
        shots,
        seen,
        [turn(*pair) for pair in turns],
        [Solo("v", *pair, f"S{index % 2}") for index, pair in enumerate(solos)],
        [Loss("v", *pair, "could not be decoded", "scan") for pair in lost],
    )
    rows: list[Clip | Loss] = sorted([*clips, *losses], key=lambda row: row.start)
    assert rows[0].start == 0
    assert abs(rows[-1].end - length) <= TICK
    assert all(left.end == right.start for left, right in zip(rows, rows[1:], strict=False))
    for clip in clips:
        assert ProposeConfig().min_seconds <= clip.duration <= ProposeConfig().max_seconds
        assert any(part.start_ticks <= clip.start_ticks and clip.end_ticks <= part.end_ticks for part in shots)
        assert any(start - TICK <= clip.start and clip.end <= end + TICK for start, end in solos)
