"""A prompt as the token numbers of a published vocabulary: `tokenizer.json`, or SentencePiece's `spiece.model`.

SentencePiece's file is a protocol buffer of pieces with scores and a table of characters; it is read here, since that
is all its package would be needed for.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.pretrained import PretrainedError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

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


def sentencepiece(content: bytes) -> Tokenizer:
    """T5's tokenizer of a SentencePiece unigram model's file: the text's pieces, then the end mark.

    Raises ValueError when it is something else.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    pieces: list[tuple[str, float]] = []
    kind, unknown, characters = _UNIGRAM, 0, b""
    for number, value in _fields(content):
        if number == 1:
            piece, score, sort = _piece(value)
            unknown = len(pieces) if sort == _UNKNOWN else unknown
            pieces.append((piece, score))
        elif number == 2:
            kind = dict(_fields(value)).get(3, _UNIGRAM)
        elif number == 3:
            characters = dict(_fields(value)).get(2, b"")
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
    fields = dict(_fields(data))
    return fields[1].decode(), struct.unpack("<f", fields.get(2, bytes(4)))[0], fields.get(3, 1)


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Numbers and values of a protocol buffer's fields: an int, or the bytes. Raises ValueError where it is cut off."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"not a protocol buffer (field of kind {kind})")
        if at + size > len(data):
            raise ValueError(f"cut off: {size} bytes wanted, {len(data) - at} left")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise ValueError("cut off, or not a protocol buffer")
