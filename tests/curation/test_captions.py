"""Captions from tables, from files beside the source, and those that cannot be used."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
import torch
import transformers
from PIL import Image
from tokenizers.models import WordLevel

from curation.captions import QUESTION, Captioner, CaptionError, Captions
from manifests.schema import UNMEASURED, Clip, columns

_EMPTY = {"duration": 2.0, "start": 0.0, "end": 2.0}


def clip(path: Path | str, clip_id: str = "c") -> Clip:
    """A clip of which only the path and the id matter."""
    values = dict.fromkeys(columns(Clip), "") | vars(UNMEASURED) | _EMPTY
    return dataclasses.replace(Clip(**values), path=str(path), clip_id=clip_id)


def test_a_text_beside_the_source_is_the_caption_of_its_clips(tmp_path):
    (tmp_path / "film.txt").write_text("\ufeffA man speaks\nto the  camera. Größe 映画\n", "utf-8")
    assert Captions()(clip(tmp_path / "film.mp4")) == "A man speaks to the camera. Größe 映画"
    (tmp_path / "other.caption").write_text("Another.")
    assert Captions()(clip(tmp_path / "other.mp4")) == "Another."
    assert Captions()(clip(tmp_path / "without.mp4")) == ""


def test_a_table_names_clips_or_sources_and_wins_over_files(tmp_path):
    (tmp_path / "film.txt").write_text("Beside.")
    rows = {"clip_id": ["c", None], "path": [None, str(tmp_path / "film.mp4")], "caption": ["Of c.", "Of the film."]}
    pq.write_table(pa.table(rows), tmp_path / "captions.parquet")
    captions = Captions(str(tmp_path / "captions.parquet"))
    assert captions(clip(tmp_path / "film.mp4", "c")) == "Of c."
    assert captions(clip(tmp_path / "film.mp4", "d")) == "Of the film."
    (tmp_path / "captions.csv").write_text('clip_id,caption\nd,"Two\nlines."\ne,\n')
    captions = Captions(str(tmp_path / "captions.csv"))
    assert captions(clip(tmp_path / "film.mp4", "d")) == "Two lines."
    assert captions(clip(tmp_path / "film.mp4", "e")) == "Beside."


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"\xff\xfe\x00broken", "not UTF-8 text"),
        (b"", "the caption is empty"),
        (b"\x00\x01binary", "holds '\\\\x00'"),
        (b"word " * 1000, "more than 4000 characters"),
    ],
)
def test_a_text_that_is_no_caption_is_an_error_that_names_the_file(tmp_path, content, why):
    (tmp_path / "film.txt").write_bytes(content)
    with pytest.raises(CaptionError, match=why) as caught:
        Captions()(clip(tmp_path / "film.mp4"))
    assert str(tmp_path / "film.txt") in str(caught.value)


def test_captions_that_contradict_each_other_fail_their_clip_alone(tmp_path):
    (tmp_path / "captions.csv").write_text("clip_id,caption\nc,One.\nc,Two.\nd,Three.\n")
    captions = Captions(str(tmp_path / "captions.csv"))
    with pytest.raises(CaptionError, match="several captions for c"):
        captions(clip(tmp_path / "film.mp4", "c"))
    assert captions(clip(tmp_path / "film.mp4", "d")) == "Three."


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.csv", b"clip_id,text\nc,One.\n", "needs the columns caption, and clip_id or path; it has clip_id, text"),
        ("a.parquet", b"no parquet", "not readable as a table"),
        ("gone.csv", None, "not readable as a table"),
    ],
)
def test_a_table_that_cannot_be_read_stops_everything(tmp_path, name, content, why):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CaptionError, match=why):
        Captions(str(tmp_path / name))


def test_a_number_is_no_caption(tmp_path):
    pq.write_table(pa.table({"clip_id": ["c"], "caption": [3]}), tmp_path / "captions.parquet")
    with pytest.raises(CaptionError, match="a caption is text, not int"):
        Captions(str(tmp_path / "captions.parquet"))(clip(tmp_path / "film.mp4", "c"))


# By a model --------------------------------------------------------------------------------------------------------

WORDS = ["<unk>", "<s>", "</s>", "<image>", "a", "man", "talks", "to", "the", "camera", ".", "user", "assistant"]
CHAT = (
    "{% for m in messages %}{{ m['role'] }} {% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %} {{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %} assistant"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A vision-language model of random weights, as transformers itself writes one."""
    folder = tmp_path_factory.mktemp("model")
    spoken = tokenizers.Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    spoken.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    marks = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    tokens = transformers.PreTrainedTokenizerFast(
        tokenizer_object=spoken, additional_special_tokens=["<image>"], **marks
    )
    small = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    seeing = transformers.CLIPVisionConfig(**small, num_hidden_layers=2, image_size=32, patch_size=16)
    speaking = transformers.LlamaConfig(
        **small, num_hidden_layers=1, num_key_value_heads=2, vocab_size=len(WORDS), pad_token_id=2
    )
    torch.manual_seed(0)
    network = transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(vision_config=seeing, text_config=speaking, image_token_index=3)
    )
    processor = transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        ),
        tokenizer=tokens,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    )
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_a_model_of_transformers_captions_a_picture(model):
    image = np.random.default_rng(0).integers(0, 255, (48, 72, 3), np.uint8)
    found = Captioner(str(model))(image)
    network = transformers.LlavaForConditionalGeneration.from_pretrained(model).eval()
    processor = transformers.AutoProcessor.from_pretrained(model)
    asked = processor(images=Image.fromarray(image), text=f"user <image> {QUESTION} assistant", return_tensors="pt")
    said = network.generate(**asked, max_new_tokens=120, do_sample=False)[:, asked["input_ids"].shape[1] :]
    assert found == " ".join(processor.batch_decode(said, skip_special_tokens=True)[0].split()) != ""
    other = np.full((48, 72, 3), 255, np.uint8)
    assert Captioner(str(model))(image) == found and isinstance(Captioner(str(model))(other), str)


def test_a_model_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        Captioner(str(tmp_path / "nowhere"))
