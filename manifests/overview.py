"""From manifests, and what was chosen of them, to all that the report shows."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manifests.accounting import account, source_sets, troubles
from manifests.bounds import Bound
from manifests.candidates import Candidates
from manifests.contact_sheet import previews, sample
from manifests.distributions import Metric, metrics, values
from manifests.page_data import Edge, Pick, Rule, page_data
from manifests.recipe import Limit, Recipe
from manifests.report_page import Report
from manifests.schema import VERSION, Clip, Run, columns
from manifests.selection import Funnel, Selection
from manifests.store import ManifestStore

ALONG = ("sync_c", "lip_sync", "face_ratio", "duration")
"""What the contact sheet is spread along unless told otherwise: the first of these that was measured."""
_SIDES = {">=", ">", "<=", "<"}


@dataclass(frozen=True)
class Chosen:
    """What the page calls `after`: the clips, and the bounds and counts that led to them. kept_N: bool."""

    name: str
    recipe: Recipe
    funnel: Funnel
    kept_N: np.ndarray
    notes: tuple[str, ...] = ()


def read_clips(store: ManifestStore, recipe: Recipe | None = None) -> pa.Table:
    """All clips with the columns that the page needs, and those that a recipe bounds."""
    needed = {"clip_id", "video_id", "path", "source_set", "start", "end", "speaker", "person", "binding", "track"}
    needed |= {"status", "unmeasured", "width", "height"}
    needed |= {part for metric in metrics() for part in metric.parts or (metric.name,)}
    needed |= set(recipe.columns if recipe else ())
    return store.arrow(Clip, [name for name in columns(Clip) if name in needed])


def by_recipe(store: ManifestStore, clips: pa.Table, recipe: Recipe) -> Chosen:
    """What a recipe would choose. Raises SelectionError where a column of it has no value at all."""
    candidates = Candidates(store, recipe)
    funnel = candidates.funnel()
    kept_N = np.zeros(candidates.table.num_rows, bool)
    kept_N[candidates.kept()] = True
    chosen = candidates.table["clip_id"].filter(pa.array(kept_N))
    return Chosen(recipe.name, recipe, funnel, _among(clips, chosen))


def by_selection(clips: pa.Table, selection: Selection) -> Chosen:
    """What a selection chose, as far as the manifests still have it."""
    kept_N = _among(clips, selection.clips["clip_id"])
    gone = selection.clips.num_rows - int(kept_N.sum())
    notes = (f"{gone:,} of its clips are no longer in the manifests",) if gone else ()
    return Chosen(selection.name, selection.recipe, selection.funnel, kept_N, notes)


def _among(clips: pa.Table, chosen: pa.ChunkedArray) -> np.ndarray:
    return np.array(pc.is_in(clips["clip_id"], chosen.combine_chunks()).to_numpy(), bool)


def overview(
    store: ManifestStore,
    clips: pa.Table,
    chosen: Chosen | None,
    pictures: int = 60,
    moving: bool = True,
    along: str = "",
    seed: int = 0,
) -> Report:
    """All that the page shows. pictures: clips on the contact sheet; along: the metric that these are spread along."""
    edges, rules = limits(clips, chosen) if chosen else ([], [])
    kept_N = chosen.kept_N if chosen else np.ones(clips.num_rows, bool)
    spread = _along(clips, along)
    shown = sample(values(clips, spread), kept_N, pictures, seed) if spread else []
    rows = clips.take(pa.array(shown, pa.int64()))
    picks = [Pick(*pair) for pair in zip(shown, previews(store, rows, moving), strict=True)]
    data = page_data(clips, edges, rules, picks, f"python manifests/filter.py output={shlex.quote(store.output)}")
    data.facts["along"] = spread.name if spread else None
    notes = [chosen.recipe.about, *chosen.notes] if chosen else []
    return Report(
        output=store.output,
        made=_made(store, chosen),
        account=account(store, clips),
        sets=source_sets(store, clips, kept_N),
        troubles=troubles(store),
        data=data,
        chosen=(chosen.name or "the bounds given") if chosen else "",
        about=" ".join(note.rstrip(".") + "." for note in notes if note),
        funnel=chosen.funnel if chosen else None,
    )


def _along(clips: pa.Table, wanted: str) -> Metric | None:
    """The metric that the contact sheet is spread along; None where there are no clips."""
    known = {metric.name: metric for metric in metrics()}
    for name in (wanted,) if wanted else ALONG:
        if np.isfinite(values(clips, known[name])).any():
            return known[name]
    return known["duration"] if clips.num_rows else None


def limits(clips: pa.Table, chosen: Chosen) -> tuple[list[Edge], list[Rule]]:
    """The choice as bounds that sliders take, and rules for all else: together they keep exactly what was chosen."""
    edges: list[Edge] = []
    rules: list[Rule] = []
    kept_N = np.ones(clips.num_rows, bool)
    scored_N = pc.fill_null(pc.equal(clips["status"], "scored"), False).to_numpy()
    if not scored_N.all():
        rules.append(Rule("status=scored", "only scored clips are chosen", "", ~scored_N))
        kept_N &= scored_N
    measured = {metric.name for metric in metrics() if not metric.parts and np.isfinite(values(clips, metric)).any()}
    for limit in chosen.recipe.limits:
        holds_N = _holds(limit.bound, clips)
        kept_N &= holds_N
        sides = _sides(limit) if limit.bound.column in measured else []
        edges += sides
        if not sides:
            rules.append(Rule(str(limit.bound), limit.source, str(limit.bound), ~holds_N))
    if (beside_N := kept_N & ~chosen.kept_N).any():
        rules.append(Rule(f"not in {chosen.name}", "copies of other clips, or new since it was made", "", beside_N))
    return edges, rules


def _sides(limit: Limit) -> list[Edge]:
    """A bound as least and greatest values; empty where it is neither."""
    bound, value = limit.bound, limit.bound.value
    if isinstance(value, tuple):
        return []
    if bound.sign in _SIDES and not bound.absolute:
        return [Edge(bound.column, bound.sign, value, limit.source)]
    if bound.sign == "=" and not bound.absolute:
        return [Edge(bound.column, sign, value, limit.source) for sign in (">=", "<=")]
    if bound.sign in ("<=", "<") and bound.absolute:
        mirrored = bound.sign.replace("<", ">")
        return [Edge(bound.column, mirrored, -value, limit.source), Edge(bound.column, bound.sign, value, limit.source)]
    return []


def _holds(bound: Bound, clips: pa.Table) -> np.ndarray:
    """Which clips keep a bound: bool [N]; null keeps none."""
    values_N = clips[bound.column].to_pylist()
    return np.array([value is not None and bound.holds(value) for value in values_N], bool)


def _made(store: ManifestStore, chosen: Chosen | None) -> str:
    """Which run made the manifests last, and what was chosen with."""
    parts = []
    runs = store.arrow(Run, ["started", "versions"]).sort_by("started").to_pylist()
    if runs:
        version = json.loads(runs[-1]["versions"]).get("talkreel", "")
        parts.append(f"last run of talkreel {version} {runs[-1]['started']}".replace("  ", " "))
    parts.append(f"schema {VERSION}")
    if chosen:
        parts.append(f"chosen: {chosen.name or 'by bounds'} (bounds {chosen.recipe.hash})")
    return "; ".join(parts)
