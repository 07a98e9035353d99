"""Reading packed shards, against reading the same bytes from end to end and against webdataset's own loader.

  python tests/bench/bench_shards.py [--gb 1.0] [--rounds 5] [--folder /somewhere]

Every way reads all samples once, in turns: cold (the kernel is asked to forget the files; what lies below may still
know them) and warm; the median of the rounds counts. `samples` gives arrays, in the order of training or as they lie;
`batches` all that training takes, drawn, masked and as float32, with and without a process that reads ahead.
Then: how long it takes to go on at sample 1,000,000 of a million samples in 4000 shards.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import torch
import webdataset

from curation.plan import Shard as Planned
from curation.plan import Window
from curation.shards import Place, archived, assemble, npy, staged, write_index
from model.config import ModelConfig, preset
from tests.training.packed import sample
from training.data import DataConfig, Source, loader
from training.members import array
from training.order import Order
from training.shards import read_index

CHUNK = 1 << 22
PER_SHARD = 64


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=1.0, help="size of the shards")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the shards are made; empty: the temporary folder")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    network = preset("tiny")
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        folder = Path(name)
        compare(packed(folder, network, asked.gb), network, asked.rounds)
        resume(folder)
    return 0


def packed(folder: Path, network: ModelConfig, gb: float) -> Path:
    """Shards of full size, with a video's bytes beside the arrays, as packing gives them."""
    place, written, count = Place(str(folder)), [], 0
    fillings = []
    for number in range(4):
        arrays = sample(network, f"filling{number}", network.latent_frames)
        members = {"json": json.dumps({"caption": "x" * 1500}).encode(), "mp4": os.urandom(400_000)}
        fillings.append(members | {f"{ending}.npy": npy(values) for ending, values in arrays.items()})
    size = len(archived("clip000000-000000", fillings[0]))
    for first in range(0, max(PER_SHARD, round(gb * 1e9 / size)), PER_SHARD):
        windows = tuple(Window(f"clip{first + n:06d}", 0) for n in range(PER_SHARD))
        shard = Planned(f"train-{first // PER_SHARD:06d}", "train", windows)
        for window in windows:
            place.publish(staged(shard.name, window.key), archived(window.key, fillings[count % len(fillings)]))
            count += 1
        written.append(assemble(place, shard, set()))
    settings = {"frames": 49, "motion_frames": 2, "audio_margin": 2}
    write_index(place, {"version": "bench", "settings": settings}, written)
    (folder / "nothing.npy").write_bytes(npy(np.zeros((2, network.text_dim), np.float16)))
    os.sync()
    print(f"{count} samples of {size / 1e6:.2f} MB in {len(written)} shards of {written[0].bytes / 1e6:.0f} MB")
    return folder


def compare(folder: Path, network: ModelConfig, rounds: int) -> None:
    source = Source(DataConfig(shards=str(folder)), network)
    shards = [folder / shard.name for shard in source.index.shards]
    total, order = source.index.bytes, source.order()
    in_training, as_they_lie = [order(place) for place in range(len(order))], range(len(order))
    ways: dict[str, Callable[[], int]] = {
        "raw, end to end": lambda: raw(shards),
        "samples, as they lie": lambda: samples(source, as_they_lie),
        "samples, in training's order": lambda: samples(source, in_training),
        "webdataset, as they lie": lambda: by_webdataset(shards, shuffle=0),
        "webdataset, shuffled by 100": lambda: by_webdataset(shards, shuffle=100),
        "batches": lambda: batches(folder, network, len(order), workers=0),
        "batches, 1 process ahead": lambda: batches(folder, network, len(order), workers=1),
    }
    for state in ("cold", "warm"):
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        busy: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, read in ways.items():
                if state == "cold":
                    forget(shards)
                start, spent = time.perf_counter(), time.process_time()
                count = read()
                seconds[way].append(time.perf_counter() - start)
                busy[way].append(time.process_time() - spent)
                assert count == len(order) or way.startswith("raw"), (way, count)
        base = statistics.median(seconds["raw, end to end"])
        print(f"\n{state}, medians of {rounds}: GB/s, share of raw, core-seconds a GB here; slowest and fastest GB/s")
        for way, found in seconds.items():
            middle, spent = statistics.median(found), statistics.median(busy[way])
            print(
                f"  {way:30}{total / middle / 1e9:6.2f} {base / middle:7.1%} {spent * 1e9 / total:6.2f}   "
                f"({total / max(found) / 1e9:.2f} to {total / min(found) / 1e9:.2f})"
            )


def forget(shards: list[Path]) -> None:
    """Ask the kernel to drop what it holds of the files."""
    for shard in shards:
        descriptor = os.open(shard, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def raw(shards: list[Path]) -> int:
    buffer, size = memoryview(bytearray(CHUNK)), 0
    for shard in shards:
        with shard.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                size += count
    return size


def samples(source: Source, numbers: list[int] | range) -> int:
    count = 0
    for number in numbers:
        found = source.reader.sample(number)
        arrays = [array(content) for ending, content in found.items() if ending.endswith("npy")]
        count += len(arrays) > 0
    return count


def by_webdataset(shards: list[Path], shuffle: int) -> int:
    """Its own loader with its own decoder for arrays; bytes for all else."""
    found = webdataset.WebDataset([str(shard) for shard in shards], shardshuffle=len(shards) if shuffle else False)
    found = found.shuffle(shuffle) if shuffle else found
    return sum("latent.npy" in one for one in found.decode(webdataset.autodecode.basichandlers))


def batches(folder: Path, network: ModelConfig, count: int, workers: int) -> int:
    reading = loader(DataConfig(shards=str(folder), workers=workers), network, 0, batch=1)
    found = sum(len(batch) for batch in itertools.islice(reading, count))
    reading.close()
    return found


def resume(folder: Path) -> None:
    """Going on at sample 1,000,000: by computing the place, and what replaying would take."""
    start = time.perf_counter()
    order = Order((250,) * 4000, 0, 1000)
    order(10**6)
    place = time.perf_counter() - start
    start = time.perf_counter()
    for position in range(10**6 + 1, 10**6 + 20_001):
        order(position)
    rate = 20_000 / (time.perf_counter() - start)
    large = Path(folder, "large")
    large.mkdir()
    (large / "index.json").write_text(json.dumps(_index(4000, 250)))
    start = time.perf_counter()
    count = len(read_index(str(large)))
    reading = time.perf_counter() - start
    network = preset("tiny")
    start = time.perf_counter()
    going_on = loader(DataConfig(shards=str(folder), workers=0), network, 0, batch=8, step=10**6 // 8)
    next(iter(going_on))
    first = time.perf_counter() - start
    begun = time.perf_counter()
    next(iter(loader(DataConfig(shards=str(folder), workers=0), network, 0, batch=8)))
    begun = time.perf_counter() - begun
    print(f"\nsample 1,000,000 of 4000 shards of 250: its place {place * 1e3:.1f} ms; then {rate:,.0f} a second")
    print(f"the index of {count:,} samples: {reading:.2f} s, whichever sample comes first")
    print(f"a loader's first batch of 8: {first * 1e3:.0f} ms at sample 1,000,000, {begun * 1e3:.0f} ms at the first")


def _index(shards: int, samples: int) -> dict:
    def line(number: int) -> dict:
        rows = [
            {"key": f"{number:08x}{n:08x}-{49 * n:06d}", "offset": n << 22, "size": 1 << 22} for n in range(samples)
        ]
        return {
            "shard": f"train-{number:06d}.tar",
            "split": "train",
            "bytes": 1 << 31,
            "sha256": "0" * 64,
            "index": rows,
        }

    return {"version": "", "settings": {}, "members": {}, "shards": [line(number) for number in range(shards)]}


if __name__ == "__main__":
    sys.exit(main())
