"""What an input names, and what is known of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.inputs import InputError, Source, find, mark_duplicates, parse_spans

ODD_NAMES = ["with space.mp4", "quote'\".mp4", "new\nline.mp4", "Ünïcödé 映画.mkv", "-dash.mp4", "%d[0-9]*?.mov"]


def fill(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def names(sources) -> list[str]:
    return [Path(source.path).name for source in sources]


def test_a_folder_is_searched_in_depth_for_videos_alone(tmp_path):
    fill(tmp_path, ["b.mp4", "a/deep/c.MKV", "notes.txt", "a/.hidden.mp4", *ODD_NAMES])
    assert sorted(names(find(str(tmp_path)))) == sorted(["b.mp4", "c.MKV", *ODD_NAMES])


def test_what_looks_like_a_video_but_is_none_is_kept_for_the_scan_to_refuse(tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.mp4")
    assert sorted(names(find(str(tmp_path)))) == ["folder.mp4", "gone.mp4", "pipe.mp4"]


def test_a_name_that_is_not_utf8_is_a_problem_of_that_file_alone(tmp_path):
    fill(tmp_path, ["fine.mp4"])
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4")).write_bytes(b"x")
    bad, good = sorted(find(str(tmp_path)), key=lambda source: source.path)
    assert "UTF-8" in bad.problem and "caf\\xe9.mp4" in bad.path
    assert not good.problem


def test_a_glob_and_a_single_file(tmp_path):
    fill(tmp_path, ["a1.mp4", "a2.mp4", "b.mp4"])
    assert names(find(f"{tmp_path}/a*.mp4")) == ["a1.mp4", "a2.mp4"]
    assert names(find(f"{tmp_path}/b.mp4")) == ["b.mp4"]


def test_a_list_is_read_in_its_order_and_each_path_once(tmp_path):
    fill(tmp_path, ["a b.mp4", "c.mp4"])
    (tmp_path / "list.txt").write_text(f"c.mp4\n{tmp_path}/a b.mp4\r\n\nc.mp4\n")
    assert names(find(f"{tmp_path}/list.txt")) == ["c.mp4", "a b.mp4"]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_brings_labels_and_spans(tmp_path, kind):
    fill(tmp_path, ["x.mp4", "y.mp4"])
    table = pa.table(
        {
            "path": ["x.mp4", str(tmp_path / "y.mp4")],
            "source_set": ["hdtf", None],
            "licence": ["CC BY 4.0", ""],
            "spans": ["12.5-60; 75-90", None],
            "anything": [1, 2],
        }
    )
    if kind == "parquet":
        pq.write_table(table, tmp_path / "t.parquet")
    else:
        import pyarrow.csv

        pyarrow.csv.write_csv(table, tmp_path / "t.csv")
    x, y = find(f"{tmp_path}/t.{kind}", source_set="youtube", licence="unknown")
    assert (x.source_set, x.licence, x.asked) == ("hdtf", "CC BY 4.0", (12.5, 60.0, 75.0, 90.0))
    assert (y.source_set, y.licence, y.asked) == ("youtube", "unknown", ())


def test_a_side_car_fills_what_the_table_leaves_open(tmp_path):
    fill(tmp_path, ["x.mp4"])
    facts = {"webpage_url": "https://example.org/v", "uploader": "Someone", "title": "T", "license": "CC"}
    (tmp_path / "x.info.json").write_text(json.dumps(facts))
    (source,) = find(str(tmp_path), licence="default")
    assert (source.url, source.uploader, source.title, source.licence) == (
        "https://example.org/v",
        "Someone",
        "T",
        "CC",
    )
    (tmp_path / "t.csv").write_text("path,title\nx.mp4,Given\n")
    (source,) = find(f"{tmp_path}/t.csv")
    assert source.title == "Given" and source.uploader == "Someone"


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"title": null}'])
def test_a_side_car_that_says_nothing_does_no_harm(tmp_path, content):
    fill(tmp_path, ["x.mp4"])
    (tmp_path / "x.info.json").write_text(content)
    assert names(find(str(tmp_path))) == ["x.mp4"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: f"{folder}/none", "no such file or folder"),
        (lambda folder: str(folder), "no videos there"),
        (lambda folder: _written(folder / "t.csv", "file,size\na,1\n"), "needs a column 'path'; it has file, size"),
        (lambda folder: _written(folder / "t.csv", "path,spans\na.mp4,5-2\n"), "spans '5-2' are not seconds"),
        (lambda folder: _written(folder / "t.parquet", "no parquet"), "not readable"),
    ],
)
def test_an_input_that_cannot_be_read_is_named(tmp_path, make, said):
    with pytest.raises(InputError, match=said):
        list(find(make(tmp_path)))


def _written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_spans_are_sorted_and_merged():
    assert parse_spans("10-20,5-7; 6-8", "here") == (5.0, 8.0, 10.0, 20.0)
    assert parse_spans([3, 4, 1, 2], "here") == (1.0, 2.0, 3.0, 4.0)


def test_exact_copies_are_told_from_files_of_equal_size(tmp_path):
    for name, content in {"a": b"1111", "b": b"2222", "c": b"1111", "d": b"33333"}.items():
        (tmp_path / f"{name}.mp4").write_bytes(content)
    sources = list(find(str(tmp_path)))
    marked = {Path(s.path).stem: Path(s.duplicate_of).stem for s in mark_duplicates(sources, {4}, {})}
    assert marked == {"a": "", "b": "", "c": "a", "d": ""}


def test_a_copy_of_what_an_earlier_run_saw_is_known(tmp_path):
    (tmp_path / "new.mp4").write_bytes(b"1111")
    digest = "0ffe1abd1a08215353c233d6e009613e95eec4253832a761af28ff37ac5a150c"
    (source,) = mark_duplicates(find(str(tmp_path)), set(), {4: [("/raw/old.mp4", digest)]})
    assert source.duplicate_of == "/raw/old.mp4"


def test_a_source_survives_its_journey_as_json():
    source = Source("/ä\n'\".mp4", 5, 7, "hdtf", "CC", asked=(1.5, 2.25))
    assert Source.from_json(source.to_json()) == source
