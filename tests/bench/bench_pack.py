"""What packing a clip costs, against FFmpeg's command line and a script for each embedding: CPU time a second of clip.

  python tests/bench/bench_pack.py [--seconds 8] [--clips 4]

The chain, as a user would put it together: FFmpeg cuts, crops and scales each window out of the source into a file
(H.264, the same quality and preset); then a script for the face embeddings, one for the face boxes (which we have from
scoring), one for the speech, one for the latents and one for the text each go over all files once, with the very
models that packing uses, every one of them loaded once. Ours is the stage, its models' loading included. One thread.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import resource
import subprocess
import tempfile
import time

import imageio_ffmpeg

from curation.config import PackConfig
from curation.plan import window_starts
from curation.shards import archived
from curation.stages.pack import Pack, Subject
from manifests.schema import Clip, Track
from model import media
from tests.bench.bench_scan import Spent
from tests.bench.films import interview
from tests.curation.clips import clip
from tests.curation.packed import followed

_SCRIPTS = Path(__file__).parent / "per_folder"
FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--clips", type=int, default=4)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        film = interview(folder / "film.mp4", asked.clips * asked.seconds / 60, asked.seconds)
        starts = [n * asked.seconds for n in range(asked.clips)]
        clips = [clip(film, start, start + asked.seconds, f"c{n}") for n, start in enumerate(starts)]
        work = [(whole, followed(film, whole)) for whole in clips]
        length = sum(whole.duration for whole in clips)
        before = time.process_time()
        stage = Pack(PackConfig(output="", selection="", upscale=True))
        loading = time.process_time() - before
        ours = loading + packed(stage, film, work)
        theirs, parts = chain(stage, film, work, folder / "chain")
        spent = Spent()
        for owner, call, part in _watched(stage):
            spent.watch(owner, call, part)
        with spent.on("rest"):
            packed(stage, film, work)
    print(f"{asked.clips} clips, {length:g} s of 1280x720: core-seconds a second of clip")
    for part, seconds in sorted(spent.seconds.items(), key=lambda item: -item[1]):
        print(f"  {part:20}{seconds / length:7.3f}")
    print(f"  {'loading the models':20}{loading / length:7.3f}")
    print(f"packing               {ours / length:7.3f}")
    for part, seconds in parts.items():
        print(f"  {part:20}{seconds / length:7.3f}")
    print(f"the chain             {theirs / length:7.3f}, {theirs / ours:.2f} x")
    return 0


def packed(stage: Pack, film: Path, work: list[tuple[Clip, Track]]) -> float:
    """CPU seconds of packing every clip."""
    before = time.process_time()
    for whole, track in work:
        starts = window_starts(len(track.left), stage.config.frames, stage.config.stride)
        for window, members in stage(film, whole, track, starts):
            archived(window.key, members)
    return time.process_time() - before


def _watched(stage: Pack) -> list[tuple[object, str, str]]:
    assert stage.codec is not None and stage.speech is not None and stage.text is not None
    return [
        (media, "encode", "mp4"),
        (media, "audio", "sound"),
        (type(stage.codec), "encode", "latents"),
        (type(stage.speech), "frames", "speech"),
        (type(stage.text), "encode", "text"),
        (type(stage.recognise), "__call__", "face"),
        (media, "frames", "decode, RGB"),
    ]


def chain(stage: Pack, film: Path, work: list[tuple[Clip, Track]], folder: Path) -> tuple[float, dict[str, float]]:
    """CPU seconds of FFmpeg for each window and of the scripts; in all, and by part."""
    folder.mkdir()
    parts: dict[str, float] = {}
    before = _children()
    for whole, track in work:
        crop = stage.crop(film, whole, Subject.of(track))
        box = (
            f"fps=25,crop={crop.width}:{crop.height}:{crop.left}:{crop.top},scale={crop.made_width}:{crop.made_height}"
        )
        for first in window_starts(len(track.left), stage.config.frames, stage.config.stride):
            start = whole.start + first / 25
            command = [FFMPEG, "-loglevel", "error", "-ss", f"{start:.3f}", "-t", f"{49 / 25:.3f}", "-i", str(film)]
            command += ["-vf", box, "-threads", "1", "-c:v", "libx264", "-crf", "18", "-preset", "medium"]
            command += ["-pix_fmt", "yuv420p", "-ac", "1", "-ar", "16000", str(folder / f"{whole.clip_id}-{first}.mp4")]
            subprocess.run(command, check=True)
    parts["FFmpeg"] = _children() - before
    for script in sorted(_SCRIPTS.glob("*.py")):
        before = _children()
        subprocess.run([sys.executable, str(script), str(folder), FFMPEG], check=True)
        parts[script.name] = _children() - before
    return sum(parts.values()), parts


def _children() -> float:
    """CPU seconds of the processes that were waited for."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


if __name__ == "__main__":
    raise SystemExit(main())
