"""Shards read by place: what curation wrote, byte for byte; anything else is refused in words, and never run."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.shards import archived, npy
from tests.model.networks import small
from tests.training.packed import made
from training import shards
from training.members import BrokenSampleError, array, members
from training.shards import DataError, NoSamplesError, Reader, read_index

ROOT = Path(__file__).resolve().parents[2]
KEY = "clip000-000000"
VALUES = np.arange(24, dtype=np.float16).reshape(2, 3, 4)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> str:
    """Ten samples in three shards, and three of validation in one."""
    return made(tmp_path_factory.mktemp("shards"), samples=10, network=small(), validation=3, windows=2)


def by_tarfile(place: str, shard: str) -> dict[str, dict[str, bytes]]:
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(Path(place, shard)) as archive:
        for member in archive:
            key, ending = member.name.split(".", 1)
            found.setdefault(key, {})[ending] = archive.extractfile(member).read()
    return found


def altered(place: str, change) -> dict:
    """An index with a change made to it, written back."""
    path = Path(place, shards.INDEX)
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))
    return found


def test_a_sample_read_by_its_place_is_what_tarfile_finds(place):
    index = read_index(place)
    reader = Reader(index)
    assert [len(shard.keys) for shard in index.shards] == [4, 4, 2] and len(index) == 10
    expected = {key: sample for shard in index.shards for key, sample in by_tarfile(place, shard.name).items()}
    for number in reversed(range(10)):
        found = {ending: bytes(content) for ending, content in reader.sample(number).items()}
        assert found == expected[index.key(number)]
        latent = array(reader.sample(number)["latent.npy"])
        assert (latent == np.load(io.BytesIO(found["latent.npy"]))).all() and latent.dtype == np.float16


def test_each_split_is_an_index_of_its_own(place):
    assert len(read_index(place, "validation")) == 3
    assert not set(read_index(place).numbers) & set(read_index(place, "validation").numbers)


def test_reading_a_sample_copies_nothing(place):
    sample = Reader(read_index(place)).sample(0)
    assert all(view.obj is sample["json"].obj for view in sample.values())
    assert np.shares_memory(array(sample["latent.npy"]), np.frombuffer(sample["latent.npy"], np.uint8))


def test_a_sample_that_is_looked_at_stays_when_others_are_read(place):
    reader = Reader(read_index(place))
    latent = array(reader.sample(0)["latent.npy"])
    kept, first = latent.copy(), reader.sample(1)
    text = bytes(first["text.npy"])
    for number in range(10):
        reader.sample(number)
    assert (latent == kept).all() and bytes(first["text.npy"]) == text
    del latent, first
    memory = {reader.sample(number)["json"].obj.ctypes.data for number in range(10)}
    assert len(memory) <= 2, "once nobody looks, the same memory serves again"


def test_a_bucket_is_read_as_a_disk_is(bucket, place):
    from curation.shards import Place

    remote = Place(f"{bucket}/train")
    for path in Path(place).iterdir():
        remote.publish(path.name, path.read_bytes())
    there, here = Reader(read_index(f"{bucket}/train")), Reader(read_index(place))
    for number in (0, 9, 5):
        assert there.sample(number) == here.sample(number)
    assert shards.missing(there.index) == {}
    remote.delete("train-000001.tar")
    assert shards.missing(there.index) == {"train-000001.tar": "is not there"}
    with pytest.raises(BrokenSampleError, match=r"train-000001.tar is not there"):
        Reader(there.index).sample(5)


def test_a_reader_may_be_sent_to_another_process(place):
    reader = Reader(read_index(place))
    reader.sample(0)
    again = pickle.loads(pickle.dumps(reader))
    assert again.sample(7) == reader.sample(7)


def test_a_read_that_fails_is_tried_again(place, monkeypatch):
    reader = Reader(read_index(place), patience=(0.0, 0.0))
    real, failures = os.preadv, [OSError(5, "Input/output error"), OSError(116, "Stale file handle")]

    def flaky(*given):
        if failures:
            raise failures.pop()
        return real(*given)

    monkeypatch.setattr(os, "preadv", flaky)
    assert set(reader.sample(0)) == set(Reader(read_index(place)).sample(0)) and not failures
    failures += [OSError(5, "Input/output error")] * 3
    with pytest.raises(BrokenSampleError, match=r"train-000000.tar cannot be read: .*Input/output error"):
        reader.sample(0)


# Folders that are none -----------------------------------------------------------------------------------------------


def test_a_folder_without_an_index_says_what_is_missing(tmp_path):
    with pytest.raises(DataError, match=r"data.shards=.*there is no index.json; give the folder that curation/pack.py"):
        read_index(str(tmp_path))
    with pytest.raises(DataError, match=r"there is no index.json"):
        read_index(str(tmp_path / "nowhere"))


def test_a_split_without_samples_names_the_one_there_is(tmp_path):
    place = made(tmp_path, samples=2, network=small())
    with pytest.raises(NoSamplesError, match=r"no samples of data.split=validation; there is data.split=train"):
        read_index(place, "validation")
    altered(place, lambda found: found["shards"].clear())
    with pytest.raises(NoSamplesError, match=r"its selection was empty"):
        read_index(place)


@pytest.mark.parametrize(
    "name, change",
    [
        ("climbs out", lambda line: line.update(shard="../train-000000.tar")),
        ("absolute", lambda line: line.update(shard="/etc/passwd")),
        ("hidden", lambda line: line.update(shard="..")),
        ("no text", lambda line: line.update(shard=7)),
        ("beyond the end", lambda line: line["index"][0].update(size=10**9)),
        ("before the start", lambda line: line["index"][0].update(offset=-512)),
        ("empty", lambda line: line["index"][0].update(size=0)),
        ("no number", lambda line: line["index"][0].update(offset="0")),
        ("no key", lambda line: line["index"][0].pop("key")),
        ("no list", lambda line: line.update(index=None)),
    ],
)
def test_an_index_that_leads_astray_is_refused(tmp_path, name, change):
    place = made(tmp_path, samples=2, network=small())
    altered(place, lambda found: change(found["shards"][0]))
    with pytest.raises(DataError, match=r"index.json: not an index of shards .*; pack again"):
        read_index(place)


def test_an_index_that_is_cut_off_is_refused(tmp_path):
    place = made(tmp_path, samples=2, network=small())
    path = Path(place, shards.INDEX)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="not an index of shards"):
        read_index(place)


# Samples that are none -----------------------------------------------------------------------------------------------


def member(name: str = f"{KEY}.latent.npy", content: bytes = b"", kind: bytes = tarfile.REGTYPE, **facts) -> bytes:
    header = tarfile.TarInfo(name)
    header.size, header.type = len(content), kind
    for fact, value in facts.items():
        setattr(header, fact, value)
    return header.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


@pytest.mark.parametrize(
    "content, complaint",
    [
        (member(f"../{KEY}.json"), "a member '../clip000-000000.json', which is none of"),
        (member("/etc/cron.d/x.json"), "none of"),
        (member(f"{KEY}./../../x"), "none of"),
        (member("clip001-000000.json"), "none of"),
        (member(KEY), "none of"),
        (member(f"{KEY}."), "none of"),
        (member(kind=tarfile.SYMTYPE, linkname="/etc/passwd"), "none of"),
        (member(kind=tarfile.DIRTYPE), "none of"),
        (member(size=10**6), "latent.npy is cut off"),
        (member(content=b"12345")[:514], "latent.npy is cut off"),
        (b"not a tar archive" * 100, "no member of a tar archive at byte 0"),
        (member(content=b"1234") + b"\1" * 512, "no member of a tar archive at byte 1024"),
        (member()[:400], "no member of a tar archive at byte 0"),
    ],
)
def test_a_sample_that_is_not_made_of_its_own_files_is_broken(content, complaint):
    with pytest.raises(BrokenSampleError, match=complaint):
        members(KEY, memoryview(content))


class Payload:
    """What runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def header(text: str, version: int = 1) -> bytes:
    width = 2 if version == 1 else 4
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(width, "little") + text.encode()


@pytest.mark.parametrize("kind", ["f2", "f4", "i8", "u1", "b1"])
@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_arrays_of_numbers_are_read_as_numpy_reads_them(kind, version):
    content = io.BytesIO()
    np.lib.format.write_array(content, VALUES.astype(kind), version=version)
    found = array(memoryview(content.getvalue()))
    assert found.dtype == np.dtype(kind) and (found == VALUES.astype(kind)).all()
    assert (array(memoryview(npy(np.float32(3.5)))) == 3.5).all(), "without an axis"


def test_a_pickled_array_is_refused_and_what_it_holds_is_not_run(tmp_path):
    content = io.BytesIO()
    np.save(content, np.array([Payload(tmp_path / "ran")]), allow_pickle=True)
    with pytest.raises(BrokenSampleError, match="a pickled array, which may run anything when it is read"):
        array(memoryview(content.getvalue()))
    assert not (tmp_path / "ran").exists()
    np.load(io.BytesIO(content.getvalue()), allow_pickle=True)
    assert (tmp_path / "ran").exists(), "it would have"


@pytest.mark.parametrize(
    "content, complaint",
    [
        (b"", "not a .npy file"),
        (b"PK\x03\x04" + bytes(100), "not a .npy file"),
        (npy(VALUES)[:9], "not a .npy file"),
        (npy(VALUES)[:40], "cut off"),
        (npy(VALUES)[:-2], r"46 bytes for an array \[2, 3, 4\] of float16"),
        (npy(VALUES) + b"12", r"50 bytes for an array"),
        (header("{'descr': '<f2', 'fortran_order': False, 'shape': (2, -3)}") + bytes(12), r"\[2, -3\]"),
        (header("{'descr': '<f2', 'fortran_order': False, 'shape': (9999999999, 9999999999)}"), "0 bytes for an array"),
        (header("{'descr': '<f2', 'fortran_order': True, 'shape': (2, 3)}") + bytes(12), "by columns"),
        (header("{'descr': '>f2', 'fortran_order': False, 'shape': (6,)}") + bytes(12), "of >f2"),
        (header("{'descr': [('a', '<f2')], 'fortran_order': False, 'shape': (6,)}") + bytes(12), "an array"),
        (header("{'descr': '|O', 'fortran_order': False, 'shape': (6,)}") + bytes(48), "a pickled array"),
        (header("{'descr': '<U4', 'fortran_order': False, 'shape': (1,)}") + bytes(16), "an array"),
        (header("{'shape': (6,)}") + bytes(12), "not readable"),
        (header("__import__('os').system('true')"), "not readable"),
        (header("[" * 5000), "not readable"),
        (header("(" * 9000 + ")" * 9000, 2), "cut off, or too long"),
        (header("x" * 70_000, 2), "cut off, or too long"),
    ],
)
def test_what_is_no_array_of_numbers_is_broken(content, complaint):
    with pytest.raises(BrokenSampleError, match=complaint):
        array(memoryview(content))


WHOLE = archived(KEY, {"json": b"{}", "latent.npy": npy(VALUES), "text.npy": npy(VALUES[0])})


@given(st.data())
@settings(max_examples=250, deadline=None)
def test_whatever_is_damaged_is_a_broken_sample_and_nothing_else(data):
    content = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(
            st.integers(0, len(content) - 1) | st.sampled_from([0, 124, 156, 512, 1024, 1030, 1034, 1060])
        )
        content[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    content = content[: data.draw(st.integers(1, len(content)) | st.just(len(content)))]
    try:
        for ending, found in members(KEY, memoryview(content)).items():
            if ending.endswith("npy"):
                assert array(found).dtype.kind in "fiub"
    except BrokenSampleError:
        pass


# Whole shards --------------------------------------------------------------------------------------------------------


def test_shards_that_are_not_as_they_were_packed_are_found_without_reading_them(tmp_path):
    place = made(tmp_path, samples=10, network=small())
    assert shards.missing(read_index(place)) == {}
    path = tmp_path / "train-000000.tar"
    size = path.stat().st_size
    os.truncate(path, size - 512)
    (tmp_path / "train-000002.tar").unlink()
    assert shards.missing(read_index(place)) == {
        "train-000000.tar": f"has {size - 512} bytes, packed were {size}",
        "train-000002.tar": "is not there",
    }


def test_a_flipped_bit_is_found_by_reading_everything(tmp_path):
    place = made(tmp_path, samples=6, network=small(), validation=1)
    command = [sys.executable, str(ROOT / "training" / "verify.py"), f"shards={place}"]
    assert dict(shards.damaged(read_index(place))) == {"train-000000.tar": None, "train-000001.tar": None}
    path = tmp_path / "train-000001.tar"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    (tmp_path / "validation-000000.tar").unlink()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stdout.splitlines() == [
        "train-000000.tar: as packed",
        "train-000001.tar: holds other bytes than were packed",
        "validation-000000.tar: is not there",
    ]
    assert done.stderr == f"verify.py: 2 of 3 shards of {place} are damaged: copy or pack them again\n"
