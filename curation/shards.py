"""Shards of samples as plain tar files, written so that each is there whole or not at all.

Samples are packed one by one into a staging folder, each as the very bytes that it will be in its shard, under the
shard's name. A shard is those files one after the other in the planned order. So nothing depends on when a sample was
made, and a job that was killed goes on with what is staged. The headers carry no time and no owner.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import tarfile
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from pyarrow import fs

from curation.plan import Shard
from manifests.store import locate

STAGING = ".staging"
INDEX = "index.json"
_BLOCK = 512
_END = b"\0" * (2 * _BLOCK)  # what closes a tar archive
_COPY = 1 << 22


class ShardError(Exception):
    """Shards that cannot be written or read: what, where, what to do."""


FULL = {
    errno.ENOSPC: "no room left on the disk",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "files may not become that large",
}
"""What the operating system says when a disk takes no more, in words."""


@contextlib.contextmanager
def writable(place: str) -> Iterator[None]:
    """What the operating system says of writing to a place becomes a ShardError, in one line."""
    try:
        yield
    except OSError as error:
        if why := FULL.get(error.errno or 0):
            raise ShardError(f"{place}: {why}; make room, and the same command goes on from here") from error
        raise ShardError(f"{place}: cannot be written: {error}") from error


class Sink(Protocol):
    def write(self, content: bytes) -> Any: ...


class Place:
    """A folder on local disk or in a bucket; its files appear whole or not at all."""

    def __init__(self, place: str) -> None:
        self.name = place
        self.filesystem, self.root = locate(place)
        self.is_local = isinstance(self.filesystem, fs.LocalFileSystem)
        self._made: set[str] = set()

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def publish(self, name: str, content: bytes) -> None:
        """Write a file. Raises ShardError when it cannot be written."""
        with self.written(name) as sink:
            sink.write(content)

    @contextlib.contextmanager
    def written(self, name: str, lasting: bool = False) -> Iterator[Sink]:
        """A file to write to, that appears when the block ends without an error. lasting: survives a power cut.

        Raises ShardError when it cannot be written.
        """
        with writable(self.name), self._written(name, lasting) as sink:
            yield sink

    @contextlib.contextmanager
    def _written(self, name: str, lasting: bool) -> Iterator[Sink]:
        path = self.path(name)
        if self.is_local:
            # Half-written files stay among the staged ones, which are deleted when all is done.
            part = Path(self.root, STAGING, f"{uuid.uuid4().hex}.tmp")
            self._make(path.rsplit("/", 1)[0], str(part.parent))
            try:
                with part.open("wb") as sink:
                    yield sink
                    sink.flush()
                    if lasting:
                        os.fsync(sink.fileno())
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
            return
        stream = self.filesystem.open_output_stream(path)
        try:
            yield stream
            stream.close()
        except BaseException:
            # Closing is what makes an object appear, and no stream can be given up: so it must go again.
            with contextlib.suppress(OSError):
                stream.close()
            self.delete(name)
            raise

    def read(self, name: str) -> bytes | None:
        """A file's content; None where there is none."""
        try:
            with self.filesystem.open_input_stream(self.path(name)) as source:
                return source.read()
        except FileNotFoundError:
            return None

    def files(self, folder: str = "", recursive: bool = False) -> dict[str, int]:
        """Sizes of the files below a folder, by their names below it."""
        root = self.path(folder).rstrip("/")
        found = self.filesystem.get_file_info(fs.FileSelector(root, allow_not_found=True, recursive=recursive))
        return {info.path[len(root) + 1 :]: info.size for info in found if info.type == fs.FileType.File}

    def delete(self, *names: str) -> None:
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                self.filesystem.delete_file(self.path(name))

    def clear(self, folder: str) -> None:
        """Delete a folder and all in it."""
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.delete_dir(self.path(folder))

    def _make(self, *folders: str) -> None:
        for folder in folders:
            if folder not in self._made:
                self.filesystem.create_dir(folder, recursive=True)
                self._made.add(folder)


# Samples -------------------------------------------------------------------------------------------------------------


def npy(array: np.ndarray) -> bytes:
    """An array as the content of a .npy file, without anything pickled."""
    content = io.BytesIO()
    np.lib.format.write_array(content, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return content.getvalue()


def archived(key: str, members: Mapping[str, bytes]) -> bytes:
    """A sample as it stands in a shard: its files `<key>.<ending>` as members of a tar archive."""
    parts: list[bytes] = []
    for ending, content in members.items():
        header = tarfile.TarInfo(f"{key}.{ending}")
        header.size = len(content)
        parts += [header.tobuf(tarfile.USTAR_FORMAT), content, b"\0" * (-len(content) % _BLOCK)]
    return b"".join(parts)


def staged(shard: str, key: str) -> str:
    """Where a sample waits for its shard."""
    return f"{STAGING}/samples/{shard}/{key}"


def is_staged(place: Place, shard: str, key: str) -> bool:
    return place.filesystem.get_file_info(place.path(staged(shard, key))).type == fs.FileType.File


# Shards --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Written:
    """A shard's line in the index. samples: (key, offset of its first header, bytes), in order."""

    name: str
    split: str
    bytes: int
    sha256: str
    samples: tuple[tuple[str, int, int], ...]

    def to_json(self) -> dict[str, Any]:
        facts = {"split": self.split, "samples": len(self.samples), "bytes": self.bytes, "sha256": self.sha256}
        rows = [{"key": key, "offset": offset, "size": size} for key, offset, size in self.samples]
        return {"shard": f"{self.name}.tar", **facts, "index": rows}

    @staticmethod
    def from_json(facts: Mapping[str, Any]) -> Written:
        rows = tuple((row["key"], row["offset"], row["size"]) for row in facts["index"])
        return Written(str(facts["shard"]).removesuffix(".tar"), facts["split"], facts["bytes"], facts["sha256"], rows)


def assemble(place: Place, shard: Shard, absent: Collection[str]) -> Written:
    """Write a shard out of its staged samples, and delete those; one of which none are left is not written.

    absent: clips that failed, whose samples are not expected. Raises ShardError where another one is missing.
    """
    ready = place.files(staged(shard.name, "").rstrip("/"))
    wanted = [window.key for window in shard.windows if window.clip_id not in absent]
    if missing := [key for key in wanted if key not in ready]:
        raise ShardError(
            f"{place.name}/{STAGING}: {len(missing)} samples of {shard.name} are missing, {missing[0]} for one: "
            "give the same command again"
        )
    digest, offset = hashlib.sha256(), 0
    rows: list[tuple[str, int, int]] = []
    if wanted:
        with place.written(f"{shard.name}.tar", lasting=True) as sink:
            for key in wanted:
                size = _copied(place, staged(shard.name, key), sink, digest)
                rows.append((key, offset, size))
                offset += size
            sink.write(_END)
            digest.update(_END)
            offset += len(_END)
            written = Written(shard.name, shard.split, offset, digest.hexdigest(), tuple(rows))
            write_part(place, written)  # before the shard appears: one that is there is always known
    else:
        written = Written(shard.name, shard.split, 0, "", ())
        write_part(place, written)
    place.clear(staged(shard.name, "").rstrip("/"))
    return written


def _copied(place: Place, name: str, sink: Sink, digest: Any) -> int:
    size = 0
    with place.filesystem.open_input_stream(place.path(name)) as source:
        while chunk := source.read(_COPY):
            sink.write(chunk)
            digest.update(chunk)
            size += len(chunk)
    return size


def write_part(place: Place, written: Written) -> None:
    """Keep a shard's line of the index until all are there."""
    place.publish(_part(written.name), json.dumps(written.to_json()).encode())


def _part(shard: str) -> str:
    return f"{STAGING}/index/{shard}.json"


def finished(place: Place) -> dict[str, Written]:
    """The shards that are there, whole, by name: out of the parts of the index, or of the index itself."""
    there = place.files()
    if known := read_index(place):
        empty = [Written(name, name.rsplit("-", 1)[0], 0, "", ()) for name in known["empty"]]
        written = [*map(Written.from_json, known["shards"]), *empty]
    else:
        parts = [place.read(f"{STAGING}/index/{name}") for name in place.files(f"{STAGING}/index")]
        written = [Written.from_json(json.loads(part)) for part in parts if part]
    return {line.name: line for line in written if not line.samples or there.get(f"{line.name}.tar") == line.bytes}


def forget(place: Place, shard: str) -> None:
    """Take a shard back, that is to be written anew."""
    place.delete(f"{shard}.tar", _part(shard))


def read_index(place: Place) -> dict[str, Any] | None:
    """The index; None where there is none yet. Raises ShardError for one that cannot be read."""
    content = place.read(INDEX)
    if content is None:
        return None
    try:
        return json.loads(content)
    except ValueError as error:
        raise ShardError(f"{place.name}/{INDEX}: not readable ({error}); delete it and pack again") from error


def write_index(place: Place, about: Mapping[str, Any], written: Sequence[Written]) -> None:
    """Write the index, which says that all is there; then nothing is left staged.

    empty: in the index, the shards that would hold nothing but samples of clips that failed.
    """
    kept = [line for line in written if line.samples]
    content = {
        **about,
        "members": _members(place, kept[0]) if kept else {},
        "empty": [line.name for line in written if not line.samples],
        "shards": [line.to_json() for line in kept],
    }
    lines = [f"{json.dumps(name)}: {_lines(value)}" for name, value in content.items()]
    place.publish(INDEX, ("{\n" + ",\n".join(lines) + "\n}\n").encode())
    place.clear(STAGING)


def _lines(value: Any) -> str:
    """JSON with a line for each of a list's entries: there may be many."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(json.dumps(entry, allow_nan=False) for entry in value) + "\n]"
    return json.dumps(value, allow_nan=False)


def _members(place: Place, shard: Written) -> dict[str, Any]:
    """What a sample is made of: shape and type of each array (null: the length differs), as the first one has them."""
    key, offset, size = shard.samples[0]
    with place.filesystem.open_input_file(place.path(f"{shard.name}.tar")) as source:
        source.seek(offset)
        content = io.BytesIO(source.read(size))
    found: dict[str, Any] = {}
    with tarfile.open(fileobj=content) as archive:
        for member in archive:
            ending = member.name.removeprefix(f"{key}.")
            found[ending] = {}
            if ending.endswith("npy"):
                shape, kind = _npy_header(archive.extractfile(member))
                found[ending] = {"shape": [None, *shape[1:]] if ending == "text.npy" else shape, "dtype": kind}
    return found


def _npy_header(source: Any) -> tuple[list[int], str]:
    np.lib.format.read_magic(source)
    shape, _, dtype = np.lib.format.read_array_header_1_0(source)
    return list(shape), dtype.name


def samples_per_shard(sample_bytes: float, shard_mb: float) -> int:
    """How many samples make a shard of about that many megabytes."""
    return max(1, math.floor(shard_mb * 1e6 / sample_bytes))
