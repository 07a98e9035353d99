"""Choosing, step by step: the recipe's bounds, a threshold for so many hours, copies, the split."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manifests import duplicates, split
from manifests.bounds import Bound, BoundError, bound
from manifests.candidates import Candidates, Funnel, Lost, SelectionError, duration, replaces
from manifests.recipe import Limit, Recipe
from manifests.rows import rows
from manifests.schema import Clip, schema
from manifests.store import ManifestStore

COPIES = "copies of other clips"
"""The funnel's line for what `drop_duplicates` costs."""
SPLIT = pa.field("split", pa.string(), False, {"meaning": "train or validation: apart by person and by source video"})
_CHANGED = "the manifests changed while they were read: a job is writing there; try again when it is done"


@dataclass(frozen=True)
class Options:
    """How a selection is made beside its recipe.

    keep_hours: sets the bound on `along` so that so many hours are kept; along: a column, with its side (`sync_d<=`)
    where the recipe does not tell. drop_duplicates: of clips that show and say the same keep one. validation: its
    share of the hours, drawn by `seed`. people: whether a person whose face is in several videos is on one side.
    same: see split.SAME.
    """

    keep_hours: float | None = None
    along: str = ""
    drop_duplicates: bool = False
    validation: float = 0.0
    seed: int = 0
    people: bool = True
    same: float | None = None


@dataclass(frozen=True)
class Choice:
    """What was chosen; recipe: with the threshold that was found; notes: what a person should know beside."""

    recipe: Recipe
    funnel: Funnel
    clips: pa.Table
    notes: tuple[str, ...]


def chosen(store: ManifestStore, wanted: Recipe, options: Options) -> Choice:
    """The clips that keep every bound of a recipe, by `clip_id`, with their split. Raises SelectionError."""
    notes: list[str] = []
    if options.keep_hours is not None:
        wanted = keeping(store, wanted, options.keep_hours, options.along, notes)
    candidates = Candidates(store, wanted)
    funnel = candidates.funnel()
    notes += _strange_words(candidates)
    kept = candidates.kept()
    if options.drop_duplicates:
        funnel, kept = _without_copies(candidates, funnel, kept)
    if not len(kept):
        worst = max(funnel.lost, key=lambda lost: lost.alone_clips)
        alone = f"{worst.bound} alone removes {worst.alone_clips}"
        raise SelectionError("; ".join([f"nothing is left of {funnel.clips} clips: {alone}", *notes]))
    clips = _rows(candidates, kept)
    sides = pa.array(_sides(store, clips, options, notes), pa.string())
    return Choice(wanted, funnel, clips.append_column(SPLIT, sides), tuple(notes))


def keeping(store: ManifestStore, wanted: Recipe, hours: float, text: str, notes: list[str]) -> Recipe:
    """The recipe whose bound along a column keeps so many hours."""
    along = _along(text, wanted)
    candidates = Candidates(store, dataclasses.replace(wanted, limits=(*wanted.limits, Limit(along, ""))))
    candidates.funnel()  # a column that is null everywhere says so
    value = candidates.threshold(along, hours)
    others = tuple(limit for limit in wanted.limits if not replaces(along, limit.bound))
    if value is None:
        notes.append(f"there are fewer than {hours:g} hours even without a bound on {along.subject}: it has none now")
        return dataclasses.replace(wanted, limits=others)
    found = dataclasses.replace(along, value=value)
    notes.append(f"{found} keeps {hours:g} hours")
    return dataclasses.replace(wanted, limits=(*others, Limit(found, f"keep_hours={hours:g}")))


def _along(text: str, wanted: Recipe) -> Bound:
    """A bound on the column that a text names, on the side that it, or else the recipe, tells; its value is none."""
    match = re.fullmatch(r"\s*(.*?)\s*(>=?|<=?)?\s*", text)
    subject, sign = match.groups() if match else ("", None)
    if not subject:
        raise SelectionError("keep_hours needs along=: the column whose threshold is to be found")
    try:
        given = bound(f"{subject}{sign[0] if sign else '>'}=0", schema(Clip))
    except BoundError as error:
        raise SelectionError(f"along={text}: {error}") from error
    if sign is None:
        sides = {limit.bound.sign[0] for limit in wanted.limits if limit.bound.subject == given.subject} & {">", "<"}
        if len(sides) != 1:
            raise SelectionError(
                f"along={text}: write along={subject}>= or along={subject}<=, which side is to be kept"
            )
        given = dataclasses.replace(given, sign=f"{sides.pop()}=")
    return given


def _strange_words(candidates: Candidates) -> list[str]:
    """A note for each word that a bound asks for and no clip has."""
    notes = []
    for limit in candidates.recipe.limits:
        if isinstance(limit.bound.value, tuple):
            there = candidates.words(limit.bound.column)
            if strangers := [word for word in limit.bound.value if word not in there]:
                known = ", ".join(map(repr, there[:8]))
                notes.append(f"no clip has {limit.bound.column}={'|'.join(strangers)}: there is {known}")
    return notes


def _without_copies(candidates: Candidates, funnel: Funnel, kept: np.ndarray) -> tuple[Funnel, np.ndarray]:
    """The funnel with a line for copies, and the rows that are no copy of another one that is kept."""
    prints, rank = fingerprints(candidates)
    scored = candidates.scored()
    dropped = kept[duplicates.copies(prints.take(kept), rank[kept]) >= 0]
    alone = scored[duplicates.copies(prints.take(scored), rank[scored]) >= 0]
    unknown = int((~prints.take(scored).known()).sum())
    hours = candidates.hours
    line = Lost(COPIES, len(dropped), hours(dropped), len(alone), hours(alone), unknown)
    left = np.setdiff1d(kept, dropped)
    lost = (*funnel.lost, line)
    return dataclasses.replace(funnel, lost=lost, chosen_clips=len(left), chosen_hours=hours(left)), left


def fingerprints(candidates: Candidates) -> tuple[duplicates.Prints, np.ndarray]:
    """The fingerprints of all candidates, and their rank: the finest picture first, then by path and time.

    Raises SelectionError where there are none.
    """
    table = candidates.store.arrow(Clip, ["clip_id", "width", "height", "path", "start", *duplicates.COLUMNS])
    if not table["clip_id"].equals(candidates.table["clip_id"]):
        raise SelectionError(_CHANGED)
    prints = duplicates.Prints.of(table)
    if not prints.known().any():
        raise SelectionError("copies cannot be found: no clip has a fingerprint; run curation/run.py again")
    table = table.append_column("pixels", pc.multiply(table["width"], table["height"]))
    keys = [("pixels", "descending"), ("path", "ascending"), ("start", "ascending"), ("clip_id", "ascending")]
    rank = np.empty(table.num_rows, np.int64)
    rank[pc.sort_indices(table, sort_keys=keys).to_numpy()] = np.arange(table.num_rows)
    return prints, rank


def _rows(candidates: Candidates, kept: np.ndarray) -> pa.Table:
    """All columns of some rows, in the order of `clip_id`."""
    store = candidates.store
    try:
        clips = rows(store, Clip, kept)
    except FileNotFoundError as error:
        raise SelectionError(_CHANGED) from error
    if not clips["clip_id"].equals(candidates.table["clip_id"].take(pa.array(kept))):
        raise SelectionError(_CHANGED)
    return clips.sort_by("clip_id")


def _sides(store: ManifestStore, clips: pa.Table, options: Options, notes: list[str]) -> list[str]:
    """train or validation, for each clip."""
    share = options.validation
    if not 0 <= share < 1:
        raise SelectionError(f"validation={share:g}: a share of the hours, from 0 to below 1")
    if not share:
        return ["train"] * clips.num_rows
    coded = clips["video_id"].combine_chunks().dictionary_encode()
    video_N = coded.indices.to_numpy()
    hours_V = np.bincount(video_N, clips["duration"].to_numpy() / 3600)
    people = split.people(store, clips) if options.people else split.People.nobody()
    drawn_V = split.draw(coded.dictionary.to_pylist(), hours_V, people, share, options.seed, options.same)
    got, wanted = float(hours_V[drawn_V].sum()), share * float(hours_V.sum())
    if got < wanted / 2:
        notes.append(
            f"validation has {duration(got)} of the {duration(wanted)} asked for: the groups of people and videos are "
            "too large; a larger validation=, a higher same= or people=false give more"
        )
    return np.where(drawn_V[video_N], "validation", "train").tolist()
