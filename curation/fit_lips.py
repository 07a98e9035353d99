#!/usr/bin/env python
"""Fit the parameters of the built-in lip/audio score to footage: one talking face, one voice per video.

  python curation/fit_lips.py input=/my/talking/heads output=my_lips.npz

About 100 s of speech of ten people do; more people do better. The videos need not be in sync: a lag of up to half a
second is found and allowed for, and the middle of them is called zero. Same footage, same parameters.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # the repo root, not this folder, is where our packages are
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from dataclasses import dataclass
from fractions import Fraction

import cv2
import numpy as np

from curation.backends import lips as backend
from curation.backends.landmarks import Landmarker
from curation.inputs import InputError, find
from curation.measures import lips
from curation.measures.sound import level
from curation.stages.cast import mouth
from model import media, settings, weights
from model.encoders.detect import CenterFace
from model.encoders.speech import WhisperEncoder
from model.media import MediaError, Span
from model.settings import option, required

FEWEST = 3


@dataclass(frozen=True)
class FitConfig:
    """What to fit on, and where the parameters go."""

    input: str = required(
        "a video, a folder, a glob, a list of paths (.txt) or a table (.csv, .parquet; column `path`)"
    )
    output: str = required("the file of parameters to write, .npz")
    seconds: float = option(60.0, "how much of each video is used, from its start, s")
    threads: int = option(1, "threads of the computation; another number may change the last digits")


@dataclass(frozen=True)
class Recording:
    """mouth_TD: float64 [T, MOUTH], 25 fps. states_SD: float32 [S, 384], the speech encoder's, 50 Hz."""

    name: str
    mouth_TD: np.ndarray
    states_SD: np.ndarray

    @property
    def seconds(self) -> float:
        return len(self.mouth_TD) / lips.FPS


class Unfit(Exception):
    """A video that cannot teach anything, and why."""


class Reader:
    """Turns videos into recordings."""

    def __init__(self, seconds: float, threads: int = 1) -> None:
        cv2.setNumThreads(threads)
        self.seconds = Fraction(seconds)
        self.find = CenterFace(weights.path("centerface"), threads=threads).at
        self.landmarker = Landmarker(weights.path("face-landmarker"))
        self.encoder = WhisperEncoder(weights.path("whisper-tiny.en"), threads)

    def __call__(self, video: Path) -> Recording:
        """Raises Unfit, and MediaError when the file cannot be read."""
        span = Span(Fraction(0), min(media.probe(video).duration, self.seconds))
        waveform_N = media.audio(video, span)
        if level(waveform_N) < backend.SILENCE:
            raise Unfit("silent")
        mouth_TD = mouth(media.frames(video, span, Fraction(lips.FPS)), self.find, self.landmarker)
        if len(mouth_TD) < backend.SHORTEST * lips.FPS:
            raise Unfit(f"shorter than {backend.SHORTEST:g} s")
        if (seen := lips.seen_share(mouth_TD)) < backend.SEEN:
            raise Unfit(f"landmarks in {seen:.0%} of the frames")
        return Recording(video.stem, mouth_TD, self.encoder(waveform_N, backend.BLOCKS)[backend.BLOCKS])


def main(config: FitConfig) -> int:
    """Fit and write; the exit status: 0 done, 1 it could not be done."""
    try:
        videos = sorted(Path(source.path) for source in find(config.input))
        recordings = list(read(videos, Reader(config.seconds, config.threads)))
        if len(recordings) < FEWEST:
            raise InputError(f"{config.input}: {len(recordings)} videos to learn from; at least {FEWEST} are needed")
    except (InputError, weights.WeightsError) as error:
        print(f"fit_lips.py: {error}", file=sys.stderr)
        return 1
    mouths, sounds = [r.mouth_TD for r in recordings], [r.states_SD for r in recordings]
    model, offsets = lips.learn(mouths, sounds)
    backend.save(Path(config.output), model, [r.name for r in recordings], offsets)
    for recording, offset in zip(recordings, offsets, strict=True):
        print(f"{recording.name}: {recording.seconds:.1f} s, offset {offset:+d} frames")
    print(f"{config.output}: fitted on {len(recordings)} videos, {sum(r.seconds for r in recordings):.0f} s")
    return 0


def read(videos: list[Path], reader: Reader) -> list[Recording]:
    """The recordings that can teach something; says of the others why not."""
    recordings = []
    for video in videos:
        try:
            recordings.append(reader(video))
        except (Unfit, MediaError) as error:
            print(f"{video}: left out: {error}", file=sys.stderr)
    return recordings


if __name__ == "__main__":
    settings.main(FitConfig, __doc__ or "", main)
