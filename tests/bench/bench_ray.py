"""What Ray, the worklist, the processes and the manifests cost a row, with stages that do nothing.

  python tests/bench/bench_ray.py [rows …]

For each number of rows: wall milliseconds a row, and how the driver's memory grew from before the flow to its peak.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import tempfile
import time
from collections.abc import Iterator

import psutil

from curation import pipeline
from curation.config import RayConfig, StageResources
from curation.inputs import Source
from tests.bench.nothing import Nothing


def main(sizes: list[int]) -> None:
    steps = [
        Nothing("first", StageResources()),
        Nothing("second", StageResources()),
        Nothing("third", StageResources(cpus=0, workers=1)),
    ]
    process = psutil.Process()
    with pipeline.cluster(RayConfig()):
        for rows in [100, *sizes]:
            with tempfile.TemporaryDirectory() as output:
                before = process.memory_info().rss
                started = time.monotonic()
                peak = before
                with pipeline.worklist(output, sources(rows), rows, RayConfig()) as todo:
                    for index, _ in enumerate(pipeline.flow(todo, steps, output)):
                        if index % 1000 == 0:
                            peak = max(peak, process.memory_info().rss)
                spent = time.monotonic() - started
                assert index == rows - 1
                per_row = f"{1e3 * spent / rows:8.3f} ms a row"
                grown = f"driver +{(peak - before) / 1e6:.0f} MB (to {peak / 1e6:.0f} MB)"
                print(f"{rows:>9,} rows: {spent:8.1f} s, {per_row}, {grown}", flush=True)


def sources(rows: int) -> Iterator[Source]:
    return (Source(f"/footage/{index:08}.mp4", 1_000_000, index) for index in range(rows))


if __name__ == "__main__":
    main([int(size) for size in sys.argv[1:]] or [10_000, 100_000, 1_000_000])
