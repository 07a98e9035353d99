"""wav2vec 2.0 at the rate of the video: as many states as frames, and the library's own numbers.

The networks are small ones with random weights, written by transformers itself.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC, Wav2Vec2Model

from model.encoders import speech, wav2vec2
from model.encoders.wav2vec2 import LONGEST, OVERLAP, RATE, SAMPLES, Wav2Vec2
from model.pretrained import PretrainedError

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": (8,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 32,
}


def write(folder: Path, kind=Wav2Vec2Model, normalise: bool = True, **changes) -> Path:
    torch.manual_seed(0)
    kind(Wav2Vec2Config(**{**SMALL, **changes})).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=normalise).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("wav2vec2"))


@pytest.fixture(scope="module")
def encoder(folder) -> speech.SpeechEncoder:
    return speech.load("wav2vec2", str(folder))


def sound(frames: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(0.02, 0.1, round(frames * SAMPLES)) * np.hanning(round(frames * SAMPLES) + 2)[1:-1]).astype("f4")


class AtVideoRate(nn.Module):
    """A feature extractor whose features are interpolated: put into the library's model, that does the rest itself."""

    def __init__(self, extractor: nn.Module, frames: int) -> None:
        super().__init__()
        self.extractor, self.frames = extractor, frames

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        features = self.extractor(waveform)
        return nn.functional.interpolate(features, size=self.frames, mode="linear", align_corners=True)


@torch.no_grad()
def by_hand(folder: Path, waveform: np.ndarray, frames: int) -> np.ndarray:
    model = Wav2Vec2Model.from_pretrained(folder).eval()
    model.feature_extractor = AtVideoRate(model.feature_extractor, frames)
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder)
    values = extractor(waveform, sampling_rate=RATE, return_tensors="pt").input_values
    states = model(values, output_hidden_states=True).hidden_states
    return torch.stack(states[1:], dim=2)[0].numpy()


def test_there_are_as_many_states_as_frames_for_every_count_to_500(tmp_path) -> None:
    encoder = Wav2Vec2(write(tmp_path, conv_dim=(2,) * 7, num_hidden_layers=1))
    heard = sound(500)
    for frames in range(1, 501):
        found = encoder.frames(heard[: frames * SAMPLES], frames)
        assert found.shape == (frames, 1, 32)
        assert found.dtype == np.float32
        assert np.isfinite(found).all()


@pytest.mark.parametrize("frames", [1, 2, 3, 49, 53, 250])
def test_the_states_are_the_library_s_but_the_first(encoder, folder, frames) -> None:
    heard = sound(frames)
    np.testing.assert_allclose(encoder.frames(heard, frames), by_hand(folder, heard, frames), atol=2e-6)


def test_it_says_what_it_is(encoder) -> None:
    assert (encoder.name, encoder.layers, encoder.dim) == ("wav2vec2", 3, 32)


def test_a_network_with_a_norm_before_each_layer_gives_the_library_s_states(tmp_path) -> None:
    write(tmp_path, do_stable_layer_norm=True, feat_extract_norm="layer")
    heard = sound(20)
    found = Wav2Vec2(tmp_path).frames(heard, 20)
    np.testing.assert_allclose(found, by_hand(tmp_path, heard, 20), atol=2e-6)


def test_sound_is_normalised_where_the_folder_says_so_and_only_there(tmp_path, encoder) -> None:
    plain = Wav2Vec2(write(tmp_path, normalise=False, feat_extract_norm="layer"))
    heard = sound(20)
    np.testing.assert_allclose(plain.frames(heard, 20), by_hand(tmp_path, heard, 20), atol=2e-6)
    np.testing.assert_allclose(encoder.frames(3 * heard + 0.5, 20), encoder.frames(heard, 20), atol=1e-4)
    assert np.abs(plain.frames(heard + 0.5, 20) - plain.frames(heard, 20)).max() > 1e-3


def test_the_published_checkpoint_s_kind_with_a_head_for_letters_is_read(tmp_path) -> None:
    write(tmp_path, Wav2Vec2ForCTC, mask_time_prob=0.0)
    assert Wav2Vec2(tmp_path).frames(sound(5), 5).shape == (5, 3, 32)


def test_missing_sound_is_silence_and_what_is_more_is_not_heard(tmp_path) -> None:
    encoder = Wav2Vec2(write(tmp_path, normalise=False))
    heard = sound(30)
    padded = np.concatenate([heard, np.zeros(5 * SAMPLES, np.float32)])
    assert np.array_equal(encoder.frames(heard, 35), encoder.frames(padded, 35))
    assert np.array_equal(encoder.frames(padded[: 30 * SAMPLES + 7], 30), encoder.frames(heard, 30))
    assert np.isfinite(encoder.frames(np.zeros(0, np.float32), 3)).all()


def test_silence_has_states(encoder) -> None:
    assert np.isfinite(encoder.frames(np.zeros(10 * SAMPLES, np.float32), 10)).all()


def test_same_sound_same_states(encoder) -> None:
    first = encoder.frames(sound(25), 25)
    encoder.frames(sound(31, seed=1), 31)
    assert np.array_equal(encoder.frames(sound(25), 25), first)


@pytest.mark.parametrize("frames", [0, 1, 500, LONGEST, LONGEST + 1, 12345])
def test_windows_cover_everything_once_and_are_never_too_long(frames) -> None:
    windows = wav2vec2.windows(frames)
    assert [frame for first, last in windows for frame in range(first, last)] == list(range(frames))
    assert all(min(last + OVERLAP, frames) - max(first - OVERLAP, 0) <= LONGEST for first, last in windows)


def test_longer_sound_is_encoded_window_by_window_each_with_what_is_around_it(tmp_path) -> None:
    encoder = Wav2Vec2(write(tmp_path, normalise=False))
    frames = LONGEST + 100
    heard = sound(frames)
    found = encoder.frames(heard, frames)
    (first, seam), (_, last) = wav2vec2.windows(frames)
    window = encoder.frames(heard[: (seam + OVERLAP) * SAMPLES], seam + OVERLAP)
    np.testing.assert_allclose(found[first:seam], window[first:seam], atol=2e-6)
    window = encoder.frames(heard[(seam - OVERLAP) * SAMPLES :], frames - seam + OVERLAP)
    np.testing.assert_allclose(found[seam:last], window[OVERLAP:], atol=2e-6)


def test_a_folder_that_holds_something_else_is_refused_with_what_is_wrong(tmp_path) -> None:
    with pytest.raises(PretrainedError, match="no such folder, and no repository of the hub"):
        speech.load("wav2vec2", str(tmp_path / "nowhere"))
    with pytest.raises(PretrainedError, match=r"holds no \.safetensors"):
        Wav2Vec2(tmp_path)
    write(tmp_path)
    settings = tmp_path / "preprocessor_config.json"
    settings.write_text(json.dumps({"sampling_rate": 8000}))
    with pytest.raises(PretrainedError, match="made for sound at 8000 Hz; this code gives it 16000"):
        Wav2Vec2(tmp_path)
    settings.write_text("{")
    with pytest.raises(PretrainedError, match=r"preprocessor_config\.json: cannot be read"):
        Wav2Vec2(tmp_path)


def test_weights_that_are_missing_are_named(tmp_path) -> None:
    write(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors["encoder.layers.1.attention.q_proj.weight"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(PretrainedError, match=r"1 weights .*: encoder\.layers\.1\.attention\.q_proj\.weight"):
        Wav2Vec2(tmp_path)


def test_an_encoder_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(ValueError, match="no speech encoder is called 'hubert'; there is whisper and wav2vec2"):
        speech.load("hubert")
