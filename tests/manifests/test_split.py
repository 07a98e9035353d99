"""Training and validation share neither a video nor a person."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from manifests import recipe
from manifests.schema import Track
from manifests.selection import Options, SelectionError, choose
from manifests.split import People, draw, people
from manifests.store import ManifestStore
from tests.manifests.synthetic import clips, lay


def faces(*numbers: int, size: int = 128) -> np.ndarray:
    """Faces at unit length; one number is one person, two numbers are at right angles."""
    return np.eye(size, dtype=np.float32)[list(numbers)]


def named(count: int) -> list[str]:
    return [f"video{n}" for n in range(count)]


@settings(deadline=None, max_examples=80)
@given(
    some.lists(some.tuples(some.integers(0, 19), some.integers(0, 11)), max_size=40),
    some.floats(0.01, 0.6),
    some.integers(0, 3),
)
def test_no_person_and_no_video_is_on_both_sides(shown, share, seed):
    video_P = np.array([video for video, _ in shown], int)
    who = [person for _, person in shown]
    drawn_V = draw(named(20), np.full(20, 0.1), People(video_P, faces(*who)), share, seed)
    sides = {}
    for video, person in shown:
        assert sides.setdefault(person, drawn_V[video]) == drawn_V[video]


def test_the_share_is_met_as_closely_as_groups_allow():
    hours_V = np.random.default_rng(0).uniform(0.1, 2, 400)
    drawn_V = draw(named(400), hours_V, People.nobody(), 0.1)
    assert hours_V[drawn_V].sum() == pytest.approx(0.1 * hours_V.sum(), abs=1)


def test_seeds_draw_differently_and_the_order_of_videos_does_not_matter():
    one, other = (draw(named(100), np.ones(100), People.nobody(), 0.1, seed) for seed in (0, 1))
    assert one.sum() == other.sum() == 10 and (one != other).any()
    again = draw(named(100)[::-1], np.ones(100), People.nobody(), 0.1, 0)
    assert (again[::-1] == one).all()


def test_a_group_larger_than_what_is_wanted_is_training_s():
    everywhere = People(np.arange(30), faces(*[0] * 30))
    assert not draw(named(40), np.ones(40), everywhere, 0.1)[:30].any()
    assert draw(named(40), np.ones(40), everywhere, 0.1).sum() == 4


def test_a_chain_of_people_is_one_group():
    # Video n shows persons n and n + 1: all hang together, though the first and the last share nobody.
    video_P = np.repeat(np.arange(5), 2)
    chain = People(video_P, faces(*[n + k for n in range(5) for k in (0, 1)]))
    for seed in range(8):
        drawn_V = draw(named(10), np.ones(10), chain, 0.5, seed)
        assert len(set(drawn_V[:5].tolist())) == 1


def test_how_alike_one_person_s_faces_are_depends_on_the_network():
    for size, together in ((128, False), (512, True)):
        alike = np.zeros((2, size), np.float32)
        alike[:, :2] = [1, 0], [0.9, np.sqrt(1 - 0.9**2)]
        both = [draw(named(2), np.ones(2), People(np.arange(2), alike), 0.5, seed).sum() for seed in range(4)]
        assert (0 in both) is together, "together they are too large for half"
    with pytest.raises(SelectionError, match="faces of 64 numbers: give same="):
        People(np.arange(2), np.zeros((2, 64), np.float32)).same()


# From the manifests ---------------------------------------------------------------------------------------------


def tracks(rows: list[tuple[str, str, int, np.ndarray]]) -> pa.Table:
    """Rows of the table `tracks`: video, clip, number of the track, face."""
    from manifests.schema import schema

    columns = dict(zip(("video_id", "clip_id", "track", "identity"), map(list, zip(*rows, strict=True)), strict=True))
    arrays = []
    for field in schema(Track):
        nothing = [] if pa.types.is_list(field.type) else None
        arrays.append(pa.array(columns.get(field.name) or [nothing] * len(rows), field.type))
    return pa.Table.from_arrays(arrays, schema=schema(Track))


def laid(output, shown: list[tuple[str, int, int]]) -> ManifestStore:
    """Clips, each a (video, bound person, other person on show), and their tracks; the bound face is track 1."""
    names = [f"{n:016x}" for n in range(len(shown))]
    lay(
        output,
        clips(video_id=[v for v, _, _ in shown], clip_id=names, track=[1] * len(shown), person=["P0"] * len(shown)),
    )
    rows = []
    for name, (video, bound, other) in zip(names, shown, strict=True):
        rows += [(video, name, 0, 3 * faces(other)[0]), (video, name, 1, 2 * faces(bound)[0])]
    return lay(output, tracks(rows), Track)


def test_only_the_face_that_a_clip_is_bound_to_counts(tmp_path):
    store = laid(tmp_path, [("a", 0, 7), ("b", 1, 7), ("b", 1, 7), ("c", 0, 7)])
    found = people(store, choose(store, recipe.asked([])).clips)
    assert found.video_P.tolist() == [0, 1, 2]
    assert (found.face_PD == faces(0, 1, 0)).all()


def test_a_selection_keeps_a_person_of_two_videos_on_one_side(tmp_path):
    store = laid(tmp_path, [(f"video{n}", n // 2, 99) for n in range(40)])
    for seed in range(5):
        chosen = choose(store, recipe.asked([]), Options(validation=0.2, seed=seed)).clips
        side = dict(zip(chosen["video_id"].to_pylist(), chosen["split"].to_pylist(), strict=True))
        assert all(side[f"video{2 * n}"] == side[f"video{2 * n + 1}"] for n in range(20))
        assert pc.sum(pc.equal(chosen["split"], "validation")).as_py() == 8


def test_without_faces_only_videos_are_kept_together(tmp_path):
    store = laid(tmp_path, [(f"video{n // 2}", 0, 99) for n in range(40)])
    assert choose(store, recipe.asked([]), Options(validation=0.2)).notes[0].startswith("validation has 0.0 s of")
    chosen = choose(store, recipe.asked([]), Options(validation=0.2, people=False)).clips
    side = list(zip(chosen["video_id"].to_pylist(), chosen["split"].to_pylist(), strict=True))
    assert len(set(side)) == 20 and sum(name == "validation" for _, name in side) == 8


def test_faces_of_two_networks_are_not_compared(tmp_path):
    store = laid(tmp_path, [("a", 0, 9), ("b", 1, 9)])
    lay(tmp_path, tracks([("b", f"{1:016x}", 1, faces(1, size=512)[0])]), Track)
    with pytest.raises(SelectionError, match="one face network and some with another"):
        choose(store, recipe.asked([]), Options(validation=0.5))


def test_clips_without_a_face_are_split_by_video(tmp_path):
    store = lay(tmp_path, clips(video_id=[f"v{n}" for n in range(10)]))
    chosen = choose(store, recipe.asked([]), Options(validation=0.2)).clips
    assert chosen["split"].to_pylist().count("validation") == 2


@pytest.mark.parametrize("share", [-0.1, 1.0, 2.0])
def test_a_share_is_a_share(tmp_path, share):
    with pytest.raises(SelectionError, match="from 0 to below 1"):
        choose(lay(tmp_path, clips(level=[1.0])), recipe.asked([]), Options(validation=share))
