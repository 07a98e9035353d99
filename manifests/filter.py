#!/usr/bin/env python
"""Choose clips by thresholds: a recipe, bounds of your own, or both. Seconds, not hours: nothing is measured again.

  python manifests/filter.py output=/data recipe=hallo3-stage1
  python manifests/filter.py output=/data where=[sync_c>=3,dnsmos_bak>=2.5] name=clean
  python manifests/filter.py output=/data recipe=latentsync keep_hours=100 along=sync_c
  python manifests/filter.py output=/data recipe=latentsync explain=0123456789abcdef
  python manifests/filter.py output=/data repeat=latentsync

The selection is written to <output>/selections/<name>.parquet. docs/choosing.md has more.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # the repo root, not this folder, is where our packages are
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import dataclasses
from dataclasses import dataclass

import pyarrow.compute as pc

from manifests import recipe, selection
from manifests.candidates import duration
from manifests.choice import Options, keeping
from manifests.explanation import explain
from manifests.recipe import Recipe, RecipeError
from manifests.selection import Selection, SelectionError
from manifests.store import ManifestError, ManifestStore
from model import settings
from model.settings import option, required


@dataclass(frozen=True)
class FilterConfig:
    """Settings of manifests/filter.py."""

    output: str = required("where the manifests are: a folder, or s3:// or gs://")
    recipe: str = option("", "a recipe's name, or a .yaml file; several, with commas between: all that they ask for")
    where: list[str] = option(
        [], "further bounds: [sync_c>=3,abs(sync_offset)<=6,binding=speaks|undetermined,speakers=1,source_set!=movie]"
    )
    name: str = option("", "the selection's name; empty: the recipe's, with a hash where there are further bounds")
    keep_hours: float | None = option(
        None, "find the threshold that keeps so many hours, on the column that `along` names"
    )
    along: str = option("", "keep_hours: the column; with its side (sync_d<=) where the recipe does not tell")
    duplicates: str = option("keep", "keep, or drop clips that show and say the same as another", ("keep", "drop"))
    validation: float = option(0.02, "share of the hours for validation, apart by person and by source video")
    seed: int = option(0, "draws which")
    people: bool = option(
        True, "one person's videos, known by the face, are on one side; false: only a video's clips are"
    )
    same: float | None = option(
        None, "cosine from which on two faces are one person's; null: as the face network has it"
    )
    explain: str = option("", "only say which bound removes this clip: a clip_id")
    repeat: str = option("", "make this selection again as it was recorded, and say whether it is the same")
    dry_run: bool = option(False, "only print the funnel")


def main(config: FilterConfig) -> int:
    """Choose; the exit status: 0 done, 1 it could not be done (or repeat= differs), 2 a bound or recipe is none."""
    try:
        store = ManifestStore(config.output)
        if config.repeat:
            return repeat(store, config)
        wanted = asked(config)
        if config.explain:
            return explained(store, wanted, config)
        chosen = selection.choose(store, wanted, options(config), config.name)
        if not config.name and (config.where or config.keep_hours is not None):
            marked = [chosen.recipe.name or "own", chosen.recipe.hash[:6]]
            chosen = dataclasses.replace(chosen, name="-".join(marked))
        show(chosen)
        if not config.dry_run:
            print(f"selection: {selection.write(config.output, chosen)}")
        return 0
    except RecipeError as error:
        print(f"filter.py: {error}", file=sys.stderr)
        return 2
    except (SelectionError, ManifestError) as error:
        print(f"filter.py: {error}", file=sys.stderr)
    return 1


def asked(config: FilterConfig) -> Recipe:
    """The recipe that the settings add up to."""
    names = [name.strip() for name in config.recipe.split(",") if name.strip()]
    if not names and not config.where and config.keep_hours is None and not config.explain:
        raise RecipeError(f"nothing is asked for: give where=[…], or recipe=…: {', '.join(recipe.names())}")
    return recipe.joined([*(recipe.load(name) for name in names), recipe.asked(config.where)])


def options(config: FilterConfig) -> Options:
    return Options(
        keep_hours=config.keep_hours,
        along=config.along,
        drop_duplicates=config.duplicates == "drop",
        validation=config.validation,
        seed=config.seed,
        people=config.people,
        same=config.same,
    )


def explained(store: ManifestStore, wanted: Recipe, config: FilterConfig) -> int:
    notes: list[str] = []
    if config.keep_hours is not None:
        wanted = keeping(store, wanted, config.keep_hours, config.along, notes)
    found = explain(store, wanted, config.explain, config.duplicates == "drop")
    print(*notes, *found.lines(), sep="\n")
    return 0


def repeat(store: ManifestStore, config: FilterConfig) -> int:
    """Make a selection again; write it only under a name that is given."""
    again, different = selection.again(store, config.repeat)
    show(dataclasses.replace(again, name=config.name or config.repeat))
    if config.name and not config.dry_run:
        print(f"selection: {selection.write(config.output, dataclasses.replace(again, name=config.name))}")
    if not different:
        print(f"the same as {config.repeat!r} was: recipe {again.recipe.hash}")
        return 0
    print(f"not the same as {config.repeat!r} was:", *(f"  {line}" for line in different), sep="\n")
    return 1


def show(chosen: Selection) -> None:
    print(f"{chosen.name}: {chosen.recipe.about}" if chosen.recipe.about else chosen.name)
    print(*chosen.funnel.lines(), sep="\n")
    for side in ("train", "validation"):
        clips = chosen.clips.filter(pc.equal(chosen.clips["split"], side))
        hours = (pc.sum(clips["duration"]).as_py() or 0.0) / 3600
        videos = pc.count_distinct(clips["video_id"]).as_py()
        print(f"  {side}: {clips.num_rows} clips of {videos} videos, {duration(hours)}")
    for note in chosen.notes:
        print(f"note: {note}")


if __name__ == "__main__":
    settings.main(FilterConfig, __doc__ or "", main)
