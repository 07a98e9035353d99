"""The columns of clips as distributions: round steps, codes that keep every bound exactly, reasons for gaps."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.bounds import Bound
from manifests.distributions import (
    FACE_ROTATION,
    MOST_BARS,
    MOST_MARKS,
    NULL,
    codes,
    metrics,
    missing,
    scale,
    values,
    why_missing,
)
from manifests.distributions import within as kept_by_codes
from manifests.schema import Clip, schema
from tests.manifests.made_up import clip_table, row

numbers = st.floats(-1e6, 1e6, allow_nan=False).map(lambda number: round(number, 3))


@settings(max_examples=150, deadline=None)
@given(
    known=st.lists(numbers, min_size=1, max_size=60),
    gaps=st.integers(0, 5),
    edge=numbers,
    sign=st.sampled_from([">=", ">", "<=", "<"]),
)
def test_a_bound_on_codes_keeps_the_clips_that_it_keeps_on_numbers(known, gaps, edge, sign):
    values_N = np.array([*known, *[math.nan] * gaps])
    marks_G = scale(values_N, keep=[edge]).marks
    codes_N = codes(values_N, marks_G)
    on_a_mark = [*known, edge, *np.random.default_rng(0).choice(marks_G, 5)]
    for value in {edge, *(number for number in on_a_mark if number in marks_G)}:
        bound = Bound("x", sign, float(value))
        expected = [bound.holds(number) for number in values_N.tolist()]
        assert kept_by_codes(codes_N, marks_G, sign, value).tolist() == expected


def test_marks_are_round_numbers_over_the_whole_range():
    laid = scale(np.array([0.137, 0.4, 0.862]))
    assert laid.step == 0.001 and laid.digits == 3
    assert laid.marks[0] == 0.137 and 0.862 <= laid.marks[-1] < 0.862 + laid.bar * laid.step
    assert (laid.count - 1) % laid.bar == 0 and (laid.count - 1) // laid.bar <= MOST_BARS
    assert 0.6 in laid.marks and 0.25 in laid.marks


def test_whole_numbers_have_whole_marks():
    laid = scale(np.array([1.0, 1.0, 3.0]), whole=True)
    assert laid.marks.tolist() == [1, 2, 3]
    assert codes(np.array([1.0, 2.0, 3.0, math.nan]), laid.marks).tolist() == [1, 3, 5, NULL]


def test_one_absurd_value_does_not_make_all_others_one_bar():
    values_N = np.append(np.linspace(0, 1, 1000), 1e9)
    laid = scale(values_N)
    assert laid.marks[-1] < 3
    assert codes(values_N, laid.marks)[-1] == 2 * len(laid.marks)  # above the last mark
    assert len(np.unique(codes(values_N[:-1], laid.marks))) > 160


@pytest.mark.parametrize("same", [0.0, 5.0, -3.25, 1e-9, 1e12])
def test_a_column_with_one_value_has_a_scale(same):
    laid = scale(np.full(3, same))
    assert len(laid.marks) >= 2 and laid.marks[0] <= same <= laid.marks[-1]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=80), st.booleans())
def test_a_scale_is_never_too_long_to_travel(known, whole):
    marks_G = scale(np.round(known) if whole else np.array(known), whole).marks
    assert 2 <= len(marks_G) <= MOST_MARKS + MOST_BARS and 2 * len(marks_G) < NULL
    assert (np.diff(marks_G) > 0).all()


def test_every_numeric_column_that_says_what_a_clip_is_like_is_a_metric():
    names = [metric.name for metric in metrics()]
    assert len(names) == len(set(names))
    assert {"sync_c", "sync_d", "face_ratio", "lip_sync", "duration", "fps", FACE_ROTATION.name} <= set(names)
    assert not {"start", "end_ticks", "track", "clip_id", "crop", "unmeasured"} & set(names)
    for metric in metrics():
        assert metric.meaning and metric.group
    assert next(metric for metric in metrics() if metric.name == "yaw_abs").unit == "degree"


def test_the_face_rotation_is_the_largest_angle_and_unknown_when_one_is():
    angles = {"yaw_p95": [10.0, 5.0, 40.0], "pitch_p95": [20.0, 4.0, None], "roll_p95": [3.0, 30.0, 1.0]}
    found = values(pa.table(angles), FACE_ROTATION)
    assert found[:2].tolist() == [20.0, 30.0] and math.isnan(found[2])


def test_null_and_nan_are_the_same_gap():
    column = pa.table({"duration": pa.array([1.0, None, math.nan])})
    duration = next(metric for metric in metrics() if metric.name == "duration")
    assert np.isnan(values(column, duration)).tolist() == [False, True, True]


def test_gaps_have_the_reasons_that_scoring_wrote():
    clips = clip_table(4, 1).to_pylist()
    lines = [["sync_c, sync_d: no weights"], ["sync_c: too short"], ["all: see the table failures"], []]
    for clip, line in zip(clips, lines, strict=True):
        clip["unmeasured"] = line
    clips[3]["status"] = None
    reasons = missing(pa.Table.from_pylist(clips, schema(Clip)))
    found = dict(why_missing(next(metric for metric in metrics() if metric.name == "sync_c"), reasons))
    assert found == {"no weights": 1, "too short": 1, "see the table failures": 1}
    assert dict(reasons["all"]) == {"see the table failures": 1, "not scored yet": 1}


def test_the_reasons_of_the_face_rotation_are_those_of_its_angles():
    clip = row(Clip, unmeasured=["yaw_p95, pitch_p95, roll_p95: no landmarks"], status="scored")
    clips = pa.Table.from_pylist([vars(clip)], schema(Clip))
    assert why_missing(FACE_ROTATION, missing(clips)) == [("no landmarks", 1)]
