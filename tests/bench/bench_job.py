"""The whole job against the chain of tools that a user would run instead, on the same footage.

  python tests/bench/bench_job.py [minutes]

The chain: PySceneDetect's command line finds the shots and splits the film into files (FFmpeg re-encodes them, as it
does by default); then, for each file, one script looks for faces about once a second and one tells the speakers
apart, with the very models that the job uses. Both sides are timed from the start of their processes to the end.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import os
import resource
import subprocess
import tempfile
import time

from tests.bench import films

ROOT = Path(__file__).resolve().parents[2]
_PER_CLIP = Path(__file__).parent / "per_clip"


def chain(film: Path, folder: Path) -> None:
    """What a user would run."""
    import imageio_ffmpeg

    tools = folder / "tools"
    tools.mkdir()
    (tools / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
    environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "2"}
    scenedetect = Path(sys.executable).with_name("scenedetect")
    split = [str(scenedetect), "-q", "-i", str(film), "detect-adaptive", "split-video", "-o", str(folder / "shots")]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(split, check=True, env=environment, cwd=folder, **quiet)
    for shot in sorted((folder / "shots").glob("*.mp4")):
        for script in ("faces.py", "speakers.py"):
            run = [sys.executable, str(_PER_CLIP / script), str(shot)]
            subprocess.run(run, check=True, env=environment, cwd=ROOT, **quiet)


def job(film: Path, folder: Path) -> None:
    """What we offer."""
    run = [sys.executable, "curation/run.py", f"input={film}", f"output={folder}/data", "listen.quality=false"]
    subprocess.run(run, check=True, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def timed(work, film: Path) -> tuple[float, float]:
    """Wall and CPU seconds, children included."""
    with tempfile.TemporaryDirectory() as folder:
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        work(film, Path(folder))
        spent, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(minutes: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        film = films.interview(Path(folder) / "film.mp4", minutes)
        ours, theirs = timed(job, film), timed(chain, film)
    print(f"{minutes:g} minutes of edited interview, {films.SIZE[0]}x{films.SIZE[1]}, 25 fps, h264")
    print(f"  the job:   {ours[0]:7.1f} s, {ours[1]:7.1f} core-seconds (Ray's own processes are not all counted)")
    print(f"  the chain: {theirs[0]:7.1f} s, {theirs[1]:7.1f} core-seconds")
    print(f"  chain / job: {theirs[0] / ours[0]:.1f} x in time")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 10.0)
