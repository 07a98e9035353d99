"""Which sample stands where: every sample once an epoch, in another order each time, and any position at once."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.order import STAND_INS, Order


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(0, 2**40), st.integers(1, 30), st.integers(0, 5)
)
@settings(max_examples=60, deadline=None)
def test_an_epoch_is_every_sample_once(sizes, seed, block, epoch):
    order = Order(tuple(sizes), seed, block)
    assert len(order) == sum(sizes)
    found = [order(epoch * len(order) + place) for place in range(len(order))]
    assert sorted(found) == list(range(len(order)))


def test_a_position_is_the_same_whatever_was_asked_before():
    sizes = (40, 35, 41)
    positions = list(range(0, 700, 3))
    forwards = {position: Order(sizes, 3, 16)(position) for position in positions}
    order = Order(sizes, 3, 16)
    assert {position: order(position) for position in reversed(positions)} == forwards


@pytest.mark.parametrize(
    "sizes, block, what", [((1,) * 300, 1, "shards"), ((300,), 300, "samples"), ((100,) * 3, 60, "both")]
)
def test_epochs_and_seeds_have_orders_of_their_own(sizes, block, what):
    def epoch(seed: int, number: int) -> tuple[int, ...]:
        order = Order(sizes, seed, block)
        return tuple(order(number * 300 + place) for place in range(300))

    orders = {epoch(seed, number) for seed in (0, 1) for number in (0, 1, 2)}
    assert len(orders) == 6, what
    if what != "both":
        first, second = epoch(0, 0), epoch(0, 1)
        assert sum(a == b for a, b in zip(first, second, strict=True)) < 10, "one in 300 by chance"


def test_without_shuffling_shards_are_read_from_end_to_end():
    order = Order((5, 3, 4), 0, 1)
    found = [order(place) for place in range(12)]
    runs = [list(range(0, 5)), list(range(5, 8)), list(range(8, 12))]
    heads = sorted(runs, key=lambda run: found.index(run[0]))
    assert found == [sample for run in heads for sample in run]


def test_shuffling_stays_within_its_block():
    still, mixed = Order((100,) * 8, 5, 1), Order((100,) * 8, 5, 64)
    for start in range(0, 800, 64):
        places = range(start, min(start + 64, 800))
        assert {mixed(place) for place in places} == {still(place) for place in places}
        assert [mixed(place) for place in places] != [still(place) for place in places]
    lie = {still(place): place for place in range(800)}
    moves = {tuple(lie[mixed(start + place)] - start for place in range(64)) for start in range(0, 768, 64)}
    assert len(moves) == 12, "each block in an order of its own"


def test_every_sample_may_come_first():
    counts = Counter(Order((4, 4), seed, 3)(0) for seed in range(1600))
    # With blocks of 3 the first is one of a shard's first three; blocks do not reach beyond that here.
    assert set(counts) == {0, 1, 2, 4, 5, 6}
    expected = 1600 / 6
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 20.5, (
        "5 degrees of freedom, p = 0.001"
    )


def test_a_far_position_takes_no_longer_than_the_first():
    sizes = (250,) * 4000  # a million samples
    order = Order(sizes, 0, 1000)
    order(0)
    start = time.perf_counter()
    found = [order(10**6 + 1), order(10**9 + 12_345), order(10**12 + 7)]
    assert time.perf_counter() - start < 1.0
    assert all(0 <= sample < 10**6 for sample in found)


def test_what_stands_in_is_drawn_among_all():
    order = Order((50, 50), 1, 10)
    found = [sample for position in range(200) for sample in order.stand_ins(position)]
    assert len(found) == 200 * STAND_INS and order.stand_ins(7) == order.stand_ins(7) != order.stand_ins(8)
    counts = np.bincount(found, minlength=100)
    assert ((counts - 40) ** 2 / 40).sum() < 149, "99 degrees of freedom, p = 0.001"
