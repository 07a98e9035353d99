"""The PyPI package syncnet-python, in an environment of its own, and weights for it and for us.

It needs scenedetect < 0.7, whose folder ours shares, so it lives in a venv in the cache folder, which is made once
and sees what is installed beside us (torch, OpenCV, SciPy) behind its own packages. It requires torchvision, which
it never imports. This file is also the program that runs in there:

    python tests/curation/syncnet_package.py JOB    # a folder; see `evaluate` and tests/bench/bench_syncnet.py
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import torch
from scipy.io import wavfile
from torch import nn

PACKAGES = (
    "syncnet-python==0.2.3",
    "scenedetect==0.6.7.1",
    "python-speech-features==0.6",
    "ffmpeg-python==0.2.0",
    "future==1.0.0",
)
RATE, FPS = 16000, 25


class NotToBeHad(Exception):
    """The package registry cannot be reached, or has not got the package."""


def environment(cache: Path) -> Path:
    """The Python of the package's environment, made first if need be. Raises NotToBeHad."""
    folder = cache / "environments" / f"{PACKAGES[0].replace('==', '-')}-{sys.implementation.cache_tag}"
    if not (folder / "bin/python").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as work:
            made = Path(work) / "made"
            venv.create(made, symlinks=True)
            _show_parent(made)
            command = [sys.executable, "-m", "pip", "--python", str(made / "bin/python"), "install", "--quiet"]
            done = subprocess.run([*command, "--no-deps", *PACKAGES], capture_output=True, text=True, check=False)
            if done.returncode:
                raise NotToBeHad(f"{PACKAGES[0]} cannot be installed: {done.stderr.strip().splitlines()[-1]}")
            if not folder.exists():  # another process was faster
                made.rename(folder)
    _show_parent(folder)
    return folder / "bin/python"


def _show_parent(folder: Path) -> None:
    """Let an environment find our packages, after its own."""
    version = "python{}.{}".format(*sys.version_info)
    (folder / "lib" / version / "site-packages" / "parent.pth").write_text(sysconfig.get_path("purelib") + "\n")


def run(python: Path, job: Path) -> None:
    """Run this file in there, on one core."""
    environ = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    environ["PATH"] = f"{job / 'bin'}{os.pathsep}{environ.get('PATH', '')}"
    done = subprocess.run([python, __file__, job], capture_output=True, text=True, env=environ, check=False)
    if done.returncode:
        raise RuntimeError(f"syncnet-python failed on {job}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def evaluate(python: Path, job: Path, weights: Path, crops_THWC: np.ndarray, samples_N: np.ndarray) -> SimpleNamespace:
    """What `SyncNetInstance.evaluate` says of a clip: offset, confidence, distance, distances [31] and mfcc [n, 13].

    It reads files called *.jpg; these are PNG inside, so that it sees the very pictures. samples: int16, 16 kHz.
    """
    job.mkdir(parents=True)
    for number, crop_HWC in enumerate(crops_THWC):
        (job / f"{number:06d}.jpg").write_bytes(cv2.imencode(".png", crop_HWC[..., ::-1])[1].tobytes())
    wavfile.write(job / "audio.wav", RATE, samples_N)
    (job / "job.json").write_text(json.dumps({"weights": str(weights)}))
    run(python, job)
    return SimpleNamespace(**np.load(job / "said.npz"))


def infer(python: Path, job: Path, weights: Path, film: Path, boxes_T4: np.ndarray, ffmpeg: Path) -> SimpleNamespace:
    """What `SyncNetPipeline.inference` says of a film whose faces are told, and the CPU seconds it took.

    Per face track: offset, confidence, distance. seconds: of all but finding faces. evaluate_seconds: of those, in
    the network and what feeds it. face_seconds: S3FD on all frames, from every 25th. boxes: left, top, right, bottom.
    """
    (job / "bin").mkdir(parents=True)
    (job / "bin/ffmpeg").symlink_to(ffmpeg)
    asked = {"weights": str(weights), "film": str(film), "boxes_T4": boxes_T4.tolist()}
    (job / "job.json").write_text(json.dumps(asked))
    run(python, job)
    return SimpleNamespace(**np.load(job / "said.npz"))


# --- weights ----------------------------------------------------------------------------------------------


class Published(nn.Module):
    """SyncNet as the paper and the published parameters have it: 3-D convolutions, batch norms, blue first."""

    def __init__(self) -> None:
        super().__init__()
        self.netcnnaud = nn.Sequential(
            *(nn.Conv2d(1, 64, 3, 1, 1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(1, 1)),
            *(nn.Conv2d(64, 192, 3, 1, 1), nn.BatchNorm2d(192), nn.ReLU(), nn.MaxPool2d(3, (1, 2))),
            *(nn.Conv2d(192, 384, 3, 1, 1), nn.BatchNorm2d(384), nn.ReLU()),
            *(nn.Conv2d(384, 256, 3, 1, 1), nn.BatchNorm2d(256), nn.ReLU()),
            *(nn.Conv2d(256, 256, 3, 1, 1), nn.BatchNorm2d(256), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(256, 512, (5, 4)), nn.BatchNorm2d(512), nn.ReLU()),
        )
        flat, small = (0, 1, 1), (1, 3, 3)
        self.netcnnlip = nn.Sequential(
            *(nn.Conv3d(3, 96, (5, 7, 7), (1, 2, 2)), nn.BatchNorm3d(96), nn.ReLU(), nn.MaxPool3d(small, (1, 2, 2))),
            *(nn.Conv3d(96, 256, (1, 5, 5), (1, 2, 2), flat), nn.BatchNorm3d(256), nn.ReLU()),
            nn.MaxPool3d(small, (1, 2, 2), flat),
            *(nn.Conv3d(256, 256, small, 1, flat), nn.BatchNorm3d(256), nn.ReLU()),
            *(nn.Conv3d(256, 256, small, 1, flat), nn.BatchNorm3d(256), nn.ReLU()),
            *(nn.Conv3d(256, 256, small, 1, flat), nn.BatchNorm3d(256), nn.ReLU(), nn.MaxPool3d(small, (1, 2, 2))),
            *(nn.Conv3d(256, 512, (1, 6, 6)), nn.BatchNorm3d(512), nn.ReLU()),
        )
        self.netfcaud = nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 1024))
        self.netfclip = nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 1024))

    def lips(self, crops_THWC: np.ndarray) -> torch.Tensor:
        """RGB crops, each five neighbours but the last -> [T - 5, 1024]."""
        bgr_CTHW = torch.from_numpy(crops_THWC[..., ::-1].astype(np.float32)).permute(3, 0, 1, 2)
        windows = torch.stack([bgr_CTHW[:, start : start + 5] for start in range(len(crops_THWC) - 5)])
        return self.netfclip(self.netcnnlip(windows).flatten(1))

    def voice(self, cepstra_NC: np.ndarray, count: int) -> torch.Tensor:
        """13 cepstra each 10 ms -> [count, 1024]."""
        rows = torch.from_numpy(cepstra_NC.astype(np.float32)).T[None]
        windows = torch.stack([rows[..., 4 * start : 4 * start + 20] for start in range(count)])
        return self.netfcaud(self.netcnnaud(windows).flatten(1))


def lively(crops_THWC: np.ndarray, cepstra_NC: np.ndarray) -> Published:
    """Seeded random weights that tell windows apart.

    The batch norms hold the statistics of this very clip, as a trained network's would hold those of its data:
    untouched random weights give all windows nearly the same features.
    """
    torch.manual_seed(0)
    network = Published()
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
        elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            layer.momentum = 1.0
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.5, 0.5)
    for stream in (network.netfcaud, network.netfclip):
        stream[3].weight.data /= 4  # distances of about 10, as of a trained one
    with torch.no_grad():
        network.lips(crops_THWC)
        network.voice(cepstra_NC, len(crops_THWC) - 5)
    return network.eval()


# --- in the package's environment -------------------------------------------------------------------------


def _evaluate(job: Path, weights: Path) -> None:
    import python_speech_features
    from syncnet_python import SyncNetInstance, SyncNetModel

    instance = SyncNetInstance(net=SyncNetModel(), device="cpu")
    instance.loadParameters(weights)
    module = sys.modules[SyncNetInstance.__module__]
    original, rows = module.calc_pdist, []

    def recorded(*given: object, **named: object) -> list[torch.Tensor]:
        rows.extend(original(*given, **named))
        return rows

    module.calc_pdist = recorded
    offset, confidence, distance = instance.evaluate(SimpleNamespace(tmp_dir=str(job), batch_size=20, vshift=15))
    np.savez(
        job / "said.npz",
        offset=offset,
        confidence=confidence,
        distance=distance,
        distances=torch.stack(rows, 1).mean(1).numpy(),
        mfcc=python_speech_features.mfcc(wavfile.read(job / "audio.wav")[1], RATE),
    )


class _Found:
    """In the place of S3FD, whose weights cannot be had: it works on some frames, and gives boxes known beforehand."""

    def __init__(self, s3fd: object, boxes_T4: np.ndarray, every: int) -> None:
        self._s3fd, self._boxes, self._every = s3fd, boxes_T4, every
        self.frames = self.looked = 0
        self.seconds = 0.0

    def detect_faces(self, image: np.ndarray, conf_th: float, scales: list[float]) -> np.ndarray:
        if self.frames % self._every == 0:
            began = time.process_time()
            self._s3fd.detect_faces(image, conf_th=conf_th, scales=scales)
            self.seconds += time.process_time() - began
            self.looked += 1
        box = self._boxes[min(self.frames, len(self._boxes) - 1)]
        self.frames += 1
        return np.append(box, 1.0)[None]


def _pipeline(job: Path, weights: Path, film: str, boxes_T4: list[list[float]]) -> None:
    """`SyncNetPipeline.inference` of a whole film, and the CPU time it takes, its ffmpeg included."""
    from syncnet_python.detectors.s3fd.nets import S3FDNet
    from syncnet_python.syncnet_pipeline import SyncNetPipeline

    torch.manual_seed(0)
    torch.save(S3FDNet(device="cpu").state_dict(), job / "sfd_face.pth")
    pipeline = SyncNetPipeline(
        device="cpu", s3fd_weights=str(job / "sfd_face.pth"), syncnet_weights=str(weights), ffmpeg_bin="ffmpeg"
    )
    found = _Found(pipeline.s3fd, np.array(boxes_T4), every=25)
    pipeline.s3fd = found
    evaluate, spent = pipeline.syncnet.evaluate, []

    def timed(*given: object, **named: object) -> tuple:
        began = time.process_time()
        result = evaluate(*given, **named)
        spent.append(time.process_time() - began)
        return result

    pipeline.syncnet.evaluate = timed
    began = _cpu()
    offsets, confidences, distances, *_ = pipeline.inference(film)
    np.savez(
        job / "said.npz",
        offset=offsets,
        confidence=confidences,
        distance=distances,
        frames=found.frames,
        face_seconds=found.seconds / found.looked * found.frames,
        evaluate_seconds=sum(spent),
        seconds=_cpu() - began - found.seconds,
    )


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


if __name__ == "__main__":
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    folder = Path(sys.argv[1])
    asked = json.loads((folder / "job.json").read_text())
    (_pipeline if "film" in asked else _evaluate)(folder, **asked)
