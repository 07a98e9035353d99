"""With a separator, speech embeddings are made of the voice alone; the rest of a sample stays as it is."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from curation.pack import main
from curation.pipeline import JobError
from curation.shards import INDEX, ShardError
from curation.stages.pack import Pack
from model import media, weights
from model.encoders import speech
from model.encoders.vocals import VocalSeparator
from tests.curation.clips import clip
from tests.curation.packed import array, config, curated, facts, pack, samples, select
from tests.model.handed_in import spoken
from tests.model.separators import BOTH, LEFT, NEITHER, SHAPE, scaled, written

FFT = 7680
ASKED = {"contents": ["audio", "video"], "vocals_fft": FFT}
Members = dict[str, dict[str, bytes]]


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> Path:
    """One film with a clip of 2.4 s."""
    folder = tmp_path_factory.mktemp("output")
    film = folder / "film.mp4"
    film.write_bytes(weights.path("psychopy-jwpIntro").read_bytes())
    curated(folder, {film: [(1.0, 3.4)]})
    select(folder)
    return folder


@pytest.fixture(scope="module")
def plain(output, tmp_path_factory) -> Members:
    """Its samples without a separator."""
    place = tmp_path_factory.mktemp("plain")
    pack(output, place, **ASKED)
    return samples(place)


def separated(output: Path, place: Path, network: Path) -> Members:
    assert not pack(output, place, vocals=str(network), **ASKED).failures
    return samples(place)


def states(members: dict[str, bytes]) -> np.ndarray:
    return array(members["audio.npy"]).astype(np.float32)


def test_the_embedding_is_made_of_the_separated_sound_and_the_video_keeps_its_own(output, plain, tmp_path):
    network = scaled(tmp_path / "half.onnx", LEFT)
    found = separated(output, tmp_path / "shards", network)
    assert found.keys() == plain.keys() and len(found) > 1
    span = media.Span(Fraction(1), 1 + Fraction(60, 25))
    voice_N = VocalSeparator(network, FFT)(media.audio(output / "film.mp4", span, 44_100, layout="stereo"))
    expected_TLD = speech.load("whisper").frames(voice_N, 60).astype(np.float16)
    for key, members in found.items():
        assert members["mp4"] == plain[key]["mp4"]
        rows = np.clip(np.arange(-2, 9 + 2) + facts(members)["window"]["first"], 0, 59)
        assert np.array_equal(array(members["audio.npy"]), expected_TLD[rows])
        assert not np.allclose(states(members), states(plain[key]), atol=0.05)


def test_a_separator_is_given_both_channels_of_a_source(tmp_path):
    """A voice on the left and a tone on the right, and a separator that hears the left alone."""
    voice_N = media.audio(weights.path("psychopy-jwpIntro"), media.Span(Fraction(1), Fraction(3)))
    tone_N = (0.2 * np.sin(np.arange(len(voice_N)) * 0.3)).astype(np.float32)
    both = spoken(tmp_path / "both.wav", np.stack([voice_N, tone_N], axis=1))
    network = scaled(tmp_path / "left.onnx", LEFT)
    stage = Pack(config("", "", vocals=str(network), vocals_fft=FFT, contents=["audio"]))
    whole = dataclasses.replace(clip(weights.path("psychopy-jwpIntro")), time_base="1/25", start_ticks=0, end_ticks=50)
    found_TLD = stage.states(both, whole, np.zeros(len(voice_N), np.float32))
    alone_TLD = speech.load("whisper").frames(voice_N / 2, 50)
    mixed_TLD = speech.load("whisper").frames((voice_N + tone_N) / 2, 50)

    def apart(states_TLD: np.ndarray) -> float:
        return float(np.sqrt(np.mean((states_TLD - alone_TLD) ** 2)) / alone_TLD.std())

    assert apart(found_TLD) < 0.15 < 0.4 < apart(mixed_TLD)


def test_a_separator_that_takes_nothing_away_hardly_moves_the_embedding(output, plain, tmp_path):
    kept = separated(output, tmp_path / "kept", scaled(tmp_path / "kept.onnx", BOTH))
    gone = separated(output, tmp_path / "gone", scaled(tmp_path / "gone.onnx", NEITHER))

    def change(found: Members) -> float:
        apart = np.concatenate([states(found[key]) - states(plain[key]) for key in plain])
        return float(np.sqrt(np.mean(apart**2)) / np.concatenate([states(plain[key]) for key in plain]).std())

    assert change(kept) < 0.05 < 0.5 < change(gone)


def test_samples_and_index_name_the_separator_by_its_sha256(output, plain, tmp_path):
    network = scaled(tmp_path / "network.onnx")
    found = separated(output, tmp_path / "shards", network)
    digest = hashlib.sha256(network.read_bytes()).hexdigest()
    assert {facts(members)["made_with"]["vocals"] for members in found.values()} == {digest}
    assert not any("vocals" in facts(members)["made_with"] for members in plain.values())
    assert json.loads((tmp_path / "shards" / INDEX).read_text())["weights"]["vocals"] == digest


def test_another_separator_at_the_same_place_is_another_job(output, tmp_path):
    network = scaled(tmp_path / "network.onnx")
    separated(output, tmp_path / "shards", network)
    scaled(network, NEITHER)
    with pytest.raises(ShardError, match=r"packed otherwise \(weights\)"):
        pack(output, tmp_path / "shards", vocals=str(network), **ASKED)


def test_hallo3_s_tree_has_embeddings_of_the_voice(output, tmp_path):
    network = scaled(tmp_path / "half.onnx", LEFT)
    voice_N = VocalSeparator(network, FFT)(
        media.audio(output / "film.mp4", media.Span(Fraction(1), 1 + Fraction(60, 25)), 44_100, layout="stereo")
    )
    pack(output, tmp_path / "tree", format="hallo3", vocals=str(network), vocals_fft=FFT)
    (file,) = (tmp_path / "tree" / "audio_emb").glob("*.pt")
    found = torch.load(io.BytesIO(file.read_bytes()), weights_only=True).numpy()
    assert np.array_equal(found, speech.load("whisper").frames(voice_N, 60))


def test_a_file_that_is_no_separator_stops_the_job_in_a_line(output, tmp_path):
    network = written(tmp_path / "face.onnx", [("Identity", ["input"], "output", {})], ("n", 3, 112, 112))
    with pytest.raises(JobError, match=r"^[^ ]*face\.onnx: no MDX-Net separator.*112") as found:
        pack(output, tmp_path / "shards", vocals=str(network), **ASKED)
    assert "\n" not in str(found.value)
    unknown = scaled(tmp_path / "unknown.onnx", shape=SHAPE)
    with pytest.raises(JobError, match=r"unknown\.onnx: not Kim_Vocal_2; .*vocals_fft="):
        pack(output, tmp_path / "others", vocals=str(unknown), contents=["audio"])
    assert not (tmp_path / "shards").exists() and not (tmp_path / "others").exists()


def test_a_separator_that_is_not_there_is_missed_before_anything_starts(output, tmp_path, capsys):
    asked = dataclasses.replace(config(output, tmp_path / "shards"), vocals=str(tmp_path / "Kim_Vocal_2.onnx"))
    assert main(asked) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"pack.py: vocals={tmp_path}/Kim_Vocal_2.onnx: no such file;") and said.count("\n") == 1
    assert not (tmp_path / "shards").exists()


def test_without_speech_no_separator_is_loaded(output, tmp_path):
    network = tmp_path / "none.onnx"
    network.write_bytes(b"no network")
    assert not pack(output, tmp_path / "shards", contents=["video"], vocals=str(network)).failures
