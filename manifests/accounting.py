"""What became of the footage, told from the manifests alone: seconds lost per reason, hours per source, failures."""

from __future__ import annotations

import collections
import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manifests.schema import Failure, Loss, Video
from manifests.store import ManifestStore

_PROPOSED = pa.array(["proposed", "scored"])
_ACCOUNTED = pa.array(["proposed", "scored", "duplicate"])


@dataclass(frozen=True)
class Account:
    """Where the seconds of all footage went; `lost`, `unfinished_seconds` and `clip_seconds` add up to `seconds`.

    lost: reason -> seconds, the greatest first. statuses: of the clips, null as `not scored`.
    """

    files: int
    unusable: int
    duplicates: int
    unfinished: int
    seconds: float
    unfinished_seconds: float
    lost: dict[str, float]
    clips: int
    clip_seconds: float
    statuses: dict[str, int]


def account(store: ManifestStore, clips: pa.Table) -> Account:
    """The account of everything that the manifests hold. clips: all of them, columns duration and status."""
    videos = store.arrow(Video, ["path", "video_id", "status", "duration"])
    failures = store.arrow(Failure, ["path"])
    done = videos.filter(pc.is_in(videos["status"], _PROPOSED))
    unfinished = videos.filter(pc.invert(pc.is_in(videos["status"], _ACCOUNTED)))
    # A file that was never opened has no row in `videos`; a clip's failure is not its file's.
    opened = pc.is_in(failures["path"], videos["path"].combine_chunks())
    unusable = len(failures) - (pc.sum(opened).as_py() or 0)
    losses = store.arrow(Loss, ["video_id", "start", "end", "reason"])
    losses = losses.filter(pc.is_in(losses["video_id"], done["video_id"].combine_chunks()))
    losses = losses.append_column("seconds", pc.subtract(losses["end"], losses["start"]))
    lost = {row["reason"]: row["seconds_sum"] for row in _grouped(losses, "reason", "seconds")}
    statuses = clips["status"].fill_null("not scored").value_counts().to_pylist()
    return Account(
        files=videos.num_rows + unusable,
        unusable=unusable,
        duplicates=pc.sum(pc.equal(videos["status"], "duplicate")).as_py() or 0,
        unfinished=unfinished.num_rows,
        seconds=_total(done["duration"]) + _total(unfinished["duration"]),
        unfinished_seconds=_total(unfinished["duration"]),
        lost=dict(sorted(lost.items(), key=lambda item: (-item[1], item[0]))),
        clips=clips.num_rows,
        clip_seconds=_total(clips["duration"]),
        statuses={row["values"]: row["counts"] for row in statuses},
    )


@dataclass(frozen=True)
class Footage:
    """Seconds of one source, or of all sources of a set: looked at, in clips, in clips that were chosen."""

    name: str
    path: str
    seconds: float
    clips: int
    clip_seconds: float
    chosen_seconds: float


@dataclass(frozen=True)
class SourceSet:
    """A set of sources and what it gave; sources: those that gave most, the greatest first."""

    whole: Footage
    sources: tuple[Footage, ...]
    others: int


def source_sets(store: ManifestStore, clips: pa.Table, chosen_N: np.ndarray, shown: int = 25) -> list[SourceSet]:
    """Hours by source set and source, the set with most hours in clips first.

    clips: columns video_id, source_set, duration; chosen_N: bool, which of them are chosen.
    """
    videos = store.arrow(Video, ["video_id", "path", "title", "source_set", "duration", "status"])
    videos = videos.filter(pc.is_in(videos["status"], _PROPOSED)).drop_columns("status")
    gave = clips.select(["video_id", "duration"]).append_column("chosen", pa.array(np.asarray(chosen_N, bool)))
    gave = gave.append_column("kept", pc.if_else(gave["chosen"], gave["duration"], 0.0))
    by_video = gave.group_by("video_id").aggregate([("duration", "sum"), ("duration", "count"), ("kept", "sum")])
    totals = {
        row["video_id"]: (row["duration_count"], row["duration_sum"], row["kept_sum"]) for row in by_video.to_pylist()
    }
    members: dict[str, list[Footage]] = collections.defaultdict(list)
    for row in videos.to_pylist():
        sums = totals.get(row["video_id"], (0, 0.0, 0.0))
        name = row["title"] or row["path"].rsplit("/", 1)[-1]
        members[row["source_set"]].append(Footage(name, row["path"], row["duration"], *sums))
    sets = []
    for name, sources in members.items():
        sources.sort(key=lambda source: (-source.clip_seconds, -source.seconds, source.path))
        columns = ((s.seconds, s.clips, s.clip_seconds, s.chosen_seconds) for s in sources)
        seconds, count, clip_seconds, chosen = (sum(column) for column in zip(*columns, strict=True))
        whole = Footage(name, "", seconds, int(count), clip_seconds, chosen)
        sets.append(SourceSet(whole, tuple(sources[:shown]), max(0, len(sources) - shown)))
    return sorted(sets, key=lambda found: (-found.whole.clip_seconds, found.whole.name))


@dataclass(frozen=True)
class Trouble:
    """Failures that differ only in which file it was: stage, kind, message without names and numbers, examples."""

    stage: str
    error: str
    message: str
    count: int
    examples: tuple[Failure, ...]


def troubles(store: ManifestStore, examples: int = 3) -> list[Trouble]:
    """The failures grouped by reason, the most frequent first."""
    groups: dict[tuple[str, str, str], list[Failure]] = collections.defaultdict(list)
    for batch in store.batches(Failure):
        for row in batch.to_pylist():
            failure = Failure(**row)
            groups[failure.stage, failure.error, reason(failure)].append(failure)
    found = [
        Trouble(*key, len(rows), tuple(sorted(rows, key=lambda row: (row.path, row.key))[:examples]))
        for key, rows in groups.items()
    ]
    return sorted(found, key=lambda trouble: (-trouble.count, trouble.stage, trouble.message))


def reason(failure: Failure) -> str:
    """A failure's message without what names this one file: paths become `…`, hashes and numbers `#`."""
    text = failure.message.removeprefix(f"{failure.path}: ")
    for name in (failure.path, failure.path.rsplit("/", 1)[-1]):
        text = text.replace(name, "…") if name else text
    text = re.sub(r"(?:\w+://|~?/)[^\s:,;'\"]*[^\s:,;'\".]", "…", text)
    return without_numbers(text)


def without_numbers(text: str) -> str:
    """A message with `#` for its numbers and hashes, so that those alike can be counted together."""
    text = re.sub(r"\b(?=[0-9a-f]*\d)[0-9a-f]{8,}\b", "#", text)
    return re.sub(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e-?\d+)?(?!\w)", "#", text).strip()


def _grouped(table: pa.Table, by: str, summed: str) -> list[dict]:
    return table.group_by(by).aggregate([(summed, "sum")]).to_pylist()


def _total(numbers: pa.ChunkedArray) -> float:
    return pc.sum(numbers).as_py() or 0.0
