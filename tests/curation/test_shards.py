"""Shards as files: whole or not at all, readable by anybody, the same bytes whatever happened in between."""

from __future__ import annotations

import hashlib
import io
import json
import resource
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from curation import shards
from curation.plan import Shard, Window
from curation.shards import INDEX, STAGING, Place, ShardError, archived, assemble, npy, staged
from tests.curation.packed import files

ROOT = Path(__file__).resolve().parents[2]
WINDOWS = tuple(Window(f"clip{n}", 49 * n) for n in (2, 0, 1))
SHARD = Shard("train-000000", "train", WINDOWS)


def members(window: Window) -> dict[str, bytes]:
    values = np.full((2, 3), window.first, np.float16)
    return {"json": json.dumps({"first": window.first}).encode(), "latent.npy": npy(values)}


def stage(place: Place, windows: tuple[Window, ...] = WINDOWS) -> None:
    for window in windows:
        place.publish(staged(SHARD.name, window.key), archived(window.key, members(window)))


def test_a_shard_is_a_tar_of_its_samples_in_the_planned_order(tmp_path):
    place = Place(str(tmp_path))
    stage(place, WINDOWS[::-1])
    assemble(place, SHARD, set())
    with tarfile.open(tmp_path / "train-000000.tar") as archive:
        found = archive.getmembers()
        content = archive.extractfile("clip1-000049.latent.npy").read()
    names = [f"{window.key}.{ending}" for window in WINDOWS for ending in ("json", "latent.npy")]
    assert [member.name for member in found] == names
    assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in found} == {(0, 0, 0, "", 0o644)}
    assert (np.load(io.BytesIO(content)) == 49).all()


def test_an_array_is_stored_without_pickling():
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        npy(np.array([{}]))


def test_the_index_says_where_each_sample_lies_and_what_it_is_made_of(tmp_path):
    place = Place(str(tmp_path))
    stage(place)
    shards.write_index(place, {"talkreel": "0"}, [assemble(place, SHARD, set())])
    index = json.loads((tmp_path / INDEX).read_text())
    (line,) = index["shards"]
    content = (tmp_path / line["shard"]).read_bytes()
    assert line["sha256"] == hashlib.sha256(content).hexdigest() and line["bytes"] == len(content)
    assert [row["key"] for row in line["index"]] == [window.key for window in WINDOWS]
    for row, window in zip(line["index"], WINDOWS, strict=True):
        part = content[row["offset"] : row["offset"] + row["size"]]
        assert part == archived(window.key, members(window))
    assert index["members"] == {"json": {}, "latent.npy": {"shape": [2, 3], "dtype": "float16"}}
    assert not (tmp_path / STAGING).exists()


def test_the_index_counts_what_is_enlarged_and_what_lies_between_black_sides(tmp_path):
    place = Place(str(tmp_path))
    crops = [{"upscaled": True, "padded": 0.0}, {"upscaled": False, "padded": 0.33}, {"upscaled": True, "padded": 0.1}]
    for window, crop in zip(WINDOWS, crops, strict=True):
        content = {"json": json.dumps({"crop": crop}).encode(), "latent.npy": npy(np.zeros(3))}
        place.publish(staged(SHARD.name, window.key), archived(window.key, content))
    written = assemble(place, SHARD, set())
    assert shards.finished(place) == {SHARD.name: written}
    shards.write_index(place, {}, [written])
    index = json.loads((tmp_path / INDEX).read_text())
    assert (index["upscaled"], index["padded"]) == (2, 2)
    assert shards.finished(place) == {SHARD.name: written}, "and counts again when a run goes on from the index"


def test_a_failed_clip_leaves_a_gap_and_moves_nothing_else(tmp_path):
    place = Place(str(tmp_path))
    stage(place, WINDOWS[::2])
    written = assemble(place, SHARD, {WINDOWS[1].clip_id})
    assert [key for key, _, _ in written.samples] == [WINDOWS[0].key, WINDOWS[2].key]


def test_a_sample_that_is_missing_for_no_reason_is_an_error(tmp_path):
    place = Place(str(tmp_path))
    stage(place, WINDOWS[:2])
    with pytest.raises(ShardError, match=f"1 samples of train-000000 are missing, {WINDOWS[2].key}"):
        assemble(place, SHARD, set())
    assert not list(tmp_path.glob("*.tar"))


def test_a_shard_of_failed_clips_alone_is_not_written(tmp_path):
    place = Place(str(tmp_path))
    written = assemble(place, SHARD, {window.clip_id for window in WINDOWS})
    assert shards.finished(place) == {SHARD.name: written}
    shards.write_index(place, {}, [written])
    assert set(files(tmp_path)) == {INDEX}
    assert set(shards.finished(place)) == {SHARD.name}


def test_a_finished_shard_is_known_and_one_that_was_cut_off_is_not(tmp_path):
    place = Place(str(tmp_path))
    assert shards.finished(place) == {}
    stage(place)
    written = assemble(place, SHARD, set())
    assert shards.finished(place) == {SHARD.name: written}
    tar = tmp_path / "train-000000.tar"
    tar.write_bytes(tar.read_bytes()[:-1])
    assert shards.finished(place) == {}


def test_a_file_that_fails_half_way_never_appears(tmp_path):
    place = Place(str(tmp_path))
    with pytest.raises(RuntimeError), place.written("a.tar") as sink:
        sink.write(b"half")
        raise RuntimeError
    assert files(tmp_path) == {}


def test_shards_in_a_bucket_are_those_on_disk(tmp_path, bucket):
    found = []
    for name in (str(tmp_path), f"{bucket}/shards"):
        place = Place(name)
        stage(place)
        shards.write_index(place, {}, [assemble(place, SHARD, set())])
        found.append({file: place.read(file) for file in place.files(recursive=True)})
    assert found[0] == found[1] and len(found[0]) == 2


def test_an_object_that_fails_half_way_never_stays(bucket):
    place = Place(f"{bucket}/half")
    with pytest.raises(RuntimeError), place.written("a.tar") as sink:
        sink.write(b"half")
        raise RuntimeError
    assert place.files() == {}


LIMITED = """
import resource, sys
from curation.shards import Place, ShardError
from tests.curation.test_shards import SHARD, assemble, stage
place = Place(sys.argv[1])
stage(place)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    assemble(place, SHARD, set())
except ShardError as error:
    print(error)
"""


def test_a_file_that_may_not_grow_is_a_clear_stop_and_nothing_counts(tmp_path):
    command = [sys.executable, "-c", LIMITED, str(tmp_path), "4000"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (
        f"{tmp_path}: files may not become that large; make room, and the same command goes on from here"
    )
    assert not list(tmp_path.glob("*.tar")) and shards.finished(Place(str(tmp_path))) == {}
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    assert assemble(Place(str(tmp_path)), SHARD, set()).bytes > 4000, "with room it goes on"


def test_a_full_disk_is_a_clear_stop_and_nothing_half_written_counts(small_disk):
    place = Place(str(small_disk))
    with pytest.raises(ShardError, match=f"{small_disk}: no room left on the disk; make room"):
        for number in range(100):
            place.publish(f"{number}.tar", bytes(20_000))
    sizes = set(place.files().values())
    assert sizes == {20_000} and not list((small_disk / STAGING).iterdir())
