"""The manifests' tables: atomic, replaceable by key, packable, on disk and in a bucket."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from manifests.schema import TABLES, Solo, Video, columns, schema
from manifests.store import ManifestError, ManifestStore

ROOT = Path(__file__).resolve().parents[2]


def solos(key: str, count: int) -> list[Solo]:
    return [Solo(key, float(index), index + 0.5, "S0") for index in range(count)]


def rows(store: ManifestStore) -> list[tuple]:
    return sorted((row["video_id"], row["start"]) for row in store.arrow(Solo).to_pylist())


def test_rows_come_back_as_they_were_written(tmp_path):
    store = ManifestStore(str(tmp_path))
    store.write(Solo, "a", solos("a", 3))
    assert store.read(Solo, "a") == solos("a", 3)
    assert store.read(Solo, "b") == []


def test_writing_a_key_again_replaces_its_rows_and_no_others(tmp_path):
    store = ManifestStore(str(tmp_path))
    store.write(Solo, "a", solos("a", 3))
    store.write(Solo, "b", solos("b", 2))
    store.write(Solo, "a", solos("a", 1))
    assert rows(store) == [("a", 0.0), ("b", 0.0), ("b", 1.0)]


def test_the_same_rows_are_the_same_bytes(tmp_path):
    for place in ("one", "two"):
        ManifestStore(str(tmp_path / place)).write(Solo, "a", solos("a", 50))
    one, two = ((tmp_path / place / "manifests/solos/a.parquet").read_bytes() for place in ("one", "two"))
    assert one == two


def test_every_column_of_every_table_says_what_it_means():
    for table in TABLES:
        for field in schema(table):
            assert field.metadata[b"meaning"], (table, field.name)
    assert schema(Video).field("duration").metadata[b"unit"] == b"s"


def test_units_travel_in_the_file(tmp_path):
    ManifestStore(str(tmp_path)).write(Solo, "a", solos("a", 1))
    stored = pq.read_schema(tmp_path / "manifests/solos/a.parquet")
    assert stored.field("start").metadata == {b"meaning": b"start of the stretch", b"unit": b"s"}


def test_packing_keeps_every_row_and_later_parts_win(tmp_path):
    store = ManifestStore(str(tmp_path))
    for key in "abcd":
        store.write(Solo, key, solos(key, 2))
    before = rows(store)
    assert store.compact() == 4
    assert len(list((tmp_path / "manifests/solos").glob("*.parquet"))) == 1
    assert rows(store) == before
    store.write(Solo, "b", solos("b", 5))
    store.forget(Solo, "c")
    expected = [("a", 0.0), ("a", 1.0), *[("b", float(index)) for index in range(5)], ("d", 0.0), ("d", 1.0)]
    assert rows(store) == expected
    assert store.read(Solo, "c") == [] and store.read(Solo, "d") == solos("d", 2)
    store.compact()
    assert rows(store) == expected
    plain = pa.dataset.dataset(tmp_path / "manifests/solos").to_table()
    assert plain.num_rows == len(expected), "after packing, any Parquet reader sees each row once"


def test_a_few_parts_are_not_packed_unless_asked(tmp_path):
    store = ManifestStore(str(tmp_path))
    store.write(Solo, "a", solos("a", 1))
    assert store.compact(more_than=1) == 0
    assert store.compact(more_than=0) == 1


def test_a_pack_stands_for_those_it_was_made_from_until_they_are_deleted(tmp_path, monkeypatch):
    store = ManifestStore(str(tmp_path))
    store.write(Solo, "a", solos("a", 2))
    store.compact()
    store.write(Solo, "a", solos("a", 3))
    store.write(Solo, "b", solos("b", 1))
    expected = rows(store)
    monkeypatch.setattr(store, "_delete", lambda paths: None)  # killed before it could
    store.compact()
    monkeypatch.undo()
    assert rows(store) == expected
    for part in (tmp_path / "manifests/solos").glob("?.parquet"):
        part.unlink()  # killed half way through
    assert rows(store) == expected
    store.compact()
    assert rows(store) == expected
    assert pa.dataset.dataset(tmp_path / "manifests/solos").to_table().num_rows == len(expected)


def test_compaction_leaves_another_holder_of_the_lock_alone(tmp_path):
    store = ManifestStore(str(tmp_path))
    store.write(Solo, "a", solos("a", 1))
    with store._lock() as held:
        assert held
        assert ManifestStore(str(tmp_path)).compact() == 0
    assert ManifestStore(str(tmp_path)).compact() == 1


def test_readers_never_see_half_a_write(tmp_path):
    store = ManifestStore(str(tmp_path))
    store.write(Solo, "a", solos("a", 2000))
    stop, seen = threading.Event(), set()

    def read() -> None:
        reader = ManifestStore(str(tmp_path))
        while not stop.is_set():
            seen.add(len(reader.read(Solo, "a")))

    watcher = threading.Thread(target=read)
    watcher.start()
    for _ in range(30):
        store.write(Solo, "a", solos("a", 1000))
        store.write(Solo, "a", solos("a", 2000))
    stop.set()
    watcher.join()
    assert seen <= {1000, 2000}


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_writer_leaves_whole_parts_and_no_part_that_is_not_whole(tmp_path, seed):
    code = (
        "from manifests.store import ManifestStore; from manifests.schema import Solo; import itertools\n"
        f"store = ManifestStore({str(tmp_path)!r})\n"
        "for n in itertools.count():\n"
        "    store.write(Solo, f'k{n % 7}', [Solo(f'k{n % 7}', float(i), i + 1.0, 'S0') for i in range(500)])\n"
        "    if n == 7: print('going', flush=True)\n"
        "    if n % 5 == 4: store.compact()\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    writer.stdout.readline()
    time.sleep(0.05 + 0.11 * seed)
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    store = ManifestStore(str(tmp_path))
    found = rows(store)
    assert len(found) == len(set(found)) == 7 * 500


def test_an_unreadable_part_is_named(tmp_path):
    store = ManifestStore(str(tmp_path))
    store.write(Solo, "a", solos("a", 1))
    part = tmp_path / "manifests/solos/a.parquet"
    part.write_bytes(part.read_bytes()[:50])
    with pytest.raises(ManifestError, match=r"a\.parquet: not readable as Parquet"):
        store.arrow(Solo)


def test_a_folder_that_cannot_be_written_is_an_error_that_names_it(tmp_path):
    (tmp_path / "manifests").write_text("a file where a folder should be")
    with pytest.raises(ManifestError, match="manifests/solos"):
        ManifestStore(str(tmp_path)).write(Solo, "a", solos("a", 1))


def test_a_full_disk_is_an_error_that_leaves_the_old_rows(tmp_path):
    store = ManifestStore(str(tmp_path))
    store.write(Solo, "a", solos("a", 2))
    code = (
        "import resource, signal\n"
        "from manifests.store import ManifestError, ManifestStore; from manifests.schema import Solo\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))\n"
        f"store = ManifestStore({str(tmp_path)!r})\n"
        "try:\n"
        "    store.write(Solo, 'a', [Solo('a', float(i), i * 1.7, str(i)) for i in range(5000)])\n"
        "except ManifestError as error:\n"
        "    print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "a.parquet: could not be written" in said
    assert store.read(Solo, "a") == solos("a", 2)
    assert not list((tmp_path / "manifests/solos").glob(".*.tmp"))


def test_the_first_column_is_the_key():
    assert [columns(table)[0] for table in TABLES] == [
        *["source_id", *["video_id"] * 7],
        *["failure_id", "run_id"],
    ]
