"""Copies of a clip are found by picture and sound together, wherever the copy begins."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from manifests import recipe
from manifests.choice import COPIES
from manifests.duplicates import Prints, copies, pairs
from manifests.explanation import explain
from manifests.selection import Options, SelectionError, choose
from tests.manifests.synthetic import clips, lay


def film(seed: int, seconds: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of pictures and sound of a film; a picture is much like the one before, as of a head that talks."""
    random = np.random.default_rng(seed)
    picture = np.repeat(random.integers(0, 2**63, dtype=np.int64), seconds)
    picture = noisy(picture, 0.05, 63, seed + 1)
    # A window of sound shares most of its bits with the one before.
    bits = np.repeat(random.random((seconds * 20 // 4 + 1, 32)) < 0.5, 4, axis=0)[: seconds * 20]
    return picture, bits @ (1 << np.arange(32, dtype=np.int64))


def noisy(hashes: np.ndarray, share: float, bits: int, seed: int) -> np.ndarray:
    """The same with a share of the bits turned over."""
    flips = np.random.default_rng(seed).random((len(hashes), bits)) < share
    return hashes ^ (flips @ (np.int64(1) << np.arange(bits, dtype=np.int64)))


def prints(*rows: tuple[np.ndarray, np.ndarray]) -> Prints:
    table = pa.table(
        {
            "picture_hash": pa.array([picture.tolist() for picture, _ in rows], pa.list_(pa.int64())),
            "sound_hash": pa.array([sound.tolist() for _, sound in rows], pa.list_(pa.int64())),
        }
    )
    return Prints.of(table)


def found(*rows: tuple[np.ndarray, np.ndarray]) -> list[tuple[int, int]]:
    return list(pairs(prints(*rows)))


def part(film: tuple[np.ndarray, np.ndarray], first: int, last: int, noise: float = 0.0, seed: int = 9):
    picture, sound = film
    return noisy(picture[first:last], noise / 3, 63, seed), noisy(sound[20 * first : 20 * last], noise, 32, seed)


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.1])
@pytest.mark.parametrize("first", [0, 2])
def test_a_copy_is_found_though_it_begins_elsewhere_and_its_bits_differ(noise, first):
    one = film(1)
    assert found(part(one, 0, 8), part(film(2), 0, 8), part(one, first, 8, noise)) == [(0, 2)]


def test_other_films_are_no_copies():
    assert found(*(part(film(10 * n), 0, 10) for n in range(40))) == []


def test_the_same_picture_with_another_sound_is_no_copy():
    (picture, _), (_, sound) = film(1), film(2)
    assert found(film(1), (picture, sound)) == []


def test_the_same_sound_with_another_picture_is_no_copy():
    (picture, _), (_, sound) = film(2), film(1)
    assert found(film(1), (picture, sound)) == []


def test_two_clips_that_share_less_than_half_of_the_shorter_are_both_kept():
    one = film(1)
    assert found(part(one, 0, 10), part(one, 6, 16)) == []
    assert found(part(one, 0, 10), part(one, 4, 14)) == [(0, 1)]


def test_silence_and_flat_pictures_match_nothing():
    silent = (np.full(8, 77), np.full(160, -1))
    flat = (np.full(8, -1), film(1, 8)[1])
    assert found(silent, silent, flat, flat) == []


def test_a_few_windows_alike_do_not_make_the_same_sound():
    (picture, sound), (_, other) = film(1, 8), film(2, 8)
    assert found((picture, sound), (picture, np.concatenate([sound[:30], other[30:]]))) == []


def test_a_jingle_that_everybody_has_makes_no_copies():
    jingle = film(99)[1][:40]
    talks = [film(7 * n, 10) for n in range(60)]
    assert found(*((picture, np.concatenate([jingle, sound])) for picture, sound in talks)) == []


def test_of_a_crowd_of_copies_one_is_kept():
    crowd = prints(*(part(film(1), 0, 8, 0.02, seed) for seed in range(60)), part(film(2), 0, 8))
    rank = np.random.default_rng(0).permutation(61)
    kept = int(np.argmin(rank[:60]))
    assert copies(crowd, rank).tolist() == [-1 if n == kept else kept for n in range(60)] + [-1]


def test_a_hum_that_lasts_does_not_hide_a_copy():
    hum = np.full(100, 12345)
    rows = [(film(n)[0][:13], np.concatenate([hum, film(n)[1][:160]])) for n in range(1, 30)]
    assert found(*rows, rows[4]) == [(4, 29)]


def test_of_copies_the_one_of_least_rank_is_kept():
    one = film(1)
    three = prints(part(one, 0, 8), part(one, 0, 8, 0.03, 3), part(film(2), 0, 8), part(one, 0, 8, 0.03, 4))
    assert copies(three, np.array([2, 0, 3, 1])).tolist() == [1, -1, -1, 1]


def test_a_copy_of_a_copy_that_shares_nothing_with_what_is_kept_is_kept():
    one = film(1)
    chain = prints(part(one, 0, 10), part(one, 4, 14), part(one, 9, 19))
    assert copies(chain, np.array([0, 1, 2])).tolist() == [-1, 0, -1]


def test_prints_of_some_clips_are_theirs():
    rows = [film(n, n + 2) for n in range(4)]
    some = prints(*rows).take(np.array([3, 1]))
    assert some.sound_at.tolist() == [0, 100, 160]
    assert (some.sound == np.concatenate([rows[3][1], rows[1][1]])).all()
    assert prints((np.zeros(0, int), np.zeros(0, int)), *rows).known().tolist() == [False, True, True, True, True]


@pytest.fixture
def doubled(tmp_path):
    """Five clips: 0, 1 and 3 show the same, 1 finest of them and 3 too quiet; 4 has no fingerprint."""
    one, other = film(1), film(2)
    rows = [
        part(one, 0, 8),
        part(one, 1, 8, 0.03, 3),
        part(other, 0, 8),
        part(one, 0, 8, 0.03, 4),
        (np.zeros(0, int),) * 2,
    ]
    return lay(
        tmp_path,
        clips(
            picture_hash=[picture.tolist() for picture, _ in rows],
            sound_hash=[sound.tolist() for _, sound in rows],
            width=[640, 1280, 640, 1920, 640],
            height=[360, 720, 360, 1080, 360],
            level=[-20.0, -20.0, -20.0, -60.0, -20.0],
        ),
    )


def test_copies_are_dropped_last_and_have_their_line_in_the_funnel(doubled):
    chosen = choose(doubled, recipe.asked(["level>=-50"]), Options(drop_duplicates=True))
    assert [int(name, 16) for name in chosen.clips["clip_id"].to_pylist()] == [1, 2, 4]
    line = chosen.funnel.lost[-1]
    assert (line.bound, line.clips, line.alone_clips, line.unmeasured) == (COPIES, 1, 2, 1)
    assert chosen.funnel.clips == sum(lost.clips for lost in chosen.funnel.lost) + chosen.funnel.chosen_clips


def test_a_copy_is_explained_by_what_is_kept_in_its_place(doubled):
    told = explain(doubled, recipe.asked(["level>=-50"]), f"{0:016x}", drop_duplicates=True)
    assert told.removed_by == f"being a copy of {1:016x}"
    assert explain(doubled, recipe.asked(["level>=-50"]), f"{1:016x}", drop_duplicates=True).removed_by == ""


def test_manifests_whose_clips_have_no_fingerprint_say_so(tmp_path):
    with pytest.raises(SelectionError, match="no clip has a fingerprint"):
        choose(lay(tmp_path, clips(level=[1.0])), recipe.asked([]), Options(drop_duplicates=True))
