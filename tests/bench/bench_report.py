"""What the report costs: making it, its size, opening it in Chromium, and a slider's move, by the number of clips.

  python tests/bench/bench_report.py [clips …]

Made-up manifests (50 clips a video, SyncNet's columns among them, in packs), no pictures. Opening: from
navigation until sliders work. A move: count all clips anew and redraw every histogram in view; a
frame: from one picture on the screen to the next while a slider is dragged. Median of 50 moves, 1280 x 900.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import statistics
import tempfile
import time

from manifests import recipe
from manifests.overview import by_recipe, overview, read_clips
from manifests.report_page import render
from tests.manifests.chromium import Page, browser
from tests.manifests.made_up import manifests

BOUNDS = ["lip_sync>=0.3", "face_ratio>=0.2", "sync_c>=3", "binding=speaks"]
DRAG = """(async () => {
  const node = document.querySelector('[data-metric="face_ratio"] [aria-label^="least"]');
  const begun = performance.now();
  for (let move = 0; move < 50; move++) {
    node.value = Math.round((move / 50) * node.max);
    node.dispatchEvent(new Event('input'));
    await new Promise(requestAnimationFrame);
  }
  return (performance.now() - begun) / 50;
})()"""
MOVES = "performance.getEntriesByName('talkreel-move').map((entry) => entry.duration)"


def main(sizes: list[int]) -> None:
    print(f"{'clips':>8} {'made s':>8} {'MB':>7} {'opened s':>9} {'move ms':>8} {'frame ms':>9}")
    with browser() as page:
        page.size(1280, 900)
        for size in sizes:
            with tempfile.TemporaryDirectory() as folder:
                print(row(page, Path(folder), size), flush=True)


def row(page: Page, folder: Path, size: int) -> str:
    store = manifests(folder, size, videos=max(1, size // 50), synced=True)
    store.compact()
    begun = time.perf_counter()
    asked = recipe.asked(BOUNDS)
    clips = read_clips(store, asked)
    text = render(overview(store, clips, by_recipe(store, clips, asked), pictures=0))
    path = folder / "report.html"
    path.write_text(text)
    made = time.perf_counter() - begun
    begun = time.perf_counter()
    page.open(path)
    opened = time.perf_counter() - begun
    page.ask("document.querySelector('#choose').scrollIntoView({behavior: 'instant'})")
    frame = page.ask(DRAG)
    move = statistics.median(page.ask(MOVES)[-50:])
    return f"{size:8,} {made:8.1f} {len(text) / 1e6:7.2f} {opened:9.2f} {move:8.1f} {frame:9.1f}"


if __name__ == "__main__":
    main([int(size) for size in sys.argv[1:]] or [1_000, 10_000, 100_000])
