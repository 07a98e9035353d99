"""What scoring a clip costs: CPU time a second of clip, and which measure takes what.

  python tests/bench/bench_score.py [--rounds 3] [--seconds 8]

Budget: 0.5 core-seconds per clip-second at 720p, embedded profile, one face on show. A bare decode of the same clip,
on one thread, is timed beside it.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

os.environ["OMP_NUM_THREADS"] = "1"

import statistics
import tempfile
from typing import Any

from curation.backends.landmarks import Landmarker
from curation.backends.lips import LipSync
from curation.backends.sound import Dnsmos
from curation.backends.tracks import Tracker
from curation.config import ScoreConfig
from curation.measures import picture
from curation.measures.camera import Camera
from curation.measures.motion import Flow
from curation.stages import score, viewing
from model import media
from model.encoders.face import DlibFace
from tests.bench import films
from tests.bench.bench_scan import Spent, bare, cpu
from tests.curation.clips import clip, speech

BUDGET = 0.5
PARTS: dict[str, list[tuple[Any, str]]] = {
    "decode, RGB": [(media, "frames")],
    "faces": [(Tracker, "_search")],
    "landmarks": [(Landmarker, "__call__")],
    "identity": [(DlibFace, "__call__")],
    "camera": [(Camera, "see"), (viewing, "small")],
    "flow": [(Flow, "see")],
    "light": [(picture, "sharpness"), (picture, "face_sharpness"), (picture, "luminance")],
    "sound, read": [(media, "audio")],
    "sound, rated": [(Dnsmos, "__call__")],
    "lips": [(LipSync, "hear"), (LipSync, "compare")],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        film = films.interview(Path(folder) / "film.mp4", asked.seconds / 60, shot_seconds=asked.seconds)
        whole = clip(film)
        stage = score.Score(ScoreConfig())
        stage(film, whole, speech(whole))  # warm from here on
        rounds = [
            (cpu(lambda: bare(film)), cpu(lambda: stage(film, whole, speech(whole)))) for _ in range(asked.rounds)
        ]
        total = statistics.median(spent for _, spent in rounds) / whole.duration
        decode = statistics.median(spent for spent, _ in rounds) / whole.duration
        spent = Spent()
        for part, calls in PARTS.items():
            for owner, name in calls:
                spent.watch(owner, name, part)
        with spent.on("rest"):
            stage(film, whole, speech(whole))
    print(f"{whole.duration:g} s of {whole.width}x{whole.height}, one face: core-seconds a second of clip")
    for part in [*PARTS, "rest"]:
        print(f"  {part:14}{spent.seconds[part] / whole.duration:7.3f}")
    print(f"  {'in all':14}{total:7.3f}   budget {BUDGET:g}; a bare decode {decode:.3f}, {total / decode:.1f} x")
    return int(total > BUDGET)


if __name__ == "__main__":
    raise SystemExit(main())
