#!/usr/bin/env python
"""A talking portrait of any length: a picture, a sound and a prompt in, a video with sound out.

  python model/animate.py image=face.jpg audio=speech.wav prompt="a woman speaks" output=out.mp4 checkpoint=runs/final
  python model/animate.py image=face.jpg audio=speech.wav output=out.mp4 dry_run=true

The video is made clip by clip, each going on from the last frames of the one before, and is as long as the sound:
25 frames a second, the last one begun counts. Its settings are written beside it, as out.json.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # the repo root, not this folder, is where our packages are
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import time

from tqdm import tqdm

from model import animation, settings
from model.animation_job import AnimateConfig, AnimateError
from model.checkpoint import CheckpointError
from model.codecs import CodecError
from model.encoders.speech import FormatError
from model.inputs import InputError
from model.media import MediaError
from model.pretrained import PretrainedError
from model.settings import SettingsError
from model.weights import WeightsError

_LINE_SECONDS = 10.0
_REFUSALS = (
    AnimateError,
    CheckpointError,
    CodecError,
    FormatError,
    InputError,
    MediaError,
    PretrainedError,
    SettingsError,
    WeightsError,
)


def main(config: AnimateConfig) -> int:
    """Make the video; the exit status: 0 made, 1 it could not be, 2 the settings are wrong."""
    try:
        with Progress() as progress:
            made = animation.animate(config, say, progress)
    except _REFUSALS as error:
        print(f"animate.py: {error}", file=sys.stderr)
        return 2 if isinstance(error, SettingsError) else 1
    except KeyboardInterrupt:
        print("animate.py: stopped; nothing is left behind", file=sys.stderr)
        return 1
    if not config.dry_run:
        say(f"{made}: written; its settings are in {made.with_suffix('.json')}")
    return 0


def say(line: str) -> None:
    print(line, flush=True)


class Progress:
    """Steps done of all clips: a bar on a terminal, a line every ten seconds elsewhere, with the time to go."""

    def __init__(self) -> None:
        self.bar: tqdm | None = None
        self.started = self.shown = 0.0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def __call__(self, done: int, steps: int) -> None:
        now = time.monotonic()
        if sys.stderr.isatty():
            self.bar = self.bar if self.bar is not None else tqdm(total=steps, unit="step")
            self.bar.update(done - self.bar.n)
        elif not self.started:
            self.started = self.shown = now  # the first step, with all that is set up in it, tells nothing
        elif now - self.shown >= _LINE_SECONDS or done == steps:
            self.shown = now
            left = (now - self.started) / (done - 1) * (steps - done)
            print(f"{done}/{steps} steps, {now - self.started:.0f} s, about {left:.0f} s to go", file=sys.stderr)


if __name__ == "__main__":
    settings.main(AnimateConfig, __doc__ or "", main)
