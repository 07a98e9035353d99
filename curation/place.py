"""Where shards go: a folder on local disk or in a bucket, whose files appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from pyarrow import fs

from manifests.store import locate

STAGING = ".staging"
"""Folder of what waits for the rest; deleted when all is there."""


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
