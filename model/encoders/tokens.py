"""A prompt as the token numbers of a published vocabulary: `tokenizer.json`, or SentencePiece's `spiece.model`.

SentencePiece's file is a protocol buffer of pieces with scores and a table of characters; it is read here, since that
is all its package would be needed for.
"""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from model.pretrained import PretrainedError
from model.protobuf import values

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LENGTH = 226
"""The most tokens of a prompt, its end mark among them: CogVideoX's."""
_UNIGRAM = 1
_UNKNOWN = 2
_END = "</s>"


class Vocabulary:
    """Turns prompts into token numbers, the model's own marks at the ends included."""

    def __init__(self, file: Path | zipfile.Path, length: int) -> None:
        """file: tokenizer.json or spiece.model. length: the most tokens; what is beyond is cut off, marks stay.

        Raises PretrainedError when the file is neither.
        """
        from tokenizers import Tokenizer

        try:
            content = file.read_bytes()
            spm = file.name.endswith(".model")
            self.tokenizer = sentencepiece(content) if spm else Tokenizer.from_str(content.decode())
        except Exception as error:  # tokenizers raises Exception itself
            raise PretrainedError(f"{file}: cannot be read as a vocabulary: {error}") from error
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(length)

    @classmethod
    def of(cls, place: Path, length: int) -> Vocabulary:
        """The vocabulary of a model's folder. Raises PretrainedError when there is none."""
        for name in ("tokenizer.json", "spiece.model"):
            if (place / name).is_file():
                return cls(place / name, length)
        raise PretrainedError(f"{place}: holds neither tokenizer.json nor spiece.model")

    def __call__(self, prompt: str) -> list[int]:
        return self.tokenizer.encode(prompt).ids

    def count(self, prompt: str) -> int:
        """How many tokens the prompt has before it is cut, the marks at its ends included."""
        first = self.tokenizer.encode(prompt)
        parts = [first, *first.overflowing]  # each of them has the marks
        return sum(len(part.ids) - sum(part.special_tokens_mask) for part in parts) + sum(first.special_tokens_mask)


def sentencepiece(content: bytes) -> Tokenizer:
    """T5's tokenizer of a SentencePiece unigram model's file: the text's pieces, then the end mark.

    Raises ValueError when it is something else.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    pieces: list[tuple[str, float]] = []
    kind, unknown, characters = _UNIGRAM, 0, b""
    for number, value in values(content):
        if number == 1:
            piece, score, sort = _piece(value)
            unknown = len(pieces) if sort == _UNKNOWN else unknown
            pieces.append((piece, score))
        elif number == 2:
            kind = dict(values(value)).get(3, _UNIGRAM)
        elif number == 3:
            characters = dict(values(value)).get(2, b"")
    ends = [number for number, (piece, _) in enumerate(pieces) if piece == _END]
    if kind != _UNIGRAM or not ends:
        raise ValueError("not a SentencePiece unigram model with an end mark")
    tokenizer = Tokenizer(models.Unigram(pieces, unknown, byte_fallback=False))
    if characters:
        tokenizer.normalizer = normalizers.Precompiled(characters)
    words = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(words)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {_END}", special_tokens=[(_END, ends[0])])
    return tokenizer


def _piece(data: bytes) -> tuple[str, float, int]:
    """A piece of text, its score, and its sort: ordinary (1), unknown, a mark, …"""
    fields = dict(values(data))
    return fields[1].decode(), struct.unpack("<f", fields.get(2, bytes(4)))[0], fields.get(3, 1)
