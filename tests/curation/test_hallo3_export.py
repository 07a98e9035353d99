"""Clips as the tree and the JSON that Hallo3's own trainer reads."""

from __future__ import annotations

import io
import json
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from curation.packing import Outcome
from curation.stages.pack import RATE, Subject
from manifests.schema import Track
from manifests.store import ManifestStore
from model import media, weights
from tests.curation.packed import curated, files, pack, select

KEYS = ["video_path", "face_mask_union_path", "face_emb_path", "vocals_emb_base_all", "caption"]


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> Path:
    """One film with two clips."""
    folder = tmp_path_factory.mktemp("output")
    film = folder / "film.mp4"
    film.write_bytes(weights.path("psychopy-jwpIntro").read_bytes())
    (folder / "film.txt").write_text("A man with a beard talks.")
    curated(folder, {film: [(0.2, 2.6), (3.0, 5.6)]})
    select(folder)
    return folder


@pytest.fixture(scope="module")
def tree(output, tmp_path_factory) -> tuple[Path, Outcome]:
    place = tmp_path_factory.mktemp("tree") / "tree"
    return place, pack(output, place, format="hallo3")


def entries(tree: tuple[Path, Outcome]) -> list[dict]:
    return json.loads((tree[0] / "train.json").read_text())


def test_every_clip_has_an_entry_with_the_trainers_keys_and_all_its_files(tree):
    found = entries(tree)
    assert len(found) == tree[1].samples == 2
    for entry in found:
        assert list(entry) == KEYS and entry["caption"] == "A man with a beard talks."
        assert all(Path(entry[key]).is_file() for key in KEYS[:4])
    assert {path.parent.name for path in tree[0].glob("*/*")} == {"videos", "face_mask", "face_emb", "audio_emb"}


def test_what_the_trainer_reads_of_a_clip_fits_together(output, tree):
    tracks = {row.clip_id: row for row in _tracks(output)}
    for entry in entries(tree):
        name = Path(entry["video_path"]).stem
        probe = media.probe(entry["video_path"])
        assert probe.video is not None and (probe.video.width, probe.video.height) == (192, 128)
        assert probe.audio is not None and probe.audio.sample_rate == RATE
        audio = torch.load(entry["vocals_emb_base_all"], weights_only=True)
        assert audio.dtype == torch.float32 and audio.shape == (probe.video.frames, 5, 384)
        assert probe.video.frames == len(tracks[name].left)
        face = torch.load(entry["face_emb_path"], weights_only=True)
        assert face.dtype == torch.float32 and face.shape == (128,) and torch.isfinite(face).all()


def test_the_mask_is_white_where_the_face_is_in_any_frame(output, tree):
    tracks = {row.clip_id: row for row in _tracks(output)}
    for entry in entries(tree):
        mask = cv2.imread(entry["face_mask_union_path"], cv2.IMREAD_UNCHANGED)
        assert mask.shape == (128, 192) and set(np.unique(mask)) == {0, 255}
        ys, xs = np.nonzero(mask)
        boxes = Subject.of(tracks[Path(entry["video_path"]).stem]).boxes_T4
        union = np.array([*np.nanmin(boxes[:, :2], axis=0), *np.nanmax(boxes[:, 2:], axis=0)])
        wide, high = union[2] - union[0], union[3] - union[1]
        assert (np.ptp(xs) + 1) / (np.ptp(ys) + 1) == pytest.approx(wide / high, rel=0.05)
        (image,) = list(media.frames(entry["video_path"], media.Span(Fraction(0), Fraction(1, 25)), Fraction(25)))
        assert image.shape == (128, 192, 3)


def test_the_same_clips_give_the_same_tree(output, tree, tmp_path):
    pack(output, tmp_path / "tree", format="hallo3")
    first, second = files(tree[0]), files(tmp_path / "tree")
    assert {name for name, content in first.items() if second[name] != content} <= {"train.json"}
    paths = json.loads(second["train.json"])[0]["video_path"]
    assert paths.startswith(str(tmp_path / "tree"))


def test_a_second_run_does_nothing_and_a_retry_adds_what_failed(output, tmp_path):
    place, film = tmp_path / "tree", output / "film.mp4"
    caption = output / "film.txt"
    text = caption.read_bytes()
    caption.write_bytes(b"\xff")
    try:
        outcome = pack(output, place, format="hallo3")
    finally:
        caption.write_bytes(text)
    assert len(outcome.failures) == 2 and outcome.samples == 0 and film.exists()
    assert pack(output, place, format="hallo3").samples == 0
    assert pack(output, place, format="hallo3", retry=True).samples == 2
    assert pack(output, place, format="hallo3").made == 0


def test_a_tensor_is_stored_as_nothing_but_a_tensor(tree):
    content = Path(entries(tree)[0]["face_emb_path"]).read_bytes()
    assert isinstance(torch.load(io.BytesIO(content), weights_only=True), torch.Tensor)


def _tracks(output: Path) -> list[Track]:
    store = ManifestStore(str(output))
    return [
        track for row in store.arrow(Track, ["video_id"]).to_pylist() for track in store.read(Track, row["video_id"])
    ]
