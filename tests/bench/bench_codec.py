"""What the dct codec costs and what it keeps: a window of 49 frames at 720 x 480.

  python tests/bench/bench_codec.py [threads=1] [film …]

Without films: the catalogue's man talking to the camera, enlarged. Milliseconds are wall-clock, the least of five
runs; `copy` is what a bare copy of the window's pixels takes in the same run. PSNR of the first frame, the others, all.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import time
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import torch

from model import codecs, media, weights
from model.codecs import fit_dct
from model.codecs.fit_dct import FPS, FRAMES, HEIGHT, WIDTH
from model.media import Span

RUNS = 5


def main(threads: int, films: list[Path]) -> None:
    torch.set_num_threads(threads)
    codec = codecs.load("dct")
    timed = False
    print("PSNR, dB: first  others     all")
    for film in films or [weights.path("psychopy-jwpIntro")]:
        for window in fit_dct.windows(film, 1, np.random.default_rng(7)) if films else [enlarged(film)]:
            shown = codec.decode(codec.encode(window))
            parts = slice(0, 1), slice(1, None), slice(None)
            print("       ", *(f"{fit_dct.psnr(window[part], shown[part]):7.2f}" for part in parts), f"  {film.name}")
            if not timed:
                report(codec, window, threads)
                timed = True


def report(codec: codecs.Codec, window: torch.Tensor, threads: int) -> None:
    latents = codec.encode(window)
    parts: dict[str, Callable[[], object]] = {
        "encode": lambda: codec.encode(window),
        "decode": lambda: codec.decode(latents),
        "copy": lambda: window.clone(),
    }
    for name, part in parts.items():
        print(
            f"{1e3 * cost(part):8.0f} ms  {name}, {threads} threads, {tuple(window.shape)} <-> {tuple(latents.shape)}"
        )


def enlarged(film: Path) -> torch.Tensor:
    span = Span(Fraction(1), 1 + Fraction(FRAMES, FPS))
    images = np.stack(list(media.frames(film, span, Fraction(FPS), (WIDTH, HEIGHT * 9 // 8))))
    return torch.from_numpy(images[:, :HEIGHT]).movedim(-1, 1).float() / 127.5 - 1


def cost(part: Callable[[], object]) -> float:
    """Seconds, the least of RUNS."""
    spent = []
    for _ in range(RUNS):
        started = time.perf_counter()
        part()
        spent.append(time.perf_counter() - started)
    return min(spent)


if __name__ == "__main__":
    given = [argument for argument in sys.argv[1:] if not argument.startswith("threads=")]
    counts = [int(argument.partition("=")[2]) for argument in sys.argv[1:] if argument.startswith("threads=")]
    main(counts[0] if counts else 1, [Path(film) for film in given])
