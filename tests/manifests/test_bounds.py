"""Bounds on columns, as people write them."""

from __future__ import annotations

import pyarrow as pa
import pytest

from manifests.bounds import BoundError, bound

COLUMNS = ["level", "dnsmos_bak"]


@pytest.mark.parametrize(
    ("text", "kept", "lost"),
    [("level>=-40", -40, -41), ("level > -40", -39, -40), ("dnsmos_bak<=2.5", 2.5, 2.6), ("level<1e-2", 0, 0.01)],
)
def test_a_bound_holds_on_its_side(text, kept, lost):
    assert bound(text, COLUMNS).holds(kept) and not bound(text, COLUMNS).holds(lost)


def test_a_bound_reads_as_it_was_written():
    assert str(bound(" dnsmos_bak >= 2.50", COLUMNS)) == "dnsmos_bak>=2.5"


@pytest.mark.parametrize(
    ("text", "said"), [("level", "is no bound"), ("level=3", "is no bound"), ("loud>3", "no such column .* level, dns")]
)
def test_a_text_that_is_no_bound_is_refused_by_name(text, said):
    with pytest.raises(BoundError, match=said):
        bound(text, COLUMNS)


KINDS = pa.schema(
    [("sync_offset", pa.int64()), ("binding", pa.string()), ("level", pa.float64()), ("crop", pa.list_(pa.float64()))]
)


def test_a_bound_on_a_magnitude_holds_on_both_sides_of_zero():
    wanted = bound("abs(sync_offset) <= 6", KINDS)
    assert [wanted.holds(offset) for offset in (-7, -6, 0, 6, 7)] == [False, True, True, True, False]
    assert str(wanted) == "abs(sync_offset)<=6"


def test_words_are_one_of_those_asked_for():
    assert [bound("binding=speaks|dubbed", KINDS).holds(word) for word in ("speaks", "dubbed", "listener")] == [
        *[True, True, False]
    ]
    assert [bound("binding!=dubbed", KINDS).holds(word) for word in ("speaks", "dubbed")] == [True, False]


def test_a_whole_number_can_be_asked_for_exactly():
    assert [bound("sync_offset=0", KINDS).holds(offset) for offset in (0, 1)] == [True, False]


@pytest.mark.parametrize("sign", [">=", "<=", ">", "<"])
def test_nan_keeps_no_bound(sign):
    assert not bound(f"level{sign}0", KINDS).holds(float("nan"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("binding>=2", "holds words"),
        ("abs(binding)=speaks", "holds words"),
        ("level=3", "has fractions"),
        ("sync_offset>=speaks", "holds numbers, 'speaks' is none"),
        ("level>=1.2.3", "'1.2.3' is none"),
        ("crop>=0", "holds lists"),
        ("levl>=0", "did you mean 'level'"),
    ],
)
def test_a_bound_is_what_its_column_can_be(text, said):
    with pytest.raises(BoundError, match=said):
        bound(text, KINDS)


@pytest.mark.parametrize("text", ["level>=0.1", "level>=-1e-07", "level<1234567.25", "abs(level)<3", "binding=a|b c"])
def test_a_bound_reads_back_from_what_it_writes(text):
    assert bound(str(bound(text, KINDS)), KINDS) == bound(text, KINDS)
