#!/usr/bin/env python
"""Manifests in, one HTML page out: what became of the footage, what the clips are like, and which a choice would keep.

  python manifests/report.py output=/data
  python manifests/report.py output=/data selection=hallo3-stage1
  python manifests/report.py output=/data recipe=latentsync where=[face_px>=120]

The page opens without a network, and by itself: data, script and previews are in it.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # the repo root, not this folder, is where our packages are
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import time
from dataclasses import dataclass

from manifests import recipe, selection
from manifests.distributions import metrics
from manifests.overview import by_recipe, by_selection, overview, read_clips
from manifests.recipe import RecipeError
from manifests.report_page import render
from manifests.schema import Video
from manifests.selection import SelectionError
from manifests.store import ManifestError, ManifestStore, locate, publish
from model import settings
from model.settings import option, required


@dataclass(frozen=True)
class ReportConfig:
    """What the report shows."""

    output: str = required("what curation/run.py wrote: a folder, or s3:// or gs://")
    selection: str = option("", "show this selection as `after`: a name that manifests/filter.py wrote")
    recipe: str = option("", "or what this recipe would choose: a name, or a .yaml file; several with commas between")
    where: list[str] = option([], "or these bounds, alone or on top of the recipe: [sync_c>=3,face_px>=120]")
    page: str = option("", "where the page goes; empty: report.html in the output")
    clips: int = option(60, "how many clips the contact sheet shows")
    previews: bool = option(True, "three seconds with sound of each of them; false: one picture")
    along: str = option("", "the metric that they are spread along; empty: a score of lip sync")
    seed: int = option(0, "draws which clips are shown")


def main(config: ReportConfig) -> int:
    """Write the page; the exit status: 0 done, 1 it could not be done, 2 the settings are wrong."""
    try:
        return report(config)
    except (RecipeError, settings.SettingsError) as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 2
    except (ManifestError, SelectionError) as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 1


def report(config: ReportConfig) -> int:
    """Manifests in, page out."""
    check(config)
    started = time.monotonic()
    store = ManifestStore(config.output)
    if not store.arrow(Video, ["source_id"]).num_rows:
        raise ManifestError(f"{store.root}: no manifests there; curation/run.py output={config.output} makes some")
    recipes = [recipe.load(name.strip()) for name in config.recipe.split(",") if name.strip()]
    asked = recipe.joined([*recipes, recipe.asked(config.where)]) if recipes or config.where else None
    made = selection.read(config.output, config.selection) if config.selection else None
    clips = read_clips(store, asked or (made.recipe if made else None))
    chosen = None
    if made is not None:
        chosen = by_selection(clips, made)
    elif asked is not None:
        chosen = by_recipe(store, clips, asked)
    page = render(overview(store, clips, chosen, config.clips, config.previews, config.along, config.seed))
    filesystem, path = locate(config.page) if config.page else (store.filesystem, beside(store))
    publish(filesystem, path, page.encode())
    print(f"{path}: {clips.num_rows} clips, {len(page) / 1e6:.1f} MB, {time.monotonic() - started:.1f} s")
    return 0


def check(config: ReportConfig) -> None:
    """Raises SettingsError for settings that contradict each other or name nothing."""
    if config.selection and (config.recipe or config.where):
        raise settings.SettingsError("selection=… has its own bounds: give it, or recipe=… and where=…")
    if config.clips < 0:
        raise settings.SettingsError(f"clips={config.clips}: how many clips to show, 0 or more")
    names = [metric.name for metric in metrics()]
    if config.along and config.along not in names:
        raise settings.SettingsError(f"along={config.along}: no metric; there is {', '.join(names)}")


def beside(store: ManifestStore) -> str:
    """Where the page goes unless told otherwise: into the output, next to `manifests`."""
    return f"{store.root.rsplit('/', 1)[0]}/report.html"


if __name__ == "__main__":
    settings.main(ReportConfig, __doc__ or "", main)
