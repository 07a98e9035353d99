"""Bounds on columns, as people write them."""

from __future__ import annotations

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
