"""What a job will cost, before it is started: from the headers of a sample of its inputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from curation.inputs import Source, local_copy
from model import media

_SAMPLE = 100
# CPU seconds per second of footage, scan and listen together: 103 for 635 s of development footage, 512x512 to
# 1920x1080, on a busy machine. Models' loading is in it, so long films cost less.
_CORES_PER_SECOND = 0.16
# CPU seconds of scoring per second of clips, at 720p (docs/benchmarks.md), and how much of the footage is taken to
# become clips: as much as of the demo's.
_SCORING, _CLIPS = 0.58, 0.25


@dataclass(frozen=True)
class Cost:
    """hours: of footage; basis: where the numbers come from; broken: (path, reason) of sampled files."""

    hours: float
    core_hours: float
    basis: str
    broken: tuple[tuple[str, str], ...]


def sampled(sources: Iterable[Source], scored: bool) -> Cost:
    """The cost of looking at the sources, and of scoring their clips; durations are read from up to 100 headers."""
    broken: list[tuple[str, str]] = []
    stride, kept = 1, []
    total = 0
    for index, source in enumerate(sources):
        total += max(source.bytes, 0)
        if index % stride == 0:
            kept.append(source)
            if len(kept) > _SAMPLE:
                kept, stride = kept[::2], stride * 2
    seconds = sampled_bytes = 0.0
    for source in kept:
        try:
            with local_copy(source.path) as path:
                seconds += float(media.probe(path).duration)
                sampled_bytes += source.bytes
        except (media.MediaError, OSError) as error:
            broken.append((source.path, source.problem or str(error)))
    hours = seconds * (total / sampled_bytes) / 3600 if sampled_bytes else 0.0
    basis = f"durations of {len(kept) - len(broken)} files, {_CORES_PER_SECOND:g} core-seconds per second"
    rate = _CORES_PER_SECOND
    if scored:
        rate += _SCORING * _CLIPS
        basis += f", {_SCORING:g} more where there are clips, taken to be {_CLIPS:.0%} of it"
    return Cost(hours, hours * rate, basis, tuple(broken))
