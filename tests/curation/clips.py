"""A file, or a part of one, as a clip."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from manifests.schema import UNMEASURED, Clip, Turn
from model import media


def clip(path: Path, start: float = 0.0, end: float | None = None, name: str = "c", speaker: str = "S0") -> Clip:
    """The file from start to end, seconds; all of it when no end is given."""
    probe = media.probe(path)
    assert probe.video is not None
    tick = probe.video.time_base
    stop = float(probe.duration) if end is None else min(end, float(probe.duration))
    ticks = {"start_ticks": round(Fraction(start) / tick), "end_ticks": round(Fraction(stop) / tick)}
    where = {"start": start, "end": stop, "duration": stop - start, "time_base": str(tick), **ticks}
    size = {"width": probe.video.width, "height": probe.video.height, "fps": float(probe.video.fps)}
    labels = dict.fromkeys(("source_set", "licence", "url", "models"), "")
    named = {"video_id": "v", "clip_id": name, "shot": 0, "speaker": speaker, "faces_seen": 1, "path": str(path)}
    return Clip(**named, **where, **size, **labels, **vars(UNMEASURED))


def speech(clip: Clip) -> list[Turn]:
    """One voice all through it."""
    return [Turn("v", clip.start, clip.end, clip.speaker, 0, 0, 0, None, None, None)]
