"""What a recipe keeps, what each bound costs, and the file that comes of it."""

from __future__ import annotations

import dataclasses
import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from manifests import recipe, selection
from manifests.bounds import bound
from manifests.candidates import duration
from manifests.schema import VERSION, Clip, columns, schema
from manifests.selection import Funnel, Lost, Options, SelectionError, again, choose, read, write
from manifests.store import ManifestStore, from_arrow
from tests.manifests.synthetic import clips, lay, pack

NAN = float("nan")
NUMBERS = some.one_of(some.none(), some.just(NAN), some.integers(-4, 4).map(float))
ROW = some.fixed_dictionaries(
    {
        "status": some.sampled_from(["scored", "scored", "scored", "stopped", "failed", None]),
        "duration": some.floats(0.04, 20),
        "level": NUMBERS,
        "sync_c": NUMBERS,
        "sync_offset": some.one_of(some.none(), some.integers(-9, 9)),
        "binding": some.sampled_from(["speaks", "dubbed", "", None]),
    }
)
BOUNDS = ["level>=0", "level<2", "sync_c>=-1", "sync_c<=3", "abs(sync_offset)<=6", "binding=speaks|", "binding!=dubbed"]


def wanted(*texts: str) -> recipe.Recipe:
    return recipe.asked(texts)


def ids(chosen: selection.Selection) -> list[int]:
    return [int(name, 16) for name in chosen.clips["clip_id"].to_pylist()]


@settings(deadline=None, max_examples=60)
@given(some.lists(ROW, min_size=1, max_size=30), some.lists(some.sampled_from(BOUNDS), unique=True))
def test_the_funnel_adds_up_and_agrees_with_counting_clip_by_clip(tmp_path_factory, rows, texts):
    table = clips(**{name: [row[name] for row in rows] for name in rows[0]})
    store = pack(tmp_path_factory.mktemp("random"), table)
    try:
        chosen = choose(store, wanted(*texts))
    except SelectionError:
        kept = [row for row in rows if row["status"] == "scored" and all(_keeps(row, text) for text in texts)]
        scored = [row for row in rows if row["status"] == "scored"]
        empty = any(all(_missing(row, text) for row in scored) for text in texts)
        assert not kept or not scored or empty
        return
    funnel = chosen.funnel
    assert funnel.clips == sum(lost.clips for lost in funnel.lost) + funnel.chosen_clips == len(rows)
    assert funnel.hours == pytest.approx(sum(lost.hours for lost in funnel.lost) + funnel.chosen_hours, abs=1e-9)
    assert funnel.hours == pytest.approx(sum(row["duration"] for row in rows) / 3600, abs=1e-8)
    left = [row for row in rows if row["status"] == "scored"]
    scored = list(left)
    for text, lost in zip(texts, funnel.lost[len(funnel.lost) - len(texts) :], strict=True):
        out = [row for row in left if not _keeps(row, text)]
        alone = [row for row in scored if not _keeps(row, text)]
        assert lost.bound == str(bound(text, schema(Clip)))
        assert (lost.clips, lost.alone_clips) == (len(out), len(alone))
        assert lost.unmeasured == sum(_missing(row, text) for row in scored)
        assert lost.alone_hours == pytest.approx(sum(row["duration"] for row in alone) / 3600, abs=1e-8)
        left = [row for row in left if _keeps(row, text)]
    assert funnel.chosen_clips == len(left) == chosen.clips.num_rows
    assert sorted(chosen.clips["duration"].to_pylist()) == sorted(row["duration"] for row in left)


def _missing(row: dict, text: str) -> bool:
    value = row[bound(text, schema(Clip)).column]
    return value is None or (isinstance(value, float) and math.isnan(value))


def _keeps(row: dict, text: str) -> bool:
    limit = bound(text, schema(Clip))
    return not _missing(row, text) and limit.holds(row[limit.column])


def test_each_bound_is_counted_after_those_before_it_and_alone(tmp_path):
    store = lay(tmp_path, clips(level=[1.0, 2.0, 3.0, None], sync_c=[9.0, 1.0, 1.0, 9.0]))
    with pytest.raises(SelectionError, match="nothing is left of 4 clips"):
        choose(store, wanted("level>=2", "sync_c>=5"))
    funnel = choose(store, wanted("level>=2", "sync_c<=5")).funnel
    assert funnel.lost == (Lost("level>=2", 2, 0.02, 2, 0.02, 1), Lost("sync_c<=5", 0, 0.0, 2, 0.02, 0))
    assert (funnel.clips, funnel.hours, funnel.chosen_clips, funnel.chosen_hours) == (4, 0.04, 2, 0.02)


def test_clips_that_were_not_scored_are_counted_first_and_by_why(tmp_path):
    store = lay(tmp_path, clips(status=["scored", None, "stopped", "stopped", "failed"], level=[1.0, *[None] * 4]))
    funnel = choose(store, wanted("level>=0")).funnel
    assert [(lost.bound, lost.clips) for lost in funnel.lost] == [
        *[("not scored yet", 1), ("stopped by the cascade", 2), ("could not be scored", 1), ("level>=0", 0)]
    ]
    assert funnel.lost[-1].unmeasured == 0, "a clip that was not scored lacks no value of its own"


def test_the_funnel_is_printed_with_every_line_of_it(tmp_path):
    store = lay(tmp_path, clips(level=[1.0, 2.0, None], sync_c=[9.0, 1.0, 1.0]))
    lines = choose(store, wanted("level>=2", "sync_c>=0")).funnel.lines()
    assert [line.split() for line in lines] == [
        ["clips", "min", "alone", "min", "no", "value"],
        ["candidates", "3", "1.8"],
        ["level>=2", "-2", "-1.2", "-2", "-1.2", "1"],
        ["sync_c>=0", "0", "0", "0", "0"],
        ["chosen", "1", "0.6"],
    ]


@pytest.mark.parametrize(("hours", "told"), [(12.345, "12.3 h"), (0.25, "15.0 min"), (0.005, "18.0 s"), (0, "0.0 s")])
def test_a_duration_is_told_in_the_unit_that_fits(hours, told):
    assert duration(hours) == told


def test_a_column_that_is_null_everywhere_is_an_error_that_says_why(tmp_path):
    why = ["sync_c, sync_d, sync_offset: score.syncnet names no weights", "level: no sound"]
    store = lay(tmp_path, clips(level=[1.0, 2.0], unmeasured=[why, why[:1]]))
    with pytest.raises(SelectionError, match=r"sync_c>=3: .* all 2 scored clips: score.syncnet names no weights \(2\)"):
        choose(store, wanted("level>=0", "sync_c>=3"))


def test_a_column_of_nan_alone_is_as_null(tmp_path):
    store = lay(tmp_path, clips(level=[NAN, NAN]))
    with pytest.raises(SelectionError, match="no reason is recorded"):
        choose(store, wanted("level>=0"))


def test_manifests_without_clips_or_scores_say_what_to_run(tmp_path):
    with pytest.raises(SelectionError, match=r"no clips there; make some with curation/run.py"):
        choose(ManifestStore(str(tmp_path)), wanted("level>=0"))
    store = lay(tmp_path, clips(status=[None, None]))
    with pytest.raises(SelectionError, match=r"none of the 2 clips is scored \(2 not scored yet\)"):
        choose(store, wanted("level>=0"))


def test_an_empty_selection_is_an_error_that_names_the_strictest_bound(tmp_path):
    store = lay(tmp_path, clips(level=[1.0, 2.0, 3.0], sync_c=[1.0, 9.0, 9.0]))
    with pytest.raises(SelectionError, match="nothing is left of 3 clips: level>=4 alone removes 3"):
        choose(store, wanted("sync_c>=5", "level>=4"))


def test_a_word_that_no_clip_has_is_noted_with_those_there_are(tmp_path):
    store = lay(tmp_path, clips(source_set=["hdtf", "movie", "movie"]))
    chosen = choose(store, wanted("source_set=hdtf|youtub"))
    assert ids(chosen) == [0]
    assert chosen.notes == ("no clip has source_set=youtub: there is 'movie', 'hdtf'",)


def test_a_word_with_a_quote_in_it_is_only_a_word(tmp_path):
    store = lay(tmp_path, clips(source_set=["it's", "other"]))
    assert ids(choose(store, wanted("source_set=it's"))) == [0]


def test_a_part_stands_before_the_pack_and_packing_changes_nothing(tmp_path):
    store = lay(tmp_path, clips(video_id=["a", "a", "b", "b"], level=[5.0, 1.0, 5.0, 1.0]))
    assert store.compact() == 1 + 1
    newer = clips(video_id=["a", "a"], clip_id=["a1", "a2"], level=[1.0, 7.0])
    store = lay(tmp_path, newer)
    before = choose(store, wanted("level>=5"))
    assert before.clips["clip_id"].to_pylist() == ["0000000000000002", "a2"]
    assert before.funnel.clips == 4
    store.compact()
    assert choose(store, wanted("level>=5")).clips.equals(before.clips)


def test_rows_come_in_the_order_of_their_ids_with_every_column_and_its_meaning(tmp_path):
    table = clips(video_id=["b", "a"], clip_id=["2", "1"], crop=[[0.1, 0.2, 0.3, 0.4], []], sync_offset=[3, None])
    found = choose(lay(tmp_path, table), wanted("duration>=1")).clips
    assert found.column_names == [*columns(Clip), "split"]
    assert found["clip_id"].to_pylist() == ["1", "2"] and found["crop"].to_pylist() == [[], [0.1, 0.2, 0.3, 0.4]]
    assert found.schema.field("level").metadata == schema(Clip).field("level").metadata
    assert from_arrow(Clip, found)[1].sync_offset == 3
    assert set(found["split"].to_pylist()) == {"train"}


# The file ------------------------------------------------------------------------------------------------------


@pytest.fixture
def laid(tmp_path) -> ManifestStore:
    levels = [float(n) for n in range(10)]
    return lay(tmp_path, clips(video_id=[f"v{n // 2}" for n in range(10)], level=levels, sync_c=levels[::-1]))


def test_a_selection_reads_back_as_it_was_written(laid):
    chosen = choose(laid, wanted("level>=3", "sync_c>=2"), Options(validation=0.3, seed=4), "mine")
    write(laid.output, chosen)
    found = read(laid.output, "mine")
    assert found.clips.equals(chosen.clips, check_metadata=True)
    assert dataclasses.replace(found, clips=None) == dataclasses.replace(chosen, clips=None, notes=())


def test_the_same_manifests_and_settings_give_the_same_bytes(laid, tmp_path_factory):
    elsewhere = lay(tmp_path_factory.mktemp("elsewhere"), laid.arrow(Clip))
    elsewhere.compact()
    options = Options(validation=0.3)
    for store in (laid, elsewhere):
        write(store.output, choose(store, wanted("level>=3"), options, "mine"))
    one, other = ((f"{store.output}/selections/mine.parquet") for store in (laid, elsewhere))
    with open(one, "rb") as first, open(other, "rb") as second:
        assert first.read() == second.read()


def test_what_is_recorded_is_enough_to_make_it_again_without_the_recipe(laid, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("about: mine\nlimits:\n  - {bound: level>=3, source: trust me}\n")
    write(laid.output, choose(laid, recipe.load(str(own)), Options(validation=0.3)))
    own.unlink()
    found, different = again(laid, "own")
    assert different == [] and found.recipe.limits[0].source == "trust me"
    assert found.clips.equals(read(laid.output, "own").clips)


def test_repeating_tells_what_changed_in_the_manifests(laid):
    write(laid.output, choose(laid, wanted("level>=3"), name="mine"))
    lay(laid.output, clips(video_id=["v4", "v4"], clip_id=[f"{8:016x}", "new"], level=[8.0, 8.0], sync_c=[5.0, 5.0]))
    found, different = again(laid, "mine")
    assert different == ["1 clips are gone", "1 clips are new", "other values in sync_c"]
    assert found.clips.num_rows == 7
    lay(laid.output, clips(video_id=["v9"], level=[0.0]))
    assert "the funnel began with 10 clips, now with 11" in again(laid, "mine")[1]


def test_repeating_keeps_the_threshold_that_was_found_then(laid):
    write(laid.output, choose(laid, wanted(), Options(keep_hours=0.02, along="level>="), "mine"))
    lay(laid.output, clips(video_id=["v9"], clip_id=["new"], level=[99.0]))
    found, different = again(laid, "mine")
    assert [str(limit.bound) for limit in found.recipe.limits] == ["level>=8"]
    assert different[0] == "1 clips are new"


def test_a_selection_that_is_not_there_names_those_that_are(laid):
    with pytest.raises(SelectionError, match=r"there is none; python manifests/filter.py"):
        read(laid.output, "mine")
    write(laid.output, choose(laid, wanted("level>=3"), name="yours"))
    with pytest.raises(SelectionError, match=r"no selection 'mine' in .*: there is yours;"):
        read(laid.output, "mine")


@pytest.mark.parametrize("name", ["", "../manifests", ".hidden", "a/b"])
def test_a_name_is_a_file_name(laid, name):
    with pytest.raises(SelectionError, match="is no name for a selection"):
        read(laid.output, name)


def test_a_file_that_is_cut_off_or_damaged_is_named(laid):
    path = write(laid.output, choose(laid, wanted("level>=3"), name="mine"))
    with open(path, "rb") as source:
        whole = source.read()
    column = pq.read_metadata(path).row_group(0).column(columns(Clip).index("level"))
    end = (column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size
    flipped = [whole[:place] + bytes([whole[place] ^ 64]) + whole[place + 1 :] for place in range(end - 12, end)]
    for damaged in (whole[: len(whole) // 2], b"", *flipped):
        with open(path, "wb") as sink:
            sink.write(damaged)
        with pytest.raises(SelectionError, match=r"mine\.parquet: cut off or damaged"):
            read(laid.output, "mine")


def test_a_parquet_file_that_is_no_selection_is_refused(laid, tmp_path):
    write(laid.output, choose(laid, wanted("level>=3"), name="mine"))
    pq.write_table(pa.table({"a": [1]}), tmp_path / "selections/mine.parquet")
    with pytest.raises(SelectionError, match=r"not written by manifests/filter\.py"):
        read(laid.output, "mine")


def test_a_selection_of_another_schema_version_is_refused_but_its_recipe_can_be_repeated(laid):
    chosen = choose(laid, wanted("level>=3"), name="mine")
    write(laid.output, dataclasses.replace(chosen, made={**chosen.made, "schema_version": "0"}))
    with pytest.raises(
        SelectionError, match=f"made with schema version 0, this is {VERSION}: .* repeat=mine name=mine"
    ):
        read(laid.output, "mine")
    assert again(laid, "mine")[0].clips.num_rows == 7


def test_what_cannot_be_written_is_an_error_and_leaves_nothing(laid, tmp_path):
    (tmp_path / "selections").write_text("a file where a folder should be")
    with pytest.raises(SelectionError, match="could not be written"):
        write(laid.output, choose(laid, wanted("level>=3"), name="mine"))


def test_a_selection_lives_in_a_bucket(bucket):
    store = lay(f"{bucket}/choosing", clips(level=[1.0, 2.0, 3.0]))
    write(store.output, choose(store, wanted("level>=2"), name="mine"))
    assert ids(read(store.output, "mine")) == [1, 2]
    assert again(store, "mine")[1] == []


def test_everything_recorded_is_plain_json_in_the_file(laid):
    path = write(laid.output, choose(laid, wanted("level>=3"), Options(seed=7), "mine"))
    notes = json.loads(pq.read_schema(path).metadata[b"selection"])
    assert notes["recipe"]["limits"] == [{"bound": "level>=3", "source": "the command line"}]
    assert notes["made"]["options"]["seed"] == 7 and len(notes["made"]["manifests"]) == 64
    assert Funnel(**{**notes["funnel"], "lost": ()}).chosen_clips == 7


# The threshold that keeps so many hours -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("along", "hours", "found", "kept"),
    [
        ("level>=", 0.03, "level>=7", [7, 8, 9]),
        ("level<=", 0.03, "level<=2", [0, 1, 2]),
        ("level>=", 0.021, "level>=7", [7, 8, 9]),  # never fewer than asked for
        ("abs(sync_offset)<=", 0.03, "abs(sync_offset)<=1", [4, 5, 6]),
    ],
)
def test_the_threshold_that_keeps_so_many_hours(tmp_path, along, hours, found, kept):
    levels = [float(n) for n in range(10)]
    store = lay(tmp_path, clips(level=levels, sync_offset=[n - 5 for n in range(10)]))
    chosen = choose(store, wanted(), Options(keep_hours=hours, along=along))
    assert [str(limit.bound) for limit in chosen.recipe.limits] == [found]
    assert chosen.recipe.limits[0].source == f"keep_hours={hours:g}"
    assert ids(chosen) == kept
    assert chosen.notes == (f"{found} keeps {hours:g} hours",)


def test_it_is_found_among_what_the_other_bounds_leave_and_takes_the_side_of_the_recipe(laid):
    chosen = choose(laid, wanted("level>=9", "sync_c>=4"), Options(keep_hours=0.02, along="level"))
    assert [str(limit.bound) for limit in chosen.recipe.limits] == ["sync_c>=4", "level>=4"]
    assert ids(chosen) == [4, 5]


def test_the_bound_on_the_other_side_stays(laid):
    chosen = choose(laid, wanted("level>=1", "level<=6"), Options(keep_hours=0.02, along="level>="))
    assert [str(limit.bound) for limit in chosen.recipe.limits] == ["level<=6", "level>=5"]


def test_the_threshold_has_no_more_digits_than_it_needs(tmp_path):
    store = lay(tmp_path, clips(level=[0.123456, 0.2718281, 0.3141592, 0.31422]))
    for hours, found in (
        (0.01, "level>=0.3142"),
        (0.02, "level>=0.3"),
        (0.03, "level>=0.27"),
        (0.04, "level>=0.123456"),
    ):
        chosen = choose(store, wanted(), Options(keep_hours=hours, along="level>="))
        assert str(chosen.recipe.limits[0].bound) == found
        assert chosen.funnel.chosen_hours == pytest.approx(hours)


def test_clips_of_one_value_are_kept_together(tmp_path):
    store = lay(tmp_path, clips(level=[1.0, 2.0, 2.0, 2.0, 3.0]))
    assert choose(store, wanted(), Options(keep_hours=0.02, along="level>=")).funnel.chosen_clips == 4


def test_more_hours_than_there_are_keep_everything_and_say_so(laid):
    chosen = choose(laid, wanted("level>=9"), Options(keep_hours=50, along="level"))
    assert chosen.funnel.chosen_clips == 10 and "fewer than 50 hours" in chosen.notes[0]


@pytest.mark.parametrize(
    ("along", "said"),
    [("", "needs along="), ("sync_c", "which side"), ("lvel>=", "did you mean 'level'"), ("binding>=", "holds words")],
)
def test_a_column_that_cannot_be_gone_along_is_refused(laid, along, said):
    with pytest.raises(SelectionError, match=said):
        choose(laid, wanted("level>=1"), Options(keep_hours=1.0, along=along))
