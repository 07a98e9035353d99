"""Which files the job is to look at, and what is known of them before they are opened.

An input is a file, a folder, a glob, a list of paths (.txt), or a table (.csv, .parquet) with a column `path` and, if
there, `source_set`, `licence`, `url`, `uploader`, `title` and `spans` ("12.5-60; 75-90.25", seconds), on local disk or
object storage. A `.info.json` beside a file (as yt-dlp writes it) fills what the table leaves open.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa
from pyarrow import csv, fs
from pyarrow import parquet as pq

from manifests.schema import short_hash
from manifests.store import locate

MEDIA = frozenset(
    "." + ending
    for ending in "mp4 m4v mov mkv webm avi flv wmv mpg mpeg m2ts mts ts vob ogv 3gp mxf asf divx f4v".split()  # noqa: SIM905
)
_LABELS = ("path", "source_set", "licence", "url", "uploader", "title", "spans")
_CHUNK = 1 << 20


class InputError(Exception):
    """The input cannot be read: what, where, what to do."""


@dataclass(frozen=True)
class Source:
    """One file to look at, with its labels.

    asked: spans in seconds, flat: start, end, start, end …; empty: the whole file. duplicate_of: an earlier path with
    the same content. problem: why it cannot be looked at, where that is known without opening it.
    """

    path: str
    bytes: int = -1
    modified: int = 0
    source_set: str = ""
    licence: str = ""
    url: str = ""
    uploader: str = ""
    title: str = ""
    asked: tuple[float, ...] = ()
    duplicate_of: str = ""
    problem: str = ""

    @property
    def source_id(self) -> str:
        return short_hash(self.path)

    @property
    def spans(self) -> list[tuple[float, float]]:
        """The spans asked for, as pairs."""
        return list(zip(self.asked[::2], self.asked[1::2], strict=True))

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str) -> Source:
        values = json.loads(text)
        return Source(**{**values, "asked": tuple(values["asked"])})


def find(place: str, source_set: str = "", licence: str = "") -> Iterator[Source]:
    """Every source of an input, in an order that depends on nothing but the input; each path once.

    source_set, licence: labels for files that bring none. Raises InputError when there is nothing to be found.
    """
    seen: set[int] = set()
    for source in _listed(place):
        known = int(source.source_id, 16)
        if known in seen:
            continue
        seen.add(known)
        source = _with_side_car(source)
        yield dataclasses.replace(source, source_set=source.source_set or source_set, licence=source.licence or licence)
    if not seen:
        raise InputError(f"{place}: no videos there (looked for {' '.join(sorted(MEDIA))})")


def mark_duplicates(
    sources: Iterable[Source], shared_sizes: Container[int], known: Mapping[int, list[tuple[str, str]]]
) -> Iterator[Source]:
    """The sources, those with the content of an earlier one marked so.

    shared_sizes: sizes that several of the sources have; known: what earlier runs saw, size -> (path, sha256).
    Only files that share their size with another are read.
    """
    first: dict[str, str] = {}
    for source in sources:
        earlier = [(path, digest) for path, digest in known.get(source.bytes, []) if path != source.path]
        if source.bytes > 0 and not source.problem and (source.bytes in shared_sizes or earlier):
            for path, digest in earlier:
                first.setdefault(digest, path)
            with contextlib.suppress(OSError):  # the scan will say what is wrong with it
                original = first.setdefault(sha256(source.path), source.path)
                if original != source.path:
                    source = dataclasses.replace(source, duplicate_of=original)
        yield source


def sha256(path: str) -> str:
    """The sha256 of a file's content, local or remote."""
    filesystem, inner = locate(path)
    digest = hashlib.sha256()
    with filesystem.open_input_stream(inner) as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _listed(place: str) -> Iterator[Source]:
    filesystem, path = locate(place)
    prefix = place[: len(place) - len(path)] if "://" in place else ""
    info = filesystem.get_file_info(path)
    if info.type == fs.FileType.Directory:
        yield from _in_folder(filesystem, path, prefix)
    elif info.type == fs.FileType.File and path.lower().endswith((".txt", ".csv", ".parquet")):
        yield from _in_table(filesystem, path, place)
    elif info.type == fs.FileType.File:
        yield _source(place, info)
    elif any(mark in place for mark in "*?[") and "://" not in place:
        for match in sorted(glob.iglob(place, recursive=True)):  # noqa: PTH207 (the pattern may be absolute)
            if Path(match).suffix.lower() in MEDIA:
                yield _stat(match)
    else:
        raise InputError(f"{place}: no such file or folder")


def _in_folder(filesystem: fs.FileSystem, path: str, prefix: str) -> Iterator[Source]:
    if not prefix:
        for folder, folders, names in os.walk(path, followlinks=True):
            folders.sort()
            # A folder, a link or a pipe with a video's name was meant as an input: the scan says what is wrong.
            for name in sorted([*names, *folders]):
                if Path(name).suffix.lower() in MEDIA and not name.startswith("."):
                    yield _stat(os.path.join(folder, name))  # noqa: PTH118 (a hot loop)
        return
    for info in sorted(filesystem.get_file_info(fs.FileSelector(path, recursive=True)), key=lambda info: info.path):
        if info.type == fs.FileType.File and Path(info.path).suffix.lower() in MEDIA:
            yield _source(prefix + info.path, info)


def _in_table(filesystem: fs.FileSystem, path: str, place: str) -> Iterator[Source]:
    base = place.rsplit("/", 1)[0] if "/" in place else "."
    try:
        with filesystem.open_input_file(path) as stream:
            for batch in _batches(stream, path):
                if "path" not in batch.schema.names:
                    raise InputError(f"{place}: needs a column 'path'; it has {', '.join(batch.schema.names)}")
                for row in batch.to_pylist():
                    yield _in_row(row, base, place)
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise InputError(f"{place}: not readable: {error}") from error


def _batches(stream: pa.NativeFile, path: str) -> Iterator[pa.RecordBatch]:
    if path.lower().endswith(".parquet"):
        yield from pq.ParquetFile(stream).iter_batches(4096)
    elif path.lower().endswith(".csv"):
        options = csv.ConvertOptions(strings_can_be_null=True, column_types=dict.fromkeys(_LABELS, pa.string()))
        yield from csv.open_csv(stream, None, csv.ParseOptions(newlines_in_values=True), options)
    else:
        lines = [line.rstrip("\r") for line in stream.read().decode("utf-8").split("\n")]
        yield pa.record_batch({"path": [line for line in lines if line.strip()]})


def _in_row(row: dict, base: str, place: str) -> Source:
    if not row["path"]:
        raise InputError(f"{place}: a row has no path: {row}")
    where = str(row["path"])
    found = _stat(where if "://" in where or where.startswith("/") else f"{base}/{where}")
    given = {name: str(row[name]) for name in _LABELS if name != "path" and row.get(name) is not None}
    spans = parse_spans(given.pop("spans", None) if isinstance(row.get("spans"), str) else row.get("spans"), place)
    return dataclasses.replace(found, **given, asked=spans)  # type: ignore[arg-type]


def parse_spans(value: object, where: str) -> tuple[float, ...]:
    """Flat spans out of "12.5-60; 75-90" or [12.5, 60, 75, 90], merged and sorted; raises InputError."""
    if value is None or value == "" or value == []:
        return ()
    try:
        if isinstance(value, str):
            pairs = [tuple(map(float, span.split("-"))) for span in value.replace(",", ";").split(";") if span.strip()]
        else:
            flat = [float(number) for number in value]  # type: ignore[attr-defined]
            pairs = [tuple(flat[index : index + 2]) for index in range(0, len(flat), 2)]
        if not all(len(pair) == 2 and 0 <= pair[0] < pair[1] < math.inf for pair in pairs):
            raise ValueError
    except (TypeError, ValueError):
        raise InputError(f"{where}: spans {value!r} are not seconds like '12.5-60; 75-90'") from None
    merged: list[list[float]] = []
    for start, end in sorted(pairs):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return tuple(number for pair in merged for number in pair)


def _source(path: str, info: fs.FileInfo) -> Source:
    return Source(path, info.size if info.size is not None else -1, info.mtime_ns or 0)


def _stat(path: str) -> Source:
    """The source at a path, there or not: what is wrong with it is for the scan to say."""
    if "://" in path:
        filesystem, inner = locate(path)
        return _source(path, filesystem.get_file_info(inner))
    absolute = str(Path(path).absolute())
    try:
        absolute.encode("utf-8")
    except UnicodeEncodeError:
        shown = os.fsencode(absolute).decode("utf-8", "backslashreplace")
        return Source(shown, problem="the file's name is not UTF-8 and cannot be recorded; rename it")
    try:
        status = Path(absolute).stat()
    except OSError:
        return Source(absolute)
    return Source(absolute, status.st_size, status.st_mtime_ns)


def _with_side_car(source: Source) -> Source:
    """The source with what a yt-dlp `.info.json` beside it knows."""
    if "://" in source.path:
        return source
    side_car = Path(source.path).with_suffix(".info.json")
    try:
        facts = json.loads(side_car.read_text("utf-8"))
    except (OSError, ValueError):
        return source
    if not isinstance(facts, dict):
        return source
    known = {
        "url": facts.get("webpage_url") or facts.get("original_url"),
        "uploader": facts.get("uploader") or facts.get("channel"),
        "title": facts.get("title") or facts.get("fulltitle"),
        "licence": facts.get("license"),
    }
    return dataclasses.replace(
        source,
        **{name: str(value) for name, value in known.items() if value and not getattr(source, name)},  # type: ignore[arg-type]
    )


@contextlib.contextmanager
def local_copy(path: str) -> Iterator[Path]:
    """The file itself, where it is local; else a copy of it that is deleted afterwards."""
    if "://" not in path:
        yield Path(path)
        return
    filesystem, inner = locate(path)
    with tempfile.TemporaryDirectory(prefix="talkreel-") as folder:
        copy = Path(folder, PurePosixPath(inner).name)
        with filesystem.open_input_stream(inner) as stream, copy.open("wb") as sink:
            while chunk := stream.read(_CHUNK):
                sink.write(chunk)
        yield copy
