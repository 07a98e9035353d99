"""Append-only Parquet tables that survive kills and concurrent writers, on local disk or object storage.

A table is a folder of part files. The rows of one key (one video, as a rule) are one part, named by the key and
replaced as a whole in one atomic step: a part is there or it is not, and writing the same rows again gives the same
bytes. So a job may be killed anywhere, started again, or run twice at once. `compact` gathers thousands of parts
into packs; a part that was written after the pack wins over the rows of its key in the pack.
"""

from __future__ import annotations

import contextlib
import fcntl
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from manifests.schema import TABLES, VERSION, Row, columns, schema

AnyRow = TypeVar("AnyRow", bound=Row)
_PACK = "pack-"
_INDEX = "_packs"


class ManifestError(Exception):
    """A manifest that cannot be read or written: what, where, what to do."""


def locate(place: str) -> tuple[fs.FileSystem, str]:
    """The file system and path of a local path or a URI (s3://, gs://, file://)."""
    if "://" not in place:
        return fs.LocalFileSystem(), str(Path(place).expanduser().absolute())
    try:
        filesystem, path = fs.FileSystem.from_uri(place)
    except (pa.ArrowInvalid, OSError) as error:
        raise ManifestError(f"{place}: not a place this build can reach: {error}") from error
    return filesystem, path


def publish(filesystem: fs.FileSystem, path: str, content: bytes | pa.Buffer) -> None:
    """Write a file so that it is there whole or not at all. Raises ManifestError when it cannot be written."""
    is_local = isinstance(filesystem, fs.LocalFileSystem)
    folder = path.rpartition("/")[0]
    # An object appears in its bucket only when its stream closes; a local file needs the rename.
    target = f"{folder}/.{uuid.uuid4().hex}.tmp" if is_local else path
    try:
        if is_local:
            Path(folder).mkdir(parents=True, exist_ok=True)
        with filesystem.open_output_stream(target) as sink:
            sink.write(content)
        if is_local:
            Path(target).replace(path)
    except OSError as error:
        if is_local:
            with contextlib.suppress(OSError):
                Path(target).unlink()
        raise ManifestError(f"{path}: could not be written: {error}") from error


class ManifestStore:
    """The tables below `<output>/manifests`."""

    def __init__(self, output: str):
        self.output = output
        self.filesystem, root = locate(output)
        self.root = f"{root}/manifests"
        self.is_local = isinstance(self.filesystem, fs.LocalFileSystem)

    def folder(self, table: type[Row]) -> str:
        return f"{self.root}/{table.table}"

    # Writing ---------------------------------------------------------------------------------------------------

    def write(self, table: type[Row], key: str, rows: list) -> None:
        """Replace the rows of `key`, atomically; with none, an empty part says that there are none."""
        self._write_file(f"{self.folder(table)}/{key}.parquet", to_arrow(table, rows))

    def forget(self, table: type[Row], key: str) -> None:
        """Drop the rows of `key`, if there are any."""
        self._delete([f"{self.folder(table)}/{key}.parquet"])
        if self.read(table, key):
            self.write(table, key, [])  # a pack holds them: an empty part stands before it

    def _write_file(self, path: str, data: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(data, sink, compression="zstd")
        publish(self.filesystem, path, sink.getvalue())

    def _delete(self, paths: Iterable[str]) -> None:
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                self.filesystem.delete_file(path)

    # Reading ---------------------------------------------------------------------------------------------------

    def read(self, table: type[AnyRow], key: str) -> list[AnyRow]:
        """The rows of one key, in the order they were written."""
        with contextlib.suppress(FileNotFoundError):
            return from_arrow(table, self._read_file(f"{self.folder(table)}/{key}.parquet"))
        wanted = pc.field(columns(table)[0]) == key
        for pack in self.packs(table):
            found = pq.read_table(pack, filesystem=self.filesystem, filters=wanted)
            if found.num_rows:
                return from_arrow(table, found)
        return []

    def arrow(self, table: type[Row], wanted: list[str] | None = None) -> pa.Table:
        """A whole table; `wanted` names its columns (all, when None)."""
        names = wanted or columns(table)
        batches = list(self.batches(table, names))
        return pa.concat_tables(batches) if batches else schema(table).empty_table().select(names)

    def batches(self, table: type[Row], wanted: list[str] | None = None) -> Iterator[pa.Table]:
        """A whole table, file by file: parts by key, then what the packs hold of other keys."""
        names = wanted or columns(table)
        newer = []
        for part in self.files(table)[0]:
            with contextlib.suppress(FileNotFoundError):  # gone into a pack since the listing
                yield self._read_file(part, names)
                newer.append(_key_of(part))
        key = columns(table)[0]
        for pack in self.packs(table):
            if not newer:
                yield self._read_file(pack, names)
                continue
            data = self._read_file(pack, list(dict.fromkeys([key, *names])))
            yield data.filter(pc.invert(pc.is_in(data[key], pa.array(newer, pa.string())))).select(names)

    def keys(self, table: type[Row]) -> set[str]:
        """Every key that has rows."""
        return set(self.arrow(table, [columns(table)[0]]).column(0).to_pylist())

    def _read_file(self, path: str, wanted: list[str] | None = None) -> pa.Table:
        try:
            with self.filesystem.open_input_file(path) as source:
                found = pq.read_table(source, columns=wanted)
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowInvalid) as error:
            advice = "delete it, and the next run makes its rows anew"
            reason = str(error).splitlines()[0]
            raise ManifestError(f"{path}: not readable as Parquet ({reason}); {advice}") from error
        version = (found.schema.metadata or {}).get(b"schema_version", b"none").decode()
        if version != VERSION:
            raise ManifestError(f"{path}: of schema version {version}, this is {VERSION}: choose a new output")
        return found

    def files(self, table: type[Row]) -> tuple[list[str], list[str]]:
        """The part files and the pack files of a table, sorted."""
        selector = fs.FileSelector(self.folder(table), allow_not_found=True)
        paths = sorted(
            entry.path
            for entry in self.filesystem.get_file_info(selector)
            if entry.type == fs.FileType.File
            and entry.base_name.endswith(".parquet")
            and not entry.base_name.startswith(".")
        )
        packs = [path for path in paths if _key_of(path).startswith(_PACK)]
        return [path for path in paths if not _key_of(path).startswith(_PACK)], packs

    def packs(self, table: type[Row]) -> list[str]:
        """The packs that count: a pack file not named in the index is one that a killed compaction left."""
        try:
            with self.filesystem.open_input_stream(f"{self.folder(table)}/{_INDEX}") as source:
                return [f"{self.folder(table)}/{name}" for name in source.read().decode().split()]
        except FileNotFoundError:
            return []

    # Packing parts together ------------------------------------------------------------------------------------

    def compact(self, more_than: int = 0) -> int:
        """Gather the parts of every table that has more than `more_than` of them; returns how many were gathered.

        One compaction at a time: on local disk a lock sees to that (another holder: nothing is done); on object
        storage the caller must. Readers see each row once throughout, if they read through this class.
        """
        with self._lock() as held:
            if not held:
                return 0
            self._sweep()
            return sum(self._compact(table, more_than) for table in TABLES)

    def _sweep(self) -> None:
        """Delete what writers that were killed an hour ago or more left half written."""
        if self.is_local:
            for leftover in Path(self.root).glob("*/.*.tmp"):
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - leftover.stat().st_mtime > 3600:
                        leftover.unlink()

    def _compact(self, table: type[Row], more_than: int) -> int:
        parts, files = self.files(table)
        packs = self.packs(table)
        self._delete(set(files) - set(packs))
        if len(parts) <= more_than:
            return 0
        keys = pa.array([_key_of(part) for part in parts], pa.string())
        key = columns(table)[0]
        outdated = [pack for pack in packs if pc.any(pc.is_in(self._read_file(pack, [key])[key], keys)).as_py()]
        pieces = [self._read_file(part) for part in parts]
        for pack in outdated:
            data = self._read_file(pack)
            pieces.append(data.filter(pc.invert(pc.is_in(data[key], keys))))
        fresh = f"{self.folder(table)}/{_PACK}{uuid.uuid4().hex[:16]}.parquet"
        self._write_file(fresh, pa.concat_tables(pieces))
        live = [pack.rsplit("/", 1)[-1] for pack in (*packs, fresh) if pack not in outdated]
        # From here on the new pack counts, and those it was made from do not.
        publish(self.filesystem, f"{self.folder(table)}/{_INDEX}", "\n".join(live).encode())
        self._delete(outdated)
        self._delete(parts)
        return len(parts)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[bool]:
        """Hold the compaction lock; the kernel gives it back when its holder dies."""
        if not self.is_local:
            yield True
            return
        Path(self.root).mkdir(parents=True, exist_ok=True)
        with Path(self.root, ".lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True


def to_arrow(table: type[Row], rows: list) -> pa.Table:
    """Rows as a table of its schema."""
    names = columns(table)
    try:
        return pa.Table.from_pydict({name: [getattr(row, name) for row in rows] for name in names}, schema(table))
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, UnicodeEncodeError) as error:
        raise ManifestError(f"a row does not fit the table {table.table}: {error}") from error


def from_arrow(table: type[AnyRow], data: pa.Table) -> list[AnyRow]:
    """A table's rows."""
    return [table(**row) for row in data.select(columns(table)).to_pylist()]


def _key_of(path: str) -> str:
    return path.rsplit("/", 1)[-1].removesuffix(".parquet")
