"""What became of every input: files that failed, seconds lost per reason, clips that came out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from manifests.schema import Clip, Failure, Loss, Video
from manifests.store import ManifestStore

_SHOWN_FAILURES = 12
_PROPOSED = pa.array(["proposed", "scored"])
_ACCOUNTED = pa.array(["proposed", "scored", "duplicate"])


@dataclass(frozen=True)
class Funnel:
    """Counts over a whole output, whichever runs made it. Seconds are of footage, on the sources' own clocks."""

    files: int
    seconds: float
    unusable: int
    duplicates: int
    unfinished: int
    unfinished_seconds: float
    lost: Mapping[str, float]
    clips: int
    clip_seconds: float
    scores: Mapping[str, int]
    failures: tuple[tuple[str, str, str], ...]

    def lines(self) -> list[str]:
        """The funnel as a table for people."""
        whole = max(self.seconds, 1e-9)
        rows = [("inputs", f"{self.files} files", "")]
        if self.unusable:
            rows.append(("  cannot be opened or scanned", f"{self.unusable} files", ""))
        if self.duplicates:
            rows.append(("  same content as another input", f"{self.duplicates} files", ""))
        rows.append(("looked at", f"{self.seconds:.1f} s", "100.0 %"))
        if self.unfinished:
            share = f"{100 * self.unfinished_seconds / whole:.1f} %"
            rows.append((f"  failed on the way ({self.unfinished} files)", f"{self.unfinished_seconds:.1f} s", share))
        rows += [
            (f"  {reason}", f"{seconds:.1f} s", f"{100 * seconds / whole:.1f} %")
            for reason, seconds in sorted(self.lost.items(), key=lambda item: -item[1])
        ]
        rows.append((f"clips ({self.clips})", f"{self.clip_seconds:.1f} s", f"{100 * self.clip_seconds / whole:.1f} %"))
        rows += [(f"  {status}", f"{count} clips", "") for status, count in sorted(self.scores.items(), reverse=True)]
        width = max(len(name) for name, _, _ in rows)
        lines = [f"{name:<{width}}  {amount:>12}  {share:>8}".rstrip() for name, amount, share in rows]
        if self.failures:
            lines += ["", "Not done (all of them: the table `failures`):"]
            lines += [f"  {path}: {stage}: {message}" for stage, path, message in self.failures[:_SHOWN_FAILURES]]
            if len(self.failures) > _SHOWN_FAILURES:
                lines.append(f"  … and {len(self.failures) - _SHOWN_FAILURES} more")
        return lines


def funnel(store: ManifestStore) -> Funnel:
    """The funnel of everything that the manifests hold."""
    videos = store.arrow(Video, ["path", "video_id", "status", "duration"])
    failures = store.arrow(Failure, ["stage", "key", "path", "message"])
    done = videos.filter(pc.is_in(videos["status"], _PROPOSED))
    duplicates = videos.filter(pc.equal(videos["status"], "duplicate")).num_rows
    unfinished = videos.filter(pc.invert(pc.is_in(videos["status"], _ACCOUNTED)))
    opened = pc.is_in(failures["path"], videos["path"].combine_chunks())  # a clip's failure is not its file's
    unusable = failures.filter(pc.invert(opened))
    losses = store.arrow(Loss, ["start", "end", "reason", "video_id"])
    losses = losses.filter(pc.is_in(losses["video_id"], done["video_id"].combine_chunks()))
    losses = losses.append_column("seconds", pc.subtract(losses["end"], losses["start"]))
    by_reason = losses.group_by("reason").aggregate([("seconds", "sum")]).to_pylist()
    clips = store.arrow(Clip, ["duration", "status"])
    scores = clips["status"].drop_null().value_counts().to_pylist()
    named = zip(*(failures[name].to_pylist() for name in ("stage", "path", "message")), strict=True)
    return Funnel(
        files=videos.num_rows + unusable.num_rows,
        seconds=_total(done["duration"]) + _total(unfinished["duration"]),
        unusable=unusable.num_rows,
        duplicates=duplicates,
        unfinished=unfinished.num_rows,
        unfinished_seconds=_total(unfinished["duration"]),
        lost={row["reason"]: row["seconds_sum"] for row in by_reason},
        clips=clips.num_rows,
        clip_seconds=_total(clips["duration"]),
        scores={row["values"]: row["counts"] for row in scores},
        failures=tuple(sorted(((stage, path, _without(path, message)) for stage, path, message in named), key=_path)),
    )


def _path(failure: tuple[str, str, str]) -> str:
    return failure[1]


def _without(path: str, message: str) -> str:
    """The message without the path, which is shown before it."""
    return message.removeprefix(f"{path}: ")


def _total(numbers: pa.ChunkedArray) -> float:
    return pc.sum(numbers).as_py() or 0.0
