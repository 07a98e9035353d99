"""What a film's SyncNet score costs us, and the package syncnet-python, on the same faces and weights.

    python tests/bench/bench_syncnet.py [--films FILM ...] [--rounds 3]

CPU seconds on one thread, from the film's file to Sync-D, Sync-C and offset; ours in this process, theirs in an
environment of its own with the ffmpeg it runs. Theirs is `SyncNetPipeline.inference`: it re-encodes the film,
unpacks it into JPEG files, looks for cuts, writes the face track as a film and unpacks that again. Ours decodes once.
SyncNet's weights are random and seeded, and both are told where the faces are; so are S3FD's weights, which cannot
be had: what finding the faces costs (S3FD on every 25th frame, ours on all) stands in columns of its own.
The numbers are compared on the same crops, which JPEG has not touched. Exits 1 where they differ.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import cv2
import imageio_ffmpeg
import numpy as np
import torch

from curation.backends.syncnet import FPS, SyncNet, crops
from curation.measures.sync import RATE, SyncScore, mfcc
from model import media, weights
from model.encoders.detect import CenterFace
from tests.curation import syncnet_package

SECONDS = 6  # of each film


def films() -> list[Path]:
    """Films of one talking person: 640x480 out of a registry package, and 720p and more where the footage is."""
    shared = Path(__file__).resolve().parents[3] / "shared" / "footage"
    names = ("multi_speaker/visualvoice_noisy_restaurant.mp4", "talking_head/sv_multiturn15.mp4")
    return [weights.path("psychopy-jwpIntro"), *(shared / name for name in names if (shared / name).exists())]


def beginning(film: Path, work: Path) -> Path:
    """The film's first seconds at 25 pictures a second, so that both see the same pictures at the same time."""
    span = media.Span(Fraction(0), Fraction(SECONDS))
    cut = work / f"{film.stem}.mp4"
    pictures = (image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2] for image in media.frames(film, span))
    media.encode(cut, pictures, Fraction(FPS), media.audio(film, span, RATE), RATE)
    return cut


def faces(film: Path) -> tuple[np.ndarray, float]:
    """The largest face of every frame, pixels [T, 4], and the CPU seconds it took to find them."""
    find = CenterFace(weights.path("centerface"), (320,))
    boxes, seconds = [], 0.0
    for image in media.frames(film, media.Span(Fraction(0), Fraction(SECONDS))):
        began = time.process_time()
        found = find(image)
        seconds += time.process_time() - began
        face = max(found, key=lambda face: face.bottom - face.top, default=None)
        height, width = image.shape[:2]
        edges = [np.nan] * 4 if face is None else [face.left, face.top, face.right, face.bottom]
        boxes.append(np.array(edges) * [width, height, width, height])
    boxes_T4 = np.array(boxes)
    for edge in boxes_T4.T:  # a lost face lies between its neighbours, as theirs would
        seen = np.isfinite(edge)
        edge[:] = np.interp(np.arange(len(edge)), np.flatnonzero(seen), edge[seen])
    return boxes_T4, seconds


def ours(film: Path, boxes_T4: np.ndarray, syncnet: SyncNet) -> tuple[SyncScore | None, float]:
    began = time.process_time()
    span = media.Span(Fraction(0), Fraction(SECONDS))
    said = syncnet(crops(media.frames(film, span), boxes_T4), media.audio(film, span, RATE))
    return said, time.process_time() - began


def same(python: Path, job: Path, model: Path, cut: np.ndarray, sound: np.ndarray) -> tuple[float, float, bool]:
    """By how much distance and confidence differ on the same crops and 16-bit sound, and whether the offset agrees."""
    samples = np.clip(np.rint(sound * 32768), -32768, 32767).astype(np.int16)
    theirs = syncnet_package.evaluate(python, job, model, cut, samples)
    said = SyncNet(model)(cut, sound)
    assert said is not None
    gaps = abs(said.distance - float(theirs.distance)), abs(said.confidence - float(theirs.confidence))
    return *gaps, said.offset == int(theirs.offset)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    python = syncnet_package.environment(weights.cache_folder())
    agree = True
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for number, film in enumerate(options.films or films()):
            film = beginning(film, work)
            boxes_T4, our_faces = faces(film)
            span = media.Span(Fraction(0), Fraction(SECONDS))
            cut, sound = np.stack(list(crops(media.frames(film, span), boxes_T4))), media.audio(film, span, RATE)
            model = work / f"{number}.model"
            torch.save(syncnet_package.lively(cut[:20], mfcc(sound)).state_dict(), model)
            syncnet = SyncNet(model)
            mine, yours, inside = [], [], []
            for turn in range(options.rounds):
                mine.append(ours(film, boxes_T4, syncnet)[1])
                job = work / f"{number}-{turn}"
                said = syncnet_package.infer(python, job, model, film, boxes_T4, Path(imageio_ffmpeg.get_ffmpeg_exe()))
                yours.append(float(said.seconds))
                inside.append(float(said.evaluate_seconds))
            we, they = statistics.median(mine), statistics.median(yours)
            s3fd, count = float(said.face_seconds), len(boxes_T4)
            distance, confidence, offset = same(python, work / f"{number}-same", model, cut, sound)
            agree &= distance <= 1e-4 and confidence <= 1e-3 and offset
            height, width = next(media.frames(film, span)).shape[:2]
            print(
                f"{film.stem} {width}x{height}, {count} pictures, CPU ms a picture:\n"
                f"  without finding faces: ours {1e3 * we / count:.1f}, theirs {1e3 * they / count:.1f} "
                f"(of it {1e3 * statistics.median(inside) / count:.1f} in evaluate): {they / we:.1f} times\n"
                f"  finding faces: CenterFace {1e3 * our_faces / count:.1f}, S3FD {1e3 * s3fd / count:.1f}; "
                f"all together {(they + s3fd) / (we + our_faces):.1f} times\n"
                f"  on the same crops: distance differs by {distance:.1e}, confidence by {confidence:.1e}, "
                f"offset {'agrees' if offset else 'DIFFERS'}",
                flush=True,
            )
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
