"""Prompts as vectors: the pieces that SentencePiece finds, the library's own numbers, as the denoiser reads them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from model import protobuf, weights
from model.encoders import text, tokens
from model.encoders.text import LENGTH, T5
from model.encoders.tokens import Vocabulary
from model.pretrained import PretrainedError

SPIECE = Path(__file__).resolve().parents[3] / "shared" / "weights" / "text" / "t5_v1_1_spiece.model"
TALK = "A man with a beard talks to the camera, in front of a bookshelf."


def write_t5(folder: Path) -> Path:
    """A small T5 with random weights, as transformers writes it, and a vocabulary trained on the spot."""
    torch.manual_seed(0)
    small = T5Config(vocab_size=400, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=3)
    T5EncoderModel(small).save_pretrained(folder / "text_encoder")
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>")
    tokenizer.train_from_iterator([TALK, "She sings.", "He stands, and looks to the left."] * 5, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    (folder / "tokenizer").mkdir()
    tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_t5(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def t5(folder) -> T5:
    encoder = text.load("t5", str(folder))
    assert isinstance(encoder, T5)
    return encoder


@pytest.fixture(scope="module")
def minilm() -> text.TextEncoder:
    return text.load("minilm")


@pytest.fixture(scope="module")
def spiece() -> Path:
    if not SPIECE.is_file():
        pytest.skip("../shared/weights/text/t5_v1_1_spiece.model is not there")
    return SPIECE


@torch.no_grad()
def by_hand(folder: Path, ids: list[int]) -> np.ndarray:
    network = T5EncoderModel.from_pretrained(folder / "text_encoder").eval()
    return network(input_ids=torch.tensor([ids]))[0][0].numpy()


def test_t5_reads_a_prompt_as_cogvideox_does_filled_up_and_without_a_mask(t5, folder) -> None:
    ids = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json")).encode(TALK).ids
    found = t5.encode(TALK)
    assert (t5.name, t5.dim, t5.length) == ("t5", 24, 226)
    assert found.shape == (226, 24) and found.dtype == np.float32
    np.testing.assert_allclose(found, by_hand(folder, ids + [0] * (226 - len(ids))), atol=1e-6)
    assert np.abs(found[: len(ids)] - by_hand(folder, ids)).max() > 1e-3, "its tokens have seen the padding"


def test_tokens_are_counted_before_a_prompt_is_cut(t5, minilm) -> None:
    for encoder, marks in ((t5, 1), (minilm, 2)):
        assert encoder.vocabulary.count("") == marks
        short = encoder.vocabulary.count(TALK)
        assert short == len(encoder.vocabulary(TALK)) < 226
        assert encoder.vocabulary.count(" ".join([TALK] * 40)) == 40 * (short - marks) + marks
        assert len(encoder.vocabulary(" ".join([TALK] * 40))) == 226


@pytest.mark.parametrize("name", ["t5", "minilm"])
def test_a_long_prompt_is_cut_to_what_cogvideox_takes_and_keeps_its_end_mark(request, name) -> None:
    encoder = request.getfixturevalue(name)
    assert encoder.encode(TALK * 40).shape == (LENGTH, encoder.dim)
    ids = encoder.vocabulary(TALK * 40)
    assert ids[-1] == encoder.vocabulary("")[-1]


def test_an_empty_prompt_has_its_marks_alone_and_of_t5_is_filled_up(t5, minilm, folder) -> None:
    assert minilm.encode("").shape == (2, 384)
    np.testing.assert_allclose(t5.encode(""), by_hand(folder, [1] + [0] * 225), atol=1e-6)


@pytest.mark.parametrize("name", ["t5", "minilm"])
def test_any_text_has_vectors_and_the_same_text_the_same(request, name) -> None:
    encoder = request.getfixturevalue(name)
    for prompt in ("  spaces\tand\nlines  ", "日本語 🎉 é", "</s> <pad> [SEP]", "\0"):
        found = encoder.encode(prompt)
        assert np.isfinite(found).all()
        assert np.array_equal(encoder.encode(prompt), found)


def test_t5_is_found_with_its_files_at_the_top_of_a_folder(tmp_path, folder, t5) -> None:
    for part in ("text_encoder", "tokenizer"):
        for file in (folder / part).iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    assert np.array_equal(text.load("t5", str(tmp_path)).encode(TALK), t5.encode(TALK))


def test_half_precision_is_computed_in_and_float32_given(folder, t5) -> None:
    found = text.load("t5", str(folder), dtype=torch.bfloat16).encode(TALK)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, t5.encode(TALK), atol=0.1)


# --- SentencePiece's file ------------------------------------------------------------------------------------

PIECES = {
    "A man with a beard talks to the camera, in front of a bookshelf.": (
        "71 388 28 3 9 36 986 6927 12 8 1861 6 16 851 13 3 9 1335 107 10386 5"
    ),
    "  two  spaces ": "192 4856",
    "Ünïcödé ﬁne ½ 日本": "3 14858 29 2 75 1872 3764 1399 209 2 357 3 2",
    'She said: "don\'t!" — 1,234.5 times…': "451 243 10 96 2029 31 17 4720 3 318 1914 2773 12451 648 233",
    "a woman speaking; cinematic lighting, 4K": "3 9 2335 4461 117 10276 1225 3598 6 314 439",
}
"""What sentencepiece 0.2.3 itself makes of some prompts with T5-v1.1's vocabulary."""


@pytest.mark.parametrize("prompt", PIECES)
def test_the_pieces_are_those_of_sentencepiece(spiece, prompt) -> None:
    assert Vocabulary(spiece, LENGTH)(prompt) == [*map(int, PIECES[prompt].split()), 1]


def test_the_tokens_are_those_of_transformers(spiece) -> None:
    fields = list(protobuf.values(spiece.read_bytes()))
    pieces = [tokens._piece(value) for number, value in fields if number == 1]
    characters = next(dict(protobuf.values(value))[2] for number, value in fields if number == 3)
    theirs = T5Tokenizer(vocab=[(piece, score) for piece, score, _ in pieces], _spm_precompiled_charsmap=characters)
    ours = Vocabulary(spiece, LENGTH)
    for prompt in (TALK, "", "  two  spaces ", "Ünïcödé ﬁne ½ 日本", 'She said: "don\'t!" — 1,234.5 times…'):
        assert ours(prompt) == theirs(prompt).input_ids


def test_a_folder_with_sentencepiece_s_file_will_do(tmp_path, folder, spiece) -> None:
    place = write_t5(tmp_path / "t5")
    (place / "tokenizer" / "tokenizer.json").unlink()
    (place / "tokenizer" / "spiece.model").write_bytes(spiece.read_bytes())
    vocabulary = Vocabulary.of(place / "tokenizer", LENGTH)
    assert vocabulary("") == [1]


@pytest.mark.parametrize("content", [b"", b"{}", b"\x0a\xff\xff\xff\xff\x7f", b"\x0a\x03abc", bytes(range(256))])
def test_another_file_is_no_vocabulary(tmp_path, content) -> None:
    for name in ("spiece.model", "tokenizer.json"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PretrainedError, match=f"{name}: cannot be read as a vocabulary"):
            Vocabulary(tmp_path / name, LENGTH)


def test_a_vocabulary_that_is_cut_off_is_refused(tmp_path, spiece) -> None:
    (tmp_path / "spiece.model").write_bytes(spiece.read_bytes()[:-1000])
    with pytest.raises(PretrainedError, match=r"spiece\.model: cannot be read as a vocabulary: cut off"):
        Vocabulary(tmp_path / "spiece.model", LENGTH)


def test_a_folder_without_vocabulary_or_weights_is_named(tmp_path) -> None:
    with pytest.raises(PretrainedError, match=r"holds neither tokenizer\.json nor spiece\.model"):
        text.load("t5", str(tmp_path))
    with pytest.raises(PretrainedError, match="no such folder"):
        text.load("t5", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="no text encoder is called 'clip'; there is minilm and t5"):
        text.load("clip")


# --- MiniLM ----------------------------------------------------------------------------------------------------


def meaning(encoder: text.TextEncoder, prompt: str) -> np.ndarray:
    """The sentence's vector, as sentence-transformers pools it."""
    mean = encoder.encode(prompt).mean(axis=0)
    return mean / np.linalg.norm(mean)


def test_minilm_knows_what_sentences_mean(minilm) -> None:
    man, other, cat = (
        meaning(minilm, prompt)
        for prompt in ("A man is talking to the camera.", "A guy speaks into a lens.", "The stock market fell today.")
    )
    assert man @ other > 0.5
    assert man @ cat < 0.15


def test_minilm_s_weights_are_refused_when_they_are_not_its_own(tmp_path, folder) -> None:
    genuine = zipfile.Path(weights.path("minilm"))
    foreign = (folder / "text_encoder" / "model.safetensors").read_bytes()
    with pytest.raises(PretrainedError, match=r"tokenizer\.json: cannot be read as a vocabulary"):
        text.load("minilm", str(tmp_path))
    (tmp_path / "tokenizer.json").write_bytes((genuine / "tokenizer.json").read_bytes())
    for content in (b"", foreign, foreign[:-100]):
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(PretrainedError, match="not the weights of all-MiniLM-L6-v2"):
            text.load("minilm", str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes((genuine / "model.safetensors").read_bytes())
    assert text.load("minilm", str(tmp_path)).encode(TALK).shape == (20, 384)
