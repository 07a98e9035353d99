"""The whole job against the chain of tools that a user would run instead, on the same films.

  python tests/bench/bench_job.py [--minutes 10, in films of two] [--folder where/the/films/are/kept]

The chain, film by film: PySceneDetect's command line finds the shots and splits the film into files (FFmpeg re-encodes
them, as it does by default); then, for each file, one script looks for faces about once a second and one tells the
speakers apart, with the very models that the job uses. Both sides are timed from the start of their processes to the
end, and the machine's busy time is counted, Ray's own processes included: nothing else should run on it.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import argparse
import os
import subprocess
import tempfile
import time
from collections.abc import Callable

import psutil

from tests.bench.films import SIZE, interview

ROOT = Path(__file__).resolve().parents[2]
_PER_CLIP = Path(__file__).parent / "per_clip"
FILM_MINUTES = 2.0


def chain(films: list[Path], folder: Path) -> None:
    """What a user would run."""
    import imageio_ffmpeg

    tools = folder / "tools"
    tools.mkdir()
    (tools / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
    environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "2"}
    scenedetect = str(Path(sys.executable).with_name("scenedetect"))

    def call(*command: str) -> None:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run(command, check=True, env=environment, cwd=ROOT, **quiet)

    for film in films:
        shots = folder / film.stem
        call(scenedetect, "-q", "-i", str(film), "detect-adaptive", "split-video", "-o", str(shots))
        for shot in sorted(shots.glob("*.mp4")):
            for script in ("faces.py", "speakers.py"):
                call(sys.executable, str(_PER_CLIP / script), str(shot))


def job(films: list[Path], folder: Path) -> None:
    """What we offer."""
    listed = folder / "films.txt"
    listed.write_text("\n".join(map(str, films)))
    run = [sys.executable, "curation/run.py", f"input={listed}", f"output={folder}/data"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([*run, "until=propose", "listen.quality=false"], check=True, cwd=ROOT, **quiet)


def timed(work: Callable[[list[Path], Path], None], films: list[Path]) -> tuple[float, float]:
    """Wall seconds, and core-seconds that the machine was busy."""
    with tempfile.TemporaryDirectory() as folder:
        before, started = busy(), time.monotonic()
        work(films, Path(folder))
        return time.monotonic() - started, busy() - before


def busy() -> float:
    """Core-seconds that the machine has worked since it started."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "talkreel-bench-job")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    films = [asked.folder / f"{n}.mp4" for n in range(max(1, round(asked.minutes / FILM_MINUTES)))]
    for n, film in enumerate(films):
        if not film.exists():
            interview(film, FILM_MINUTES, first=n * 7)
    ours, theirs = timed(job, films), timed(chain, films)
    print(f"{len(films)} edited interviews of {FILM_MINUTES:g} minutes, {SIZE[0]}x{SIZE[1]}, 25 fps, h264")
    print(f"  the job:   {ours[0]:7.1f} s, {ours[1]:7.1f} core-seconds")
    print(f"  the chain: {theirs[0]:7.1f} s, {theirs[1]:7.1f} core-seconds")
    print(f"  chain / job: {theirs[0] / ours[0]:.1f} x in time, {theirs[1] / ours[1]:.1f} x in core-seconds")


if __name__ == "__main__":
    main()
