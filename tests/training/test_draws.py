"""Draws by name: the same for the same names, without any relation for others."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from training import draws


def test_a_draw_depends_on_its_names_alone():
    first = torch.randn(100, generator=draws.generator(1, "noise", "clip-000000", 7))
    draws.generator(1, "something else")
    assert torch.equal(first, torch.randn(100, generator=draws.generator(1, "noise", "clip-000000", 7)))
    assert draws.uniform(1, "drop", "a", 3) == draws.uniform(1, "drop", "a", 3)


def test_a_draw_is_the_same_on_every_machine():
    digest = hashlib.sha256(b"1:74:drop2:12").digest()
    assert draws.uniform(7, "drop", 12) == (int.from_bytes(digest[:8], "big") >> 11) / 2**53
    assert draws.whole(7, 1000, "drop", 12) == int.from_bytes(digest[:16], "big") % 1000


def test_names_are_not_run_together():
    pairs = [(("ab", "c"), ("a", "bc")), (("a", ""), ("", "a")), ((1, 23), (12, 3)), (("a",), ("a", ""))]
    for one, other in pairs:
        assert draws.uniform(0, *one) != draws.uniform(0, *other)
    assert draws.uniform(1, 2) != draws.uniform(12), "the seed is not run together with the first name"


def test_no_draw_touches_the_generators_that_all_share():
    state, other = torch.get_rng_state(), np.random.get_state()[1].copy()
    draws.generator(0, "a"), draws.uniform(0, "a"), draws.whole(0, 9, "a")
    assert torch.equal(state, torch.get_rng_state()) and (np.random.get_state()[1] == other).all()


def test_numbers_are_spread_evenly_and_neighbours_have_nothing_in_common():
    values = np.array([draws.uniform(0, "level", step) for step in range(20_000)])
    counts = np.histogram(values, 20, (0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 43.8, "chi squared of 19 degrees of freedom, p = 0.001"
    assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 0.025
    ones = np.array([draws.whole(0, 7, "face", step) for step in range(14_000)])
    assert ((np.bincount(ones, minlength=7) - 2000) ** 2 / 2000).sum() < 22.5, "6 degrees of freedom, p = 0.001"


def test_noise_of_neighbouring_steps_and_seeds_has_nothing_in_common():
    noise = torch.stack(
        [torch.randn(10_000, generator=draws.generator(seed, "noise", "a", step)) for seed in (0, 1) for step in (0, 1)]
    )
    correlation = torch.corrcoef(noise)
    assert (correlation - torch.eye(4)).abs().max() < 0.045, "four and a half standard deviations"


def test_there_is_nothing_to_choose_from_nothing():
    with pytest.raises(ValueError, match="from 0 to below 0"):
        draws.whole(0, 0, "reference")
