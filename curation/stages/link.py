"""link: what was seen and heard in the clips of one video, put together: who is who, and whose voice is whose.

Pure: no file is opened.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from curation.measures.identity import people
from manifests.schema import UNMEASURED, Clip, Metrics, Track

FITS, MISFITS = 0.6, 0.5
"""lip_sync from which on lips and voice belong together, and below which they do not (docs/metrics.md)."""
SURE_SECONDS = 4.0
"""Shortest clip of which it can be said that they do not."""
STILL = 0.045
"""mouth_motion below which a mouth does not speak: it was 0.030 of one who listens, 0.05 to 0.14 of those who talk."""

SPEAKS = "speaks"
UNDETERMINED = "undetermined"
DUBBED = "dubbed"
LISTENER = "listener"
VOICE_OVER = "voice-over"


@dataclass(frozen=True)
class Scored:
    """What scoring found out about one clip on its own.

    faces: vectors [K, D] of some frames of each track. same: their cosine from which on two are rather one person's.
    """

    metrics: Metrics
    tracks: Sequence[Track]
    faces: Sequence[np.ndarray]
    same: float


def link(clips: Sequence[Clip], scored: Mapping[str, Scored]) -> tuple[list[Clip], list[Track]]:
    """The clips of one video with all their metrics, and the tracks with their persons.

    scored: by clip id; a clip that is missing there could not be scored.
    """
    tracks = _named([scored[clip.clip_id] for clip in clips if clip.clip_id in scored])
    person = {(track.clip_id, track.track): track.person for track in tracks}
    done = []
    for clip in clips:
        metrics = UNMEASURED
        if clip.clip_id in scored:
            found = scored[clip.clip_id].metrics
            bound = None if found.track is None else person[clip.clip_id, found.track]
            metrics = dataclasses.replace(found, person=bound)
        else:
            metrics = dataclasses.replace(metrics, status="failed", unmeasured=["all: see the table failures"])
        done.append(dataclasses.replace(clip, **vars(metrics)))
    mouths = _mouths(done)
    return [_bound(clip, mouths.get(clip.speaker)) for clip in done], tracks


def _named(scenes: Sequence[Scored]) -> list[Track]:
    """The tracks of all clips, each with its person; those of one face have one."""
    if not scenes:
        return []
    tracks = [track for scene in scenes for track in scene.tracks]
    names = people([face for scene in scenes for face in scene.faces], scenes[0].same, _together(tracks))
    return [dataclasses.replace(track, person=name) for track, name in zip(tracks, names, strict=True)]


def _together(tracks: Sequence[Track]) -> list[tuple[int, int]]:
    """Pairs of tracks that are on show in one picture: two people."""
    shown = [np.isfinite(np.array(track.left)) for track in tracks]
    of_clip: dict[str, list[int]] = {}
    for index, track in enumerate(tracks):
        of_clip.setdefault(track.clip_id, []).append(index)
    pairs = (pair for indices in of_clip.values() for pair in itertools.combinations(indices, 2))
    return [(a, b) for a, b in pairs if (shown[a] & shown[b]).any()]


def _mouths(clips: Sequence[Clip]) -> dict[str, str]:
    """Whose mouth each voice fits, by the seconds in which it does."""
    seconds: dict[str, Counter[str]] = {}
    for clip in clips:
        if clip.person is not None and (clip.lip_sync or 0.0) >= FITS:
            seconds.setdefault(clip.speaker, Counter())[clip.person] += clip.duration  # type: ignore[assignment]
    return {speaker: max(sorted(counts), key=counts.__getitem__) for speaker, counts in seconds.items()}


def _bound(clip: Clip, mouth: str | None) -> Clip:
    """The clip with how its face and its voice belong together. mouth: the person whose voice this is."""
    if clip.lip_sync is None:
        binding = None
    elif clip.lip_sync >= FITS:
        binding = SPEAKS
    elif clip.lip_sync >= MISFITS or clip.duration < SURE_SECONDS:
        binding = UNDETERMINED
    elif (clip.mouth_motion or 0.0) >= STILL:
        binding = DUBBED
    else:
        binding = VOICE_OVER if mouth in (None, clip.person) else LISTENER
    return dataclasses.replace(clip, binding=binding, speaker_person=mouth)
