"""What is left to do: the inputs, less what the manifests hold already."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from curation.config import CurationConfig
from curation.inputs import Source, find, mark_duplicates
from curation.steps import LABELS, Step
from manifests.schema import Failure, Video, short_hash
from manifests.store import ManifestStore

_SEEN = ["source_id", "path", "video_id", "bytes", "modified", "asked", *LABELS]
_SEEN += ["status", "scan_version"]


class Backlog:
    """The sources of a job that are not done, held as numbers, not as objects: there may be millions."""

    def __init__(self, config: CurationConfig, store: ManifestStore, steps: Sequence[Step]):
        self.config, self.store = config, store
        self._done = self._finished(steps)
        self._broken = set() if config.retry else self._failed()
        self.skipped = self.failed_before = 0
        sizes = np.fromiter((source.bytes for source in self._pending(count=True)), np.int64)
        self.files, self.bytes = len(sizes), int(sizes[sizes > 0].sum())
        values, counts = np.unique(sizes, return_counts=True)
        self._sizes, self._shared_sizes = set(values.tolist()), set(values[counts > 1].tolist())

    def __iter__(self) -> Iterator[Source]:
        """The sources to do, exact copies of earlier ones marked as such."""
        return mark_duplicates(self._pending(), self._shared_sizes, self._known_contents())

    def _pending(self, count: bool = False) -> Iterator[Source]:
        for source in find(self.config.input, self.config.source_set, self.config.licence):
            done = _identity(source, [getattr(source, label) for label in LABELS], source.asked) in self._done
            broken = not done and _identity(source) in self._broken
            if not done and not broken:
                yield source
            elif count:
                self.skipped += done
                self.failed_before += broken

    def _finished(self, steps: Sequence[Step]) -> set[int]:
        """The sources that the manifests hold whole, as they are now and with these settings."""
        first, last = steps[0].version, steps[-1].version
        reached = f"{steps[-1].name}_version"
        found = set()
        for batch in self.store.batches(Video, list(dict.fromkeys([*_SEEN, reached]))):
            for row in batch.to_pylist():
                if row[reached] == last or (row["status"] == "duplicate" and row["scan_version"] == first):
                    source = Source(row["path"], row["bytes"], row["modified"])
                    found.add(_identity(source, [row[label] for label in LABELS], tuple(row["asked"])))
        return found

    def _failed(self) -> set[int]:
        """The sources that failed in an earlier run and have not changed since."""
        rows = self.store.arrow(Failure, ["path", "bytes", "modified"]).to_pylist()
        return {_identity(Source(row["path"], row["bytes"], row["modified"])) for row in rows}

    def _known_contents(self) -> dict[int, list[tuple[str, str]]]:
        """(path, sha256) of earlier sources by size, where one that is to be done now has the same size."""
        known: dict[int, list[tuple[str, str]]] = {}
        for batch in self.store.batches(Video, ["path", "bytes", "video_id", "status"]):
            for row in batch.to_pylist():
                if row["bytes"] in self._sizes and row["status"] != "duplicate":
                    known.setdefault(row["bytes"], []).append((row["path"], row["video_id"]))
        return known


def _identity(source: Source, labels: Sequence[str] = (), asked: Sequence[float] = ()) -> int:
    return int(short_hash(source.path, source.bytes, source.modified, *labels, *map(repr, asked)), 16)
