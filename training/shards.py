"""Packed shards as they lie: the index, and samples read out of the tar files by their place.

Nothing is read but the bytes of the sample asked for, on local disk or by range requests from a bucket, and nothing is
unpickled: headers of members and arrays are parsed, and refused where they are not what packing writes. Samples are
numbered through, shard after shard, in the order of the index.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
from pyarrow import ArrowException, fs

from manifests.store import ManifestError, locate
from training.members import BrokenSampleError, members

INDEX = "index.json"
SPLITS = ("train", "validation")
_OPEN = 32
"""Shards that are held open at a time."""
_PATIENCE = (0.2, 0.4, 0.8)
"""Seconds to wait before a read that failed is tried again: a file server may be busy."""
_COPY = 1 << 22
_UNUSED = 2
"""References to a buffer that nobody looks at: that it is kept, and that it is asked about."""
_BUFFERS = 2
"""Buffers that a thread keeps: one may still be looked at while the next is filled."""


class DataError(Exception):
    """Shards that cannot be trained on: what, where, what to do."""


class NoSamplesError(DataError):
    """Shards without a sample of the split that was asked for."""


@dataclass(frozen=True)
class Shard:
    """One tar file: keys, offsets and sizes of its samples, in order. sha256: of the whole file."""

    name: str
    bytes: int
    sha256: str
    keys: tuple[str, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Index:
    """What a folder of shards holds of one split.

    settings: of the packing. members: shape (None: a length that differs) and type of a sample's arrays, by ending.
    version: names selection, settings and models that the shards were made with. nothing: file and sha256 of the empty
    caption's embedding, where it was packed. weights: sha256 of the models' files, by role.
    """

    place: str
    split: str
    version: str
    settings: Mapping[str, Any]
    members: Mapping[str, Mapping[str, Any]]
    shards: tuple[Shard, ...]
    nothing: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return self._ends[-1] if self.shards else 0

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(len(shard.keys) for shard in self.shards))

    def find(self, sample: int) -> tuple[int, int]:
        """A sample's shard, and which one of it the sample is."""
        shard = bisect_right(self._ends, sample)
        return shard, sample - (self._ends[shard] - len(self.shards[shard].keys))

    def key(self, sample: int) -> str:
        shard, row = self.find(sample)
        return self.shards[shard].keys[row]

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Every sample's number by its key."""
        return {key: number for number, key in enumerate(key for shard in self.shards for key in shard.keys)}


def read_index(place: str, split: str = "train") -> Index:
    """The index of a folder of shards. Raises DataError where there is none, or it cannot be right."""
    filesystem, root = _located(place)
    name = f"{place.rstrip('/')}/{INDEX}"
    try:
        with filesystem.open_input_stream(f"{root}/{INDEX}") as source:
            content = source.read()
    except FileNotFoundError:
        raise DataError(
            f"data.shards={place}: there is no {INDEX}; give the folder that curation/pack.py wrote, finished"
        ) from None
    except (OSError, ArrowException) as error:
        raise DataError(f"{name}: cannot be read: {error}") from error
    try:
        found = json.loads(content)
        lines = [line for line in found["shards"] if line["split"] == split]
        index = Index(
            place.rstrip("/"),
            split,
            str(found.get("version", "")),
            dict(found.get("settings", {})),
            {ending: dict(facts) for ending, facts in found["members"].items()},
            tuple(_shard(line) for line in lines),
            dict(found.get("nothing") or {}),
            dict(found.get("weights") or {}),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{name}: not an index of shards ({error!r}); pack again") from error
    if not len(index):
        others = sorted({line["split"] for line in found["shards"]} - {split})
        there = f"; there is data.split={' and '.join(others)}" if others else "; its selection was empty: choose again"
        raise NoSamplesError(f"{name}: lists no samples of data.split={split}{there}")
    return index


def _shard(line: Mapping[str, Any]) -> Shard:
    """A shard's line of the index. Raises ValueError for one that leads out of the folder or beyond its file."""
    name, rows = line["shard"], line["index"]
    if not isinstance(name, str) or not name or name.startswith(".") or set(name) & set("/\\\0"):
        raise ValueError(f"{name!r} is no name of a shard")
    offsets, sizes = tuple(row["offset"] for row in rows), tuple(row["size"] for row in rows)
    for offset, size in zip(offsets, sizes, strict=True):
        if type(offset) is not int or type(size) is not int or offset < 0 or not 0 < size <= line["bytes"] - offset:
            raise ValueError(f"{name}: a sample of {size} bytes at {offset} is not inside its {line['bytes']}")
    return Shard(name, line["bytes"], line["sha256"], tuple(str(row["key"]) for row in rows), offsets, sizes)


def _located(place: str) -> tuple[fs.FileSystem, str]:
    try:
        filesystem, root = locate(place)
    except ManifestError as error:
        raise DataError(f"data.shards={error}") from error
    return filesystem, root.rstrip("/")


def is_local(place: str) -> bool:
    return "://" not in place or place.startswith("file://")


def beside(index: Index, name: str) -> bytes | None:
    """A file of the same folder; None where there is none. Raises DataError where it cannot be read."""
    filesystem, root = _located(index.place)
    try:
        with filesystem.open_input_stream(f"{root}/{name}") as source:
            return source.read()
    except FileNotFoundError:
        return None
    except (OSError, ArrowException) as error:
        raise DataError(f"{index.place}/{name}: cannot be read: {error}") from error


def missing(index: Index) -> dict[str, str]:
    """Shards that are not there as the index has them, and what is wrong with each: by one listing, nothing is read."""
    filesystem, root = _located(index.place)
    try:
        listed = filesystem.get_file_info(fs.FileSelector(root, allow_not_found=True))
    except (OSError, ArrowException) as error:
        raise DataError(f"{index.place}: cannot be listed: {error}") from error
    there = {info.base_name: info.size for info in listed if info.type == fs.FileType.File}
    wrong = {shard.name: "is not there" for shard in index.shards if shard.name not in there}
    for shard in index.shards:
        if there.get(shard.name, shard.bytes) != shard.bytes:
            wrong[shard.name] = f"has {there[shard.name]} bytes, packed were {shard.bytes}"
    return wrong


def damaged(index: Index) -> Iterator[tuple[str, str | None]]:
    """Every shard, read through: its name, and what is wrong with it (None: nothing)."""
    filesystem, root = _located(index.place)
    for shard in index.shards:
        digest = hashlib.sha256()
        try:
            with filesystem.open_input_stream(f"{root}/{shard.name}") as source:
                while chunk := source.read(_COPY):
                    digest.update(chunk)
        except FileNotFoundError:
            yield shard.name, "is not there"
        except (OSError, ArrowException) as error:
            yield shard.name, f"cannot be read: {error}"
        else:
            yield shard.name, None if digest.hexdigest() == shard.sha256 else "holds other bytes than were packed"


class Reader:
    """Reads samples of an index, from any thread. It may be sent to another process, which opens its own files."""

    def __init__(self, index: Index, patience: tuple[float, ...] = _PATIENCE) -> None:
        self.index, self.patience = index, patience
        self._local = is_local(index.place)
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return {"index": self.index, "patience": self.patience, "_local": self._local}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def _forget(self) -> None:
        self._open: OrderedDict[int, _File] = OrderedDict()
        self._filesystem: fs.FileSystem | None = None
        self._root = ""

    def sample(self, number: int) -> dict[str, memoryview]:
        """A sample's members by ending: views of one buffer. Raises BrokenSampleError."""
        shard, row = self.index.find(number)
        facts = self.index.shards[shard]
        content = self.read(shard, facts.offsets[row], facts.sizes[row])
        return members(facts.keys[row], content)

    def read(self, shard: int, offset: int, size: int) -> memoryview:
        """Bytes of a shard. Raises BrokenSampleError where they are not to be had, after a few tries."""
        name = self.index.shards[shard].name
        for wait in (*self.patience, None):
            try:
                content = self._file(shard).read(offset, size)
            except FileNotFoundError:
                raise BrokenSampleError(f"{name} is not there") from None
            except (OSError, ArrowException) as error:
                self._open.pop(shard, None)
                if wait is None:
                    raise BrokenSampleError(f"{name} cannot be read: {error}") from error
                time.sleep(wait)
                continue
            if len(content) < size:
                raise BrokenSampleError(f"{name} ends before the sample does")
            return content
        raise AssertionError("the last try returns or raises")

    def _file(self, shard: int) -> _File:
        found = self._open.get(shard)
        if found is None:
            if self._filesystem is None:
                self._filesystem, self._root = _located(self.index.place)
            path = f"{self._root}/{self.index.shards[shard].name}"
            found = _Local(path) if self._local else _Remote(self._filesystem, path)
            self._open[shard] = found
            while len(self._open) > _OPEN:
                self._open.popitem(last=False)  # closed as soon as nobody reads from it any more
        return found


class _File:
    """A shard that is open. Positions are given with every read, so threads and forked processes may share it."""

    def read(self, offset: int, size: int) -> memoryview:
        """That many bytes, or fewer where the file ends."""
        raise NotImplementedError


class _Local(_File):
    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def read(self, offset: int, size: int) -> memoryview:
        # In one go: the kernel reads ahead by little steps, and not at all where reading jumps to.
        os.posix_fadvise(self._descriptor, offset, size, os.POSIX_FADV_WILLNEED)
        content = _buffer(size)
        done = 0
        while done < size and (count := os.preadv(self._descriptor, [content[done:]], offset + done)):
            done += count
        return content[:done]


_kept = threading.local()


def _buffer(size: int) -> memoryview:
    """Memory to read into: what this thread used before, if nobody looks at it any more.

    New memory costs as much again as what is read into it, for the kernel clears it page by page.
    """
    buffers: list[np.ndarray] = _kept.__dict__.setdefault("buffers", [])
    for place in range(len(buffers)):
        if sys.getrefcount(buffers[place]) == _UNUSED:
            if len(buffers[place]) < size:
                buffers[place] = np.empty(size, np.uint8)
            return buffers[place].data[:size]
    buffer = np.empty(size, np.uint8)
    if len(buffers) < _BUFFERS:
        buffers.append(buffer)
    return buffer.data[:size]


class _Remote(_File):
    def __init__(self, filesystem: fs.FileSystem, path: str) -> None:
        self._source = filesystem.open_input_file(path)

    def read(self, offset: int, size: int) -> memoryview:
        return memoryview(bytearray(self._source.read_at(size, offset)))  # to be written to, as torch wants it
