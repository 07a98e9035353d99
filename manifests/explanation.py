"""Why one clip is, or is not, in a selection: bound by bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from manifests.candidates import Candidates, SelectionError, reasons
from manifests.choice import fingerprints
from manifests.duplicates import copies
from manifests.recipe import Recipe
from manifests.schema import Clip, Failure
from manifests.store import ManifestStore


@dataclass(frozen=True)
class Verdict:
    """One bound on one clip. value: the clip's own; None: it has none, for the reason `why`."""

    bound: str
    value: float | str | None
    keeps: bool
    why: str = ""


@dataclass(frozen=True)
class Explanation:
    """status: why the bounds are not asked at all; empty for a clip that is scored. copy_of: another clip's id."""

    clip_id: str
    where: str
    status: str
    verdicts: tuple[Verdict, ...]
    copy_of: str = ""

    @property
    def removed_by(self) -> str:
        """The first that removes the clip; empty: nothing does."""
        broken = [verdict.bound for verdict in self.verdicts if not verdict.keeps]
        return self.status or next(iter(broken), "") or (f"being a copy of {self.copy_of}" if self.copy_of else "")

    def lines(self) -> list[str]:
        """The explanation for people."""
        lines = [f"clip {self.clip_id}: {self.where}"]
        width = max((len(verdict.bound) for verdict in self.verdicts), default=0)
        for verdict in self.verdicts:
            value = f"no value: {verdict.why}" if verdict.value is None else _short(verdict.value)
            lines.append(f"  {verdict.bound:<{width}}  {'keeps it' if verdict.keeps else 'REMOVES '}  {value}")
        return [*lines, f"removed by {self.removed_by}" if self.removed_by else "chosen: every bound keeps it"]


def explain(store: ManifestStore, wanted: Recipe, clip_id: str, drop_duplicates: bool = False) -> Explanation:
    """What a recipe makes of a clip. Raises SelectionError when there is no such clip."""
    candidates = Candidates(store, wanted, ("unmeasured", "path", "start", "end"))
    at = pc.index(candidates.table["clip_id"], clip_id).as_py()
    if at < 0:
        raise SelectionError(_nowhere(candidates, clip_id))
    clip = candidates.table.slice(at, 1).to_pylist()[0]
    where = f"{clip['path']} from {clip['start']:.3f} to {clip['end']:.3f} s"
    if clip["status"] != "scored":
        return Explanation(clip_id, where, _status(store, clip), ())
    verdicts = []
    for limit in wanted.limits:
        value = clip[limit.bound.column]
        if value is None or value != value:
            lacks = reasons(limit.bound.column, clip["unmeasured"]) or ["no reason is recorded"]
            verdicts.append(Verdict(str(limit.bound), None, False, "; ".join(lacks)))
        else:
            verdicts.append(Verdict(str(limit.bound), value, limit.bound.holds(value)))
    copied = ""
    if drop_duplicates and all(verdict.keeps for verdict in verdicts):
        prints, rank = fingerprints(candidates)
        kept = candidates.kept()
        original = copies(prints.take(kept), rank[kept])[int(np.searchsorted(kept, at))]
        copied = "" if original < 0 else candidates.table["clip_id"][int(kept[original])].as_py()
    return Explanation(clip_id, where, "", tuple(verdicts), copied)


def _status(store: ManifestStore, clip: dict[str, Any]) -> str:
    if clip["status"] is None:
        return "not having been scored yet: run curation/run.py to its end"
    if clip["status"] == "stopped":
        return "the cascade: " + "; ".join(clip["unmeasured"])
    failures = store.arrow(Failure, ["key", "message"])
    messages = failures.filter(pc.equal(failures["key"], clip["clip_id"]))["message"].to_pylist()
    return "a failure of its scoring: " + ("; ".join(messages) or "see the table failures")


def _nowhere(candidates: Candidates, clip_id: str) -> str:
    ids = candidates.table["clip_id"]
    near = ids.filter(pc.starts_with(ids, clip_id)).to_pylist()[:3] if len(clip_id) >= 4 else []
    hint = f"did you mean {' or '.join(near)}?" if near else "a clip's id is 16 hex digits."
    return (
        f"no clip {clip_id!r} among the {len(ids)} of {candidates.store.folder(Clip)}: {hint} "
        "What never became a candidate has no id: the table `losses` gives the reason, stretch by stretch"
    )


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
