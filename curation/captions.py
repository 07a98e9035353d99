"""What a clip shows, in words: from a table, from a text file beside the source, or by a vision-language model.

A table (.csv, .parquet) has a column `caption`, and `clip_id` or `path`; clip_id wins. Beside the source lies its
caption as `<name>.txt` or `<name>.caption`, UTF-8. A clip without either has the empty caption; one whose caption
cannot be read fails.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv
from pyarrow import parquet as pq

from manifests.schema import Clip
from manifests.store import locate

ENDINGS = (".txt", ".caption")
LONGEST = 4000
"""Characters of a caption; longer ones are no captions but transcripts or accidents."""
QUESTION = "Describe the person, what they do and the place, in two sentences."


class CaptionError(Exception):
    """A caption, or a table of them, that cannot be used: where, why, what to do."""


class Captions:
    """Finds the captions of clips."""

    def __init__(self, table: str = "") -> None:
        """table: a .csv or .parquet; empty: none. Raises CaptionError when it cannot be read."""
        self._place = table
        self._known: dict[str, str | None] = {}
        self._twice: set[str] = set()
        if table:
            for name, caption in _rows(table):
                if self._known.setdefault(name, caption) != caption:
                    self._twice.add(name)

    def __call__(self, clip: Clip) -> str:
        """The clip's caption, "" where it has none; raises CaptionError for one that cannot be used."""
        for name in (clip.clip_id, clip.path):
            if name in self._twice:
                raise CaptionError(f"{self._place}: several captions for {name}: leave one")
            if (caption := self._known.get(name)) is not None:
                return checked(caption, f"{self._place}: {name}")
        return beside(clip.path)


def beside(path: str) -> str:
    """The caption that lies beside a source; "" where none does. Raises CaptionError for one that cannot be used."""
    filesystem, inner = locate(path)
    stem = inner[: -len(Path(inner).suffix)] if Path(inner).suffix else inner
    for ending in ENDINGS:
        try:
            with filesystem.open_input_stream(stem + ending) as source:
                content = source.read(8 * LONGEST + 1)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise CaptionError(f"{stem}{ending}: {error}") from error
        try:
            return checked(content.decode("utf-8-sig"), stem + ending)
        except UnicodeDecodeError as error:
            raise CaptionError(f"{stem}{ending}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    return ""


def checked(caption: Any, where: str) -> str:
    """A caption in one line; raises CaptionError for what is none."""
    if not isinstance(caption, str):
        raise CaptionError(f"{where}: a caption is text, not {type(caption).__name__}")
    line = " ".join(caption.split())
    if not line:
        raise CaptionError(f"{where}: the caption is empty; delete it, or write one")
    if len(line) > LONGEST:
        raise CaptionError(f"{where}: more than {LONGEST} characters are no caption")
    if odd := next((letter for letter in line if unicodedata.category(letter) in ("Cc", "Cs", "Co", "Cn")), ""):
        raise CaptionError(f"{where}: holds {odd!r}, so it is no text")
    return line


def _rows(table: str) -> list[tuple[str, Any]]:
    """(clip_id or path, caption) of every row that has a caption."""
    filesystem, inner = locate(table)
    try:
        with filesystem.open_input_file(inner) as source:
            if inner.lower().endswith(".parquet"):
                found = pq.read_table(source)
            else:
                types = dict.fromkeys(("clip_id", "path", "caption"), pa.string())
                options = csv.ConvertOptions(column_types=types, strings_can_be_null=True, null_values=[""])
                found = csv.read_csv(source, None, csv.ParseOptions(newlines_in_values=True), options)
    except (OSError, pa.ArrowInvalid) as error:
        raise CaptionError(f"captions={table}: not readable as a table: {error}") from error
    names = [name for name in ("path", "clip_id") if name in found.column_names]
    if "caption" not in found.column_names or not names:
        has = ", ".join(found.column_names)
        raise CaptionError(f"captions={table}: needs the columns caption, and clip_id or path; it has {has}")
    return [
        (row[name], row["caption"])
        for row in found.select([*names, "caption"]).to_pylist()
        if row["caption"] is not None
        for name in names
        if row[name]
    ]


class Captioner:
    """Describes a picture, by a vision-language model of transformers."""

    def __init__(self, model: str, device: str = "cpu", question: str = QUESTION) -> None:
        """model: a local folder, or a repository of the hub. Only safetensors are read, and none of its code is run."""
        import transformers

        self._ask: Any = transformers.pipeline(
            "image-text-to-text",
            model=model,
            device=device,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )
        self._question = question

    def __call__(self, image_HWC: np.ndarray) -> str:
        """A caption of a picture, uint8 RGB; always the same one for the same picture."""
        from PIL import Image

        parts = [{"type": "image", "image": Image.fromarray(image_HWC)}, {"type": "text", "text": self._question}]
        messages = [{"role": "user", "content": parts}]
        (answer,) = self._ask(
            text=messages, return_full_text=False, generate_kwargs={"max_new_tokens": 120, "do_sample": False}
        )
        return checked(answer["generated_text"], "the captioner's answer")
