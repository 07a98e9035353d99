"""What choosing costs: a recipe over a million clips, its funnel, copies, the split.

  python tests/bench/bench_select.py [--clips 1000000] [--rounds 3]

Budget: 2 s for 10⁶ clips, from the Parquet to the chosen rows with all their columns and the funnel. Beside it, in the
same run: reading the whole table through the store, and the same choice and funnel by pyarrow alone on that table.
Files are in the page cache.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import functools
import statistics
import tempfile
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manifests import recipe
from manifests.candidates import Candidates
from manifests.duplicates import Prints, copies
from manifests.schema import Clip, Video
from manifests.selection import choose, write
from manifests.split import People, draw
from manifests.store import ManifestStore
from tests.manifests.synthetic import films, many, pack

BUDGET = 2.0
BOUNDS = ("sync_c>=3", "abs(sync_offset)<=6", "face_share>=0.5", "dnsmos_bak>=0.7", "binding=speaks", "yaw_p95<2")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = pack(folder, many(asked.clips))
        pack(folder, films(asked.clips // 10), Video)
        size = sum(file.stat().st_size for file in Path(folder).rglob("*.parquet"))
        wanted = recipe.asked(BOUNDS)
        timed = functools.partial(median, rounds=asked.rounds)
        chosen = choose(store, wanted, name="bench")
        by_pyarrow, funnel = plain(store)
        assert by_pyarrow == chosen.clips.num_rows and funnel == [
            line.clips for line in chosen.funnel.lost[-len(BOUNDS) :]
        ]
        print(f"{asked.clips} clips, {size / 1e6:.0f} MB; {len(BOUNDS)} bounds keep {chosen.clips.num_rows}; seconds")
        counted = timed(lambda: Candidates(store, wanted).funnel())
        whole = timed(lambda: choose(store, wanted))
        reading = timed(lambda: store.arrow(Clip))
        beside = timed(lambda: plain(store))
        writing = timed(lambda: write(folder, chosen))
    clips = asked.clips // 10
    prints = talks(clips)
    faces = np.random.default_rng(0).normal(size=(clips, 128)).astype(np.float32)
    crowd = People(np.arange(clips), faces / np.linalg.norm(faces, axis=1, keepdims=True))
    names = [f"{n}" for n in range(clips)]
    rows = [
        ("the funnel alone", counted, ""),
        ("the selection", whole, f"budget {BUDGET:g}"),
        ("reading the table, all columns", reading, f"the selection is {whole.cpu / reading.cpu:.2f} x its CPU"),
        ("the same by pyarrow alone", beside, f"the selection is {whole.cpu / beside.cpu:.2f} x its CPU"),
        ("writing the selection", writing, ""),
        (f"copies among {clips} clips", timed(lambda: copies(prints, np.arange(clips))), ""),
        (f"2 % of {clips} videos by face", timed(lambda: draw(names, np.ones(clips), crowd, 0.02)), ""),
    ]
    print(f"  {'':32}{'wall':>7}{'CPU':>7}")
    for name, spent, note in rows:
        print(f"  {name:32}{spent.wall:7.2f}{spent.cpu:7.2f}  {note}".rstrip())
    return int(asked.clips >= 1_000_000 and whole.wall > BUDGET)


@dataclass(frozen=True)
class Spent:
    """Seconds by the clock, and of all cores."""

    wall: float
    cpu: float


def median(work: Callable[[], Any], rounds: int) -> Spent:
    wall, cpu = [], []
    for _ in range(rounds):
        start, started = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - started)
    return Spent(statistics.median(wall), statistics.median(cpu))


def plain(store: ManifestStore) -> tuple[int, list[int]]:
    """The same by hand: one mask a bound over the whole table; clips chosen, and lost at each bound."""
    table = store.arrow(Clip)
    us = pc.cast(pc.round(pc.multiply(table["duration"], 1e6)), pa.int64())
    left = pc.fill_null(pc.equal(table["status"], "scored"), False)
    scored, lost = left, []
    for mask in _masks(table):
        keeps = pc.fill_null(mask, False)
        out, alone = pc.and_not(left, keeps), pc.and_not(scored, keeps)
        lost.append(pc.sum(out).as_py())
        for gone in (out, alone):
            pc.sum(us.filter(gone))
        left = pc.and_(left, keeps)
    chosen = table.filter(left).sort_by("clip_id")
    return chosen.num_rows, lost


def _masks(table: pa.Table) -> Sequence[pa.ChunkedArray]:
    return (
        pc.greater_equal(table["sync_c"], 3),
        pc.less_equal(pc.abs(table["sync_offset"]), 6),
        pc.greater_equal(table["face_share"], 0.5),
        pc.greater_equal(table["dnsmos_bak"], 0.7),
        pc.equal(table["binding"], "speaks"),
        pc.less(table["yaw_p95"], 2),
    )


def talks(count: int, seconds: int = 6) -> Prints:
    """Fingerprints of clips of six seconds, every hundredth a copy of the one before, 5 % of its bits turned over."""
    random = np.random.default_rng(0)
    picture = np.repeat(random.integers(0, 2**62, (count, 1)), seconds, axis=1)
    sound = np.repeat(random.integers(0, 2**32, (count, seconds * 5)), 4, axis=1)
    flips = (random.random((count // 100, seconds * 20, 32)) < 0.05) @ (np.int64(1) << np.arange(32, dtype=np.int64))
    picture[99::100], sound[99::100] = picture[98::100], sound[98::100] ^ flips[: len(sound[99::100])]
    at = [np.arange(count + 1) * size for size in (seconds, seconds * 20)]
    return Prints(picture.reshape(-1), at[0], sound.reshape(-1), at[1])


if __name__ == "__main__":
    raise SystemExit(main())
