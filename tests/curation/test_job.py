"""The whole job on real footage, on a real cluster, killed, resumed, run twice, and fed with what is no video."""

from __future__ import annotations

import contextlib
import csv
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import av
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from curation import pipeline
from curation.config import StageResources
from curation.inputs import Source
from manifests.schema import Clip, Failure, Loss, Run, Track, Video
from manifests.store import ManifestStore
from tests.bench.nothing import Nothing
from tests.curation import jobs
from tests.curation.mutations import mutate

ODD_NAMES = ["with space.mp4", "quote'\".mp4", "new\nline.mp4", "Ünïcödé 映画.mp4", "-dash.mp4", "%d[0-9]*?.mp4"]


def everything(output: Path, table: type) -> list:
    return ManifestStore(str(output)).arrow(table).to_pylist()


def test_every_input_is_accounted_for(films, undisturbed):
    output, said = undisturbed
    done = {Path(row["path"]).name for row in everything(output, Video) if row["status"] == "proposed"}
    failed = {Path(row["path"]).name for row in everything(output, Failure)}
    assert done | failed == {path.name for path in films.iterdir()} - {"sources.csv"}
    assert failed == {"broken.mp4"}
    assert re.search(r"broken\.mp4: scan: .+", said)


def test_clips_come_from_the_talking_footage_and_none_from_the_street(undisturbed):
    output, _ = undisturbed
    found = {Path(row["path"]).name for row in everything(output, Clip)}
    assert "jwpIntro.mp4" in found
    assert not found & {"bikes.mp4", "carphone_pristine.mp4", "shot_change.mp4"}


def test_clips_and_losses_cover_every_video_once(undisturbed):
    output, _ = undisturbed
    spans: dict[str, list[tuple[float, float]]] = {}
    for row in everything(output, Clip) + everything(output, Loss):
        spans.setdefault(row["video_id"], []).append((row["start"], row["end"]))
    videos = everything(output, Video)
    assert {row["video_id"] for row in videos} == set(spans)
    for row in videos:
        parts = sorted(spans[row["video_id"]])
        assert parts[0][0] == 0 and parts[-1][1] == pytest.approx(row["duration"], abs=1e-3)
        assert all(left[1] == right[0] for left, right in zip(parts, parts[1:], strict=False))


def test_labels_and_licences_reach_the_clips(undisturbed):
    output, _ = undisturbed
    (licence,) = {row["licence"] for row in everything(output, Clip) if row["path"].endswith("jwpIntro.mp4")}
    assert "GPL" in licence


def test_a_second_run_does_nothing_and_says_so(films, undisturbed, cluster):
    output, _ = undisturbed
    before = jobs.rows(output)
    started = time.monotonic()
    said = jobs.run([f"input={films}/sources.csv", f"output={output}"], cluster.environment)
    assert "0 files to do, 6 done before" in said and "nothing was left to do" in said
    assert "retry=true" in said
    assert jobs.rows(output) == before
    runs = sorted(everything(output, Run), key=lambda row: row["started"])
    assert (runs[-1]["files"], runs[-1]["skipped"]) == (0, 6)
    assert time.monotonic() - started < 60


def test_only_what_the_new_settings_touch_is_done_again(films, undisturbed, cluster, tmp_path):
    output = jobs.copy_of(undisturbed[0], tmp_path / "output")
    jobs.run([f"input={films}/sources.csv", f"output={output}", "propose.min_seconds=1.0"], cluster.environment)
    run = max(everything(output, Run), key=lambda row: row["started"])
    assert '"scan": 0.0' in run["core_seconds"] and '"listen": 0.0' in run["core_seconds"]
    assert jobs.rows(output)["shots"] == jobs.rows(undisturbed[0])["shots"]
    assert jobs.rows(output)["clips"] != jobs.rows(undisturbed[0])["clips"]


def test_a_copy_is_told_from_its_original(films, cluster, tmp_path):
    for name in ("a.mp4", "b.mp4"):
        shutil.copy(films / "shot_change.mp4", tmp_path / name)
    output = tmp_path / "output"
    said = jobs.run([f"input={tmp_path}", f"output={output}"], cluster.environment)
    assert sorted((Path(row["path"]).name, row["status"]) for row in everything(output, Video)) == [
        ("a.mp4", "proposed"),
        ("b.mp4", "duplicate"),
    ]
    assert "same content as another input" in said


def test_a_file_that_was_replaced_is_done_again(films, cluster, tmp_path):
    film, output = tmp_path / "film.mp4", tmp_path / "output"
    shutil.copy(films / "shot_change.mp4", film)
    jobs.run([f"input={film}", f"output={output}"], cluster.environment)
    (first,) = everything(output, Video)
    shutil.copy(films / "obama_speech.mp4", film)
    jobs.run([f"input={film}", f"output={output}"], cluster.environment)
    (second,) = everything(output, Video)
    assert first["video_id"] != second["video_id"]
    assert {row["video_id"] for row in everything(output, Loss)} == {second["video_id"]}


def test_what_failed_is_retried_on_request_alone(films, cluster, tmp_path):
    film, output = tmp_path / "film.mp4", tmp_path / "output"
    film.write_bytes((films / "broken.mp4").read_bytes())
    os.utime(film, (1e9, 1e9))
    said = jobs.run([f"input={film}", f"output={output}"], cluster.environment)
    assert "film.mp4: scan: " in said
    said = jobs.run([f"input={film}", f"output={output}"], cluster.environment)
    assert "1 files failed before" in said and "0 files to do" in said
    said = jobs.run([f"input={film}", f"output={output}", "retry=true"], cluster.environment)
    assert "1 files to do" in said and len(everything(output, Failure)) == 1


def test_odd_names_and_odd_things_under_a_videos_name(films, cluster, tmp_path):
    source, output = tmp_path / "source", tmp_path / "output"
    source.mkdir()
    for index, name in enumerate(ODD_NAMES):
        data = (films / "shot_change.mp4").read_bytes()
        (source / name).write_bytes(data + b"\0" * index)  # not copies of each other
    (source / "folder.mp4").mkdir()
    (source / "empty.mp4").touch()
    (source / "text.mp4").write_text("this is no video")
    (source / "gone.mp4").symlink_to(source / "nowhere")
    os.mkfifo(source / "pipe.mp4")
    Path(os.fsdecode(os.fsencode(source) + b"/caf\xe9.mp4")).write_bytes(b"x")
    jobs.run([f"input={source}", f"output={output}"], cluster.environment)
    assert sorted(Path(row["path"]).name for row in everything(output, Video)) == sorted(ODD_NAMES)
    reasons = {Path(row["path"]).name: row["message"] for row in everything(output, Failure)}
    assert set(reasons) == {"folder.mp4", "empty.mp4", "text.mp4", "gone.mp4", "pipe.mp4", "caf\\xe9.mp4"}
    for name, word in {"folder": "folder", "empty": "empty", "pipe": "not a file", "caf\\xe9": "UTF-8"}.items():
        assert word in reasons[f"{name}.mp4"].replace("directory", "folder"), reasons


def test_dry_run_says_what_would_be_done_and_does_nothing(films, tmp_path):
    output = tmp_path / "output"
    said = jobs.run([f"input={films}/sources.csv", f"output={output}", "dry_run=true"])
    assert "would work on 7 files" in said and "core-hours" in said and "broken.mp4" in said
    assert not output.exists()


def test_a_stage_that_cannot_be_set_up_stops_the_job_in_one_line(films, cluster, tmp_path):
    arguments = [f"input={films}/jwpIntro.mp4", f"output={tmp_path}/output", "listen.diarization=pyannote"]
    said = jobs.run([*arguments, f"listen.pyannote={tmp_path}/nowhere"], cluster.environment, status=1)
    last = said.strip().splitlines()[-1]
    assert last.startswith("run.py: PipelineError: ") and "Traceback" not in said, said
    assert not everything(tmp_path / "output", Failure)


@pytest.mark.parametrize(
    ("wanted", "shares", "said"),
    [
        (StageResources(gpus=0.5), 1, "resources.first.gpus: a worker wants 0.5, the whole cluster has 0"),
        (StageResources(cpus=8), 2, "resources.first.cpus: a worker wants 4, the whole cluster has 2"),
        (StageResources(cpus=4), 2, None),
    ],
)
def test_a_worker_that_wants_more_than_the_cluster_has_is_refused(wanted, shares, said):
    with pytest.raises(pipeline.JobError, match=said) if said else contextlib.nullcontext():
        pipeline._check([Nothing("first", wanted)], shares, {"CPU": 2.0})


def test_large_films_travel_alone_as_long_as_there_are_few():
    large = [Source(f"/{index}.mp4", 10**9, 0) for index in range(7)]
    small = [Source(f"/{index}.mp4", 1, 0) for index in range(7)]
    assert [len(block) for block in pipeline._blocks(large, 1, 4, 256e6)] == [1] * 7
    assert [len(block) for block in pipeline._blocks(large, 3, 4, 256e6)] == [3, 3, 1]
    assert [len(block) for block in pipeline._blocks(small, 1, 4, 256e6)] == [4, 3]


def test_manifests_that_cannot_be_written_stop_the_job_in_one_line(films, cluster, tmp_path):
    (tmp_path / "output/manifests").mkdir(parents=True)
    (tmp_path / "output/manifests/shots").write_text("a file where a folder should be")
    arguments = [f"input={films}/jwpIntro.mp4", f"output={tmp_path}/output"]
    said = jobs.run(arguments, cluster.environment, status=1)
    last = said.strip().splitlines()[-1]
    assert last.startswith(f"run.py: {tmp_path}/output/manifests/shots/") and "could not be written" in last


def test_footage_and_manifests_in_a_bucket(films, bucket, cluster, undisturbed, tmp_path):
    filesystem, place = fs.FileSystem.from_uri(f"{bucket}/raw")
    fs.copy_files(str(films / "jwpIntro.mp4"), f"{place}/jwpIntro.mp4", destination_filesystem=filesystem)
    # A Ray of its own: the cluster's workers have no key to the bucket.
    jobs.run([f"input={bucket}/raw", f"output={bucket}/data"], jobs.own_ray())
    clips = ManifestStore(f"{bucket}/data").arrow(Clip).to_pylist()
    local = [row for row in everything(undisturbed[0], Clip) if row["path"].endswith("jwpIntro.mp4")]
    assert clips and [row["clip_id"] for row in clips] == [row["clip_id"] for row in local]


# Scores ------------------------------------------------------------------------------------------------------------


def test_every_clip_is_scored_and_bound_to_the_one_who_speaks(scored):
    output, said = scored
    clips = {Path(row["path"]).name: row for row in everything(output, Clip)}
    assert {name: (row["status"], row["binding"], row["person"]) for name, row in clips.items()} == dict.fromkeys(
        ("jwpIntro.mp4", "testMovie.mp4", "obama_speech.mp4"), ("scored", "speaks", "P0")
    )
    both = [row for row in everything(output, Track) if row["clip_id"] == clips["obama_speech.mp4"]["clip_id"]]
    assert [row["person"] for row in both] == ["P0", "P1"]
    speaker, listener = sorted(both, key=lambda row: -row["lip_sync"])
    assert clips["obama_speech.mp4"]["track"] == speaker["track"] and max(speaker["right"]) > max(listener["right"])
    assert "score " in said and "scored" in said


def test_proposals_are_those_of_a_run_without_scores(scored, undisturbed):
    with_scores, without = (jobs.rows(output) for output, _ in (scored, undisturbed))
    for table in ("shots", "looks", "turns", "solos", "losses", "failures"):
        assert with_scores[table] == without[table]


def test_one_worker_scores_what_a_run_that_stopped_before_it_proposed(films, scored, undisturbed, cluster, tmp_path):
    output = tmp_path / "output"
    shutil.copytree(undisturbed[0], output)
    arguments = [f"input={films}/sources.csv", f"output={output}", "until=score", "resources.score.workers=1"]
    jobs.run(arguments, cluster.environment)
    assert jobs.rows(output) == jobs.rows(scored[0])
    run = max(everything(output, Run), key=lambda row: row["started"])
    assert '"scan": 0.0' in run["core_seconds"] and '"listen": 0.0' in run["core_seconds"]


def test_labels_that_change_leave_the_scores_alone(films, scored, cluster, tmp_path):
    output = tmp_path / "output"
    shutil.copytree(scored[0], output)
    with (films / "sources.csv").open() as source:
        _, *rows = csv.reader(source)
    with (tmp_path / "relabelled.csv").open("w", newline="") as sink:
        labelled = [(films / name, "package", "asked for", title) for name, _, _, title in rows]
        csv.writer(sink).writerows([("path", "source_set", "licence", "title"), *labelled])
    jobs.run([f"input={tmp_path}/relabelled.csv", f"output={output}", "until=score"], cluster.environment)
    run = max(everything(output, Run), key=lambda row: row["started"])
    assert '"score": 0.0' in run["core_seconds"]
    assert {(row["status"], row["licence"]) for row in everything(output, Clip)} == {("scored", "asked for")}


def test_a_clip_that_cannot_be_scored_is_a_failure_of_its_own(films, undisturbed, cluster, tmp_path):
    output = tmp_path / "output"
    shutil.copytree(undisturbed[0], output)
    arguments = [f"input={films}/sources.csv", f"output={output}", "until=score", "resources.score.memory_gb=0.05"]
    said = jobs.run(arguments, cluster.environment)
    clips = everything(output, Clip)
    assert {(row["status"], *row["unmeasured"]) for row in clips} == {("failed", "all: see the table failures")}
    failures = {row["key"]: row["error"] for row in everything(output, Failure) if row["stage"] == "score"}
    assert failures == {row["clip_id"]: "MemoryLimit" for row in clips}
    assert "more than 0.05 GB" in said
    # The files of these clips could be opened: in the funnel the broken one alone could not.
    assert re.search(r"inputs +7 files\n +cannot be opened or scanned +1 files", said), said
    assert re.search(r"failed +3 clips", said)
    said = jobs.run([*arguments[:3], "retry=true"], cluster.environment)
    assert {row["status"] for row in everything(output, Clip)} == {"scored"}
    assert not [row for row in everything(output, Failure) if row["stage"] == "score"]


# Kills -------------------------------------------------------------------------------------------------------------


def interrupted(films: Path, output: Path, seed: int, who: str, until: str = "score") -> None:
    """A run with a kill -9 at a seeded moment, then the same command again until it ends by itself."""
    dice = random.Random(seed)
    arguments = [f"input={films}/sources.csv", f"output={output}", f"until={until}"]
    job = jobs.start(arguments, jobs.own_ray())
    drain = threading.Thread(target=job.communicate, daemon=True)
    drain.start()
    try:
        if who == "driver":
            moment = dice.uniform(2, 40 if until == "score" else 20)
            jobs.wait_for(
                lambda: job.poll() is not None or psutil.Process(job.pid).create_time() < time.time() - moment, 90
            )
            family = psutil.Process(job.pid).children(recursive=True) if job.poll() is None else []
            job.send_signal(signal.SIGKILL)  # nothing, where it ended before
            psutil.wait_procs(family, 30)
        else:
            find = jobs.stage_processes if who == "stage" else jobs.ray_workers
            jobs.wait_for(lambda: find(job.pid) or job.poll() is not None, 90)
            time.sleep(dice.uniform(0, 16 if until == "score" else 8))
            victims = find(job.pid) if job.poll() is None else []
            if victims:
                dice.choice(victims).kill()
            drain.join(300)
            assert job.returncode == 0
    finally:
        jobs.kill_tree(job.pid)
        drain.join(30)
    jobs.run(arguments, jobs.own_ray())


@pytest.mark.parametrize(("who", "seed"), [("driver", 1), ("worker", 2), ("stage", 3)])
def test_a_kill_changes_nothing(films, undisturbed, tmp_path, who, seed):
    interrupted(films, tmp_path / "output", seed, who, "propose")
    assert jobs.rows(tmp_path / "output") == jobs.rows(undisturbed[0])


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("who", ["driver", "worker", "stage"])
def test_no_kill_changes_anything(films, undisturbed, scored, tmp_path, who, seed):
    until = "score" if seed < 3 else "propose"
    interrupted(films, tmp_path / "output", 100 + seed, who, until)
    expected = scored if until == "score" else undisturbed
    assert jobs.rows(tmp_path / "output") == jobs.rows(expected[0])


def test_two_runs_at_once_do_not_disturb_each_other(films, undisturbed, cluster, tmp_path):
    arguments = [f"input={films}/sources.csv", f"output={tmp_path}/output", "compact_above=0"]
    both = [jobs.start(arguments, environment) for environment in (jobs.own_ray(), jobs.own_ray())]
    for job in both:
        said, _ = job.communicate(timeout=400)
        assert job.returncode == 0, said
    assert jobs.rows(tmp_path / "output") == jobs.rows(undisturbed[0])


# As a job on a cluster ---------------------------------------------------------------------------------------------


def test_ray_job_submit(films, undisturbed, cluster, tmp_path):
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in ("curation", "manifests", "model"):
        shutil.copytree(jobs.ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    output = tmp_path / "output"
    command = [
        *[sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", cluster.dashboard],
        *["--working-dir", str(checkout), "--", "python", "curation/run.py"],
        *[f"input={films}/sources.csv", f"output={output}", "until=propose"],
    ]
    said = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, timeout=300, check=False)
    assert said.returncode == 0, said.stdout + said.stderr
    assert "succeeded" in said.stdout
    # A traceback in a log names the folder that the cluster unpacked the code into.
    assert jobs.rows(output, without=("log",)) == jobs.rows(undisturbed[0], without=("log",))


# Rows that break their process -------------------------------------------------------------------------------------


def test_a_row_that_breaks_its_process_is_lost_alone_and_recorded(cluster, tmp_path):
    deeds = ["first", "exit", "fill memory", "second", "hang", "segfault", "raise", "last"]
    command = [sys.executable, str(jobs.ROOT / "tests/curation/rough_job.py"), str(tmp_path), *deeds]
    said = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, timeout=200, check=True)
    states = dict(line.split(": ") for line in said.stdout.strip().splitlines())
    fine = {"first", "second", "last"}
    assert states == {deed: "done" if deed in fine else "failed" for deed in deeds}
    errors = {row["path"]: (row["error"], row["attempts"]) for row in everything(tmp_path, Failure)}
    assert errors == {
        "exit": ("WorkerDied", 3),
        "fill memory": ("MemoryLimit", 1),
        "hang": ("TimeLimit", 1),
        "segfault": ("WorkerDied", 3),
        "raise": ("ValueError", 1),
    }


# What travels ------------------------------------------------------------------------------------------------------


def test_no_frame_crosses_the_object_store(films, cluster, tmp_path):
    with jobs.StoreWatch(cluster) as watch:
        jobs.run([f"input={films}/jwpIntro.mp4", f"output={tmp_path}/output"], cluster.environment)
    assert 0 < watch.peak < 640 * 480 * 3 * 4, "less than four of the film's 173 frames"


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_no_frame_of_ten_minutes_at_1080p_crosses_the_object_store(footage, cluster, tmp_path):
    film = looped(footage / "negative" / "v2d_slides_narration_no_face.mp4", tmp_path / "long.mp4", 600)
    with jobs.StoreWatch(cluster) as watch:
        jobs.run([f"input={film}", f"output={tmp_path}/output", "scan.mode=full"], cluster.environment, limit=1500)
    (video,) = everything(tmp_path / "output", Video)
    assert video["duration"] >= 600 and (video["width"], video["height"]) == (1920, 1080)
    print(f"object store: at most {watch.peak / 1e6:.2f} MB")
    assert watch.peak < 1920 * 1080 * 3


def looped(film: Path, target: Path, seconds: float) -> Path:
    """The film's packets again and again until it is that long."""
    with av.open(str(film)) as source, av.open(str(target), "w") as sink:
        streams = {stream.index: sink.add_stream_from_template(stream) for stream in source.streams}
        length = source.duration / av.time_base
        for turn in range(int(seconds // length) + 1):
            source.seek(0)
            for packet in source.demux():
                if packet.dts is not None:
                    offset = round(turn * length / packet.time_base)
                    packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
                    packet.stream = streams[packet.stream_index]
                    sink.mux(packet)
    return target


# Broken files ------------------------------------------------------------------------------------------------------


def accounted_for(paths: list[Path], output: Path, environment: dict[str, str]) -> None:
    """Run the job on the paths: each has a row in `videos` or `failures`, with a reason a person understands."""
    listed = output.parent / "paths.parquet"
    pq.write_table(pa.table({"path": [str(path) for path in paths]}), listed)
    jobs.run([f"input={listed}", f"output={output}"], environment, limit=3000)
    videos = {row["path"]: row["status"] for row in everything(output, Video)}
    failures = {row["path"]: row for row in everything(output, Failure)}
    assert set(videos) | set(failures) == set(map(str, paths))
    for path, status in videos.items():
        assert status in ("proposed", "duplicate") or path in failures, (path, status)
    for path, row in failures.items():
        assert len(row["message"]) > 10 and row["error"] in ("MediaError", "TimeLimit", "MemoryLimit"), (path, row)


@pytest.mark.timeout(900)
def test_broken_files_are_all_accounted_for(films, cluster, tmp_path):
    originals = sorted(path for path in films.iterdir() if path.suffix == ".mp4")
    paths = [mutate(originals, tmp_path, seed) for seed in range(30)]
    accounted_for(paths, tmp_path / "output", cluster.environment)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_all_footage_and_two_hundred_mutations_are_accounted_for(footage, cluster, tmp_path):
    originals = sorted(path for path in footage.rglob("*") if path.is_file())
    media = [path for path in originals if path.suffix in (".mp4", ".avi", ".mov", ".wav")]
    broken = tmp_path / "broken"
    broken.mkdir()
    paths = [mutate(media, broken, 1000 + seed) for seed in range(200)]
    accounted_for([*originals, *paths], tmp_path / "output", cluster.environment)
