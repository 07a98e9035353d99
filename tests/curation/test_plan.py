"""Which windows go into which shard, before anything is packed."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from curation.plan import Chosen, picked, planned, window_starts


@given(st.integers(0, 600), st.integers(1, 60), st.integers(1, 80))
def test_windows_lie_in_the_clip_a_stride_apart_and_reach_its_end(frames, length, stride):
    starts = window_starts(frames, length, stride)
    if frames < length:
        assert starts == []
        return
    assert starts[0] == 0 and starts[-1] == frames - length
    steps = np.diff(starts)
    assert (steps[:-1] == stride).all() and (steps > 0).all() and (steps <= stride).all()


def test_windows_of_known_clips():
    assert window_starts(49, 49, 49) == [0]
    assert window_starts(98, 49, 49) == [0, 49]
    assert window_starts(145, 49, 49) == [0, 49, 96]
    assert window_starts(48, 49, 49) == []


def films(count: int, split: str = "train") -> list[Chosen]:
    return [Chosen(f"{split}{n:04d}", f"v{n // 3}", 100 + 7 * n % 300, split) for n in range(count)]


def windows(clips: list[Chosen], seed: int = 0, per_shard: int = 20, shards: int = 4) -> list:
    groups = planned(clips, 49, 49, per_shard, shards, seed)
    return [(shard.name, window) for group in groups for shard in group.shards for window in shard.windows]


def test_every_window_is_in_one_shard_and_no_shard_is_too_large():
    clips = films(100)
    found = windows(clips)
    expected = {(clip.clip_id, first) for clip in clips for first in window_starts(clip.frames, 49, 49)}
    assert {(window.clip_id, window.first) for _, window in found} == expected and len(found) == len(expected)
    names = [name for name, _ in found]
    assert max(map(names.count, set(names))) <= 20
    assert sorted(set(names)) == [f"train-{n:06d}" for n in range(len(set(names)))]


def test_the_order_depends_on_the_seed_and_not_on_the_order_of_the_clips():
    clips = films(60)
    assert windows(clips) == windows(clips[::-1])
    assert windows(clips) != windows(clips, seed=1)


def test_training_and_validation_never_share_a_shard():
    groups = list(planned([*films(30), *films(30, "validation")], 49, 49, 20, 4, 0))
    for shard in (shard for group in groups for shard in group.shards):
        assert {window.clip_id.startswith(shard.split) for window in shard.windows} == {True}


def test_windows_of_a_clip_are_spread_over_the_shards_of_its_group_alone():
    groups = list(planned(films(200), 49, 49, 20, 5, 0))
    assert len(groups) > 3
    clips = [set(group.clip_ids) for group in groups]
    assert not any(one & other for n, one in enumerate(clips) for other in clips[:n])
    homes = [set(home.values()) for group in groups for home in group.homes().values() if len(home) >= 4]
    assert np.mean([len(home) for home in homes]) > 1.8


def test_neighbours_in_a_shard_are_rarely_neighbours_in_a_clip():
    found = [window for _, window in windows(films(200), per_shard=10_000)]
    same = sum(one.clip_id == other.clip_id for one, other in zip(found, found[1:], strict=False))
    assert same / len(found) < 0.05


def test_drawn_frames_are_some_of_those_offered_and_always_the_same():
    frames = np.arange(100, 200, 3)
    drawn = picked(0, "clip", frames, 4)
    assert drawn == picked(0, "clip", frames, 4) == sorted(drawn) and set(drawn) <= set(frames.tolist())
    assert len({tuple(picked(seed, "clip", frames, 4)) for seed in range(20)}) > 15
    assert picked(0, "clip", frames[:2], 4) == frames[:2].tolist()
