"""Shards of samples as plain tar files, written so that each is there whole or not at all.

Samples are packed one by one into a staging folder, each as the very bytes that it will be in its shard, under the
shard's name. A shard is those files one after the other in the planned order. So nothing depends on when a sample was
made, and a job that was killed goes on with what is staged. The headers carry no time and no owner.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import tarfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pyarrow import fs

from curation.place import STAGING, Place, ShardError, Sink
from curation.plan import Shard

INDEX = "index.json"
NOTHING = "nothing.npy"
"""Beside the shards of samples with text: the empty caption's vectors, which stand for a dropped text in training."""
_NOTHING = f"{STAGING}/{NOTHING}"
_BLOCK = 512
_END = b"\0" * (2 * _BLOCK)  # what closes a tar archive
_COPY = 1 << 22


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


def stage_nothing(place: Place, content: Callable[[], bytes]) -> None:
    """Keep the empty caption's vectors until all is there, unless some are kept. Raises ShardError."""
    if place.filesystem.get_file_info(place.path(_NOTHING)).type != fs.FileType.File:
        place.publish(_NOTHING, content())


def nothing_kept(place: Place) -> bytes | None:
    """The empty caption's vectors, staged, or beside the index as it says; None where they are lost."""
    known = read_index(place)
    if known is None:
        return place.read(_NOTHING)
    content, facts = place.read(NOTHING), known.get("nothing")
    if content is None or facts is None or hashlib.sha256(content).hexdigest() != facts["sha256"]:
        return None
    return content


def publish_nothing(place: Place) -> dict[str, Any]:
    """Put the empty caption's vectors where they belong; what the index says of them. {} where none are staged."""
    content = place.read(_NOTHING)
    if content is None:
        return {}
    with place.written(NOTHING, lasting=True) as sink:
        sink.write(content)
    shape, kind = _npy_header(io.BytesIO(content))
    digest = hashlib.sha256(content).hexdigest()
    return {"nothing": {"file": NOTHING, "bytes": len(content), "sha256": digest, "shape": shape, "dtype": kind}}


# Shards --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Written:
    """A shard's line in the index. samples: (key, offset of its first header, bytes), in order.

    upscaled, padded: how many of them are enlarged, and how many lie between black sides.
    """

    name: str
    split: str
    bytes: int
    sha256: str
    samples: tuple[tuple[str, int, int], ...]
    upscaled: int = 0
    padded: int = 0

    def to_json(self) -> dict[str, Any]:
        facts = {
            "split": self.split,
            "samples": len(self.samples),
            "upscaled": self.upscaled,
            "padded": self.padded,
            "bytes": self.bytes,
            "sha256": self.sha256,
        }
        rows = [{"key": key, "offset": offset, "size": size} for key, offset, size in self.samples]
        return {"shard": f"{self.name}.tar", **facts, "index": rows}

    @staticmethod
    def from_json(facts: Mapping[str, Any]) -> Written:
        rows = tuple((row["key"], row["offset"], row["size"]) for row in facts["index"])
        name, counts = str(facts["shard"]).removesuffix(".tar"), (facts["upscaled"], facts["padded"])
        return Written(name, facts["split"], facts["bytes"], facts["sha256"], rows, *counts)


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
    upscaled = padded = 0
    if wanted:
        with place.written(f"{shard.name}.tar", lasting=True) as sink:
            for key in wanted:
                size, crop = _copied(place, staged(shard.name, key), sink, digest)
                upscaled += bool(crop.get("upscaled"))
                padded += bool(crop.get("padded"))
                rows.append((key, offset, size))
                offset += size
            sink.write(_END)
            digest.update(_END)
            offset += len(_END)
            written = Written(shard.name, shard.split, offset, digest.hexdigest(), tuple(rows), upscaled, padded)
            write_part(place, written)  # before the shard appears: one that is there is always known
    else:
        written = Written(shard.name, shard.split, 0, "", ())
        write_part(place, written)
    place.clear(staged(shard.name, "").rstrip("/"))
    return written


def _copied(place: Place, name: str, sink: Sink, digest: Any) -> tuple[int, dict[str, Any]]:
    """Append a staged sample to a shard: its bytes, and what its json says of the crop."""
    size, crop = 0, dict[str, Any]()
    with place.filesystem.open_input_stream(place.path(name)) as source:
        while chunk := source.read(_COPY):
            if not size:
                crop = _crop(chunk)
            sink.write(chunk)
            digest.update(chunk)
            size += len(chunk)
    return size, crop


def _crop(start: bytes) -> dict[str, Any]:
    """The part `crop` of a sample's json, which is its first member; {} where it has none."""
    header = tarfile.TarInfo.frombuf(start[:_BLOCK], "utf-8", "strict")
    if not header.name.endswith(".json"):
        return {}
    return json.loads(start[_BLOCK : _BLOCK + header.size]).get("crop", {})


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


def write_index(
    place: Place, about: Mapping[str, Any], written: Sequence[Written], varying: Collection[str] = ("text.npy",)
) -> None:
    """Write the index, which says that all is there; then nothing is left staged.

    varying: arrays whose first length differs from sample to sample. empty: in the index, the shards that would hold
    nothing but samples of clips that failed.
    """
    kept = [line for line in written if line.samples]
    content = {
        **about,
        "members": _members(place, kept[0], varying) if kept else {},
        "upscaled": sum(line.upscaled for line in kept),
        "padded": sum(line.padded for line in kept),
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


def _members(place: Place, shard: Written, varying: Collection[str]) -> dict[str, Any]:
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
                found[ending] = {"shape": [None, *shape[1:]] if ending in varying else shape, "dtype": kind}
    return found


def _npy_header(source: Any) -> tuple[list[int], str]:
    np.lib.format.read_magic(source)
    shape, _, dtype = np.lib.format.read_array_header_1_0(source)
    return list(shape), dtype.name


def samples_per_shard(sample_bytes: float, shard_mb: float) -> int:
    """How many samples make a shard of about that many megabytes."""
    return max(1, math.floor(shard_mb * 1e6 / sample_bytes))
