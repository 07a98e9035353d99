#!/usr/bin/env python
"""Find what the dct codec keeps: the 16 numbers of a block's cosine transform with the most energy in talking heads.

  python model/codecs/fit_dct.py input=/my/talking/heads

From every video that is at least 720 x 480 at 3:2, some seeded windows of 49 frames at 25 fps are taken, cropped to
720 x 480 with more room below the middle than above, as heads have. Printed are the two tables that `dct.py` holds
and what they are worth. Same footage, same tables.

A number's energy is the mean of its square times what it adds to the square of R, G and B. The first frame's list
is found on single frames; `repeated` is what it would be worth to encode it as four equal ones instead.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # the repo root, not this folder, is where our packages are
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch

from model import media, settings
from model.codecs.dct import GROUP, PLANES, SIDE, Basis, Coefficient, blocks, cosines, ycbcr
from model.media import MediaError, Span
from model.settings import option, required

FPS = 25
FRAMES = 49
WIDTH, HEIGHT = 720, 480
SUFFIXES = (".mp4", ".mov", ".mkv", ".avi", ".webm")


@dataclass(frozen=True)
class FitConfig:
    """What to fit on."""

    input: str = required("a folder of talking heads, one a video")
    keep: int = option(16, "how many numbers of a block are kept")
    windows: int = option(2, "windows of 49 frames taken from each video")
    seed: int = option(0, "where the windows lie")
    threads: int = option(1, "threads of the computation; another number may change the last digits")


@dataclass
class Energies:
    """Sums over blocks of every number of their transform, [t, 3, 8, 8]."""

    length: int
    count: int = 0
    total: torch.Tensor | float = 0.0
    squares: torch.Tensor | float = 0.0

    def add(self, frames_TCHW: torch.Tensor) -> None:
        for group in frames_TCHW.split(self.length):
            numbers_NtCyx = transformed(group, self.length)
            self.count += len(numbers_NtCyx)
            self.total = self.total + numbers_NtCyx.sum(0, dtype=torch.float64)
            self.squares = self.squares + numbers_NtCyx.square().sum(0, dtype=torch.float64)

    def best(self, keep: int) -> list[Coefficient]:
        """The numbers with the most energy, most first."""
        total, squares = torch.as_tensor(self.total) / self.count, torch.as_tensor(self.squares) / self.count
        weights_C = torch.linalg.inv(ycbcr()).square().sum(0)
        energy = (squares * weights_C[:, None, None]).flatten()
        std = (squares - total.square()).sqrt()
        kept = []
        for index in energy.argsort(descending=True)[:keep].tolist():
            t, plane, y, x = np.unravel_index(index, squares.shape)
            kept.append(Coefficient(PLANES[plane], int(t), int(y), int(x), round(float(std[t, plane, y, x]), 4)))
        return kept


def transformed(frames_TCHW: torch.Tensor, length: int) -> torch.Tensor:
    """All numbers of all blocks: [kT, 3, H, W] RGB -> [N, t, plane, y, x]."""
    cut = blocks(frames_TCHW[None], length).flatten(0, 3).unflatten(-1, (length, 3, SIDE, SIDE))
    in_time, in_space = cosines(length).float(), cosines(SIDE).float()
    return torch.einsum("Nscij,ts,pc,yi,xj->Ntpyx", cut, in_time, ycbcr().float(), in_space, in_space)


def aligned(first: Sequence[Coefficient], later: Sequence[Coefficient]) -> list[Coefficient]:
    """The first frame's numbers in the channels that mean the same in later latents, the others in those left."""
    places = {(c.plane, c.y, c.x): channel for channel, c in enumerate(later) if c.t == 0}
    shared = {places[key]: c for c in first if (key := (c.plane, c.y, c.x)) in places}
    rest = iter([c for c in first if (c.plane, c.y, c.x) not in places])
    return [shared[channel] if channel in shared else next(rest) for channel in range(len(later))]


def windows(video: Path, count: int, random: np.random.Generator) -> Iterator[torch.Tensor]:
    """Seeded windows of a video: [49, 3, 480, 720] RGB, -1 to 1; none where the video is too small or too short.

    Raises MediaError.
    """
    facts = media.probe(video)
    if facts.video is None or facts.video.width < WIDTH or facts.video.height < HEIGHT:
        return
    room = float(facts.video.duration) - FRAMES / FPS
    scale = max(WIDTH / facts.video.width, HEIGHT / facts.video.height)
    size = max(WIDTH, round(facts.video.width * scale)), max(HEIGHT, round(facts.video.height * scale))
    left, top = (size[0] - WIDTH) // 2, (size[1] - HEIGHT) // 4
    for start in sorted(random.uniform(0, room, count)) if room > 0 else []:
        begin = Fraction(math.floor(start * FPS), FPS)
        span = Span(begin, begin + Fraction(FRAMES, FPS))
        images = np.stack(list(media.frames(video, span, Fraction(FPS), size)))
        if len(images) == FRAMES:
            cropped = images[:, top : top + HEIGHT, left : left + WIDTH]
            yield torch.from_numpy(cropped).movedim(-1, 1).float() / 127.5 - 1


def fit(videos: Sequence[Path], keep: int, count: int, seed: int) -> tuple[list[Coefficient], list[Coefficient]]:
    """The tables of the first frame and of the others, from the windows of some videos."""
    alone, grouped = Energies(1), Energies(GROUP)
    for number, video in enumerate(videos):
        for window in windows(video, count, np.random.default_rng([seed, number])):
            alone.add(window[::GROUP])
            grouped.add(window[1:])
    if not grouped.count:
        raise ValueError(f"none of {len(videos)} videos is {WIDTH}x{HEIGHT} or more and {FRAMES / FPS:g} s long")
    later = grouped.best(keep)
    return aligned(alone.best(keep), later), later


def psnr(frames: torch.Tensor, kept: torch.Tensor) -> float:
    """Peak signal to noise, dB, of pictures of -1 to 1."""
    return float(10 * torch.log10(4 / (frames - kept.clamp(-1, 1)).square().mean()))


def worth(basis: Basis, frames_TCHW: torch.Tensor) -> float:
    """PSNR of what a basis keeps of frames, dB."""
    return psnr(frames_TCHW, basis.synthesise(basis.analyse(frames_TCHW[None]))[0])


def films(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)


def main(config: FitConfig) -> int:
    """Fit and print; the exit status: 0 done, 1 it could not be done."""
    torch.set_num_threads(config.threads)
    videos = films(Path(config.input))
    try:
        first, later = fit(videos, config.keep, config.windows, config.seed)
    except (ValueError, MediaError) as error:
        print(f"fit_dct.py: {config.input}: {error}", file=sys.stderr)
        return 1
    for name, table in (("FIRST", first), ("LATER", later)):
        print(f"{name} = (")
        for c in table:
            print(f'    Coefficient("{c.plane}", {c.t}, {c.y}, {c.x}, {c.std}),')
        print(")")
    alone, grouped = Basis(first, 1), Basis(later, GROUP)
    print("PSNR, dB: later frames; first frame; first frame, repeated")
    for number, video in enumerate(videos):
        for window in windows(video, 1, np.random.default_rng([config.seed, number])):
            repeated = worth(grouped, window[:1].expand(GROUP, -1, -1, -1))
            print(f"{worth(grouped, window[1:]):7.2f} {worth(alone, window[:1]):7.2f} {repeated:7.2f}  {video.name}")
    return 0


if __name__ == "__main__":
    settings.main(FitConfig, __doc__ or "", main)
