"""Where there is music, under speech or alone: FireRedVAD's audio event detector (Xu et al., 2026).

The network hears speech, singing and music, each on its own, every 10 ms. Features are Kaldi's 80 log mel energies,
brought to the mean and variance of what the network was trained on.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from curation.backends.voices import log_mel

NETWORK, STATISTICS = "fireredvad_aed.onnx", "*cmvn.ark"
HEARD = 0.5
"""Probability from which on a frame has music."""
_MUSIC = 2  # speech, singing, music
_HEADER = 15  # "\\0BDM ", then the size of an integer and the integer: rows, columns


class MusicDetector:
    """Finds music, also where somebody talks over it."""

    def __init__(self, folder: Path, threads: int = 1) -> None:
        """folder: holds the network, as published in ONNX, and its statistics (a Kaldi matrix).

        Raises ValueError when they are not there or are other files.
        """
        statistics = sorted(folder.glob(STATISTICS))
        if not (folder / NETWORK).is_file() or not statistics:
            raise ValueError(f"{folder}: holds no {NETWORK}, or no {STATISTICS}, as FireRedVAD publishes them")
        self._mean_F, self._deviation_F = normalisation(statistics[0])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._network = onnxruntime.InferenceSession(str(folder / NETWORK), options, providers=["CPUExecutionProvider"])

    def __call__(self, waveform_N: np.ndarray) -> float:
        """Share of the time that has music, 0..1. waveform_N: float32 at 16 kHz, at least 0.1 s."""
        features_TF = ((log_mel(waveform_N) - self._mean_F) / self._deviation_F).astype(np.float32)
        (likely_1TE,) = self._network.run(None, {"feat": features_TF[None]})
        return float((likely_1TE[0, :, _MUSIC] >= HEARD).mean())


def normalisation(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each feature, float64 [80], from Kaldi's sums (two rows; the last column counts).

    Raises ValueError when the file is none of these.
    """
    content = file.read_bytes()
    start = content.find(b"\0BDM ")
    size = np.frombuffer(content[start + 6 : start + _HEADER].ljust(9, b"\0"), "<i4,i1,<i4")[0]
    numbers = content[start + _HEADER :]
    if start < 0 or size[0] != 2 or len(numbers) != 2 * 8 * size[2]:
        raise ValueError(f"{file}: not the sums and squares of features in a binary matrix of Kaldi")
    sums_2F = np.frombuffer(numbers, "<f8").reshape(2, -1)
    mean_F, squares_F = sums_2F[:, :-1] / sums_2F[0, -1]
    return mean_F, np.sqrt(np.maximum(squares_F - mean_F**2, 1e-20))
