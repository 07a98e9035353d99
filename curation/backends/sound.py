"""How clean speech sounds: DNSMOS P.835 (Reddy et al., ICASSP 2022), opinion scores of 1 to 5 without a listener."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime

RATE = 16000
SECONDS = 9.01
"""Length of a window."""
WINDOW = int(SECONDS * RATE)
# The published fit of the raw outputs to people's ratings, highest power first: signal, background, overall.
FIT = (
    np.poly1d([-0.08397278, 1.22083953, 0.0052439]),
    np.poly1d([-0.13166888, 1.60915514, -0.39604546]),
    np.poly1d([-0.06766283, 1.11546468, 0.04602535]),
)


class Quality(NamedTuple):
    """Predicted mean opinion scores: of the speech itself, of the background (5: none), of both together."""

    signal: float
    background: float
    overall: float


class Dnsmos:
    """Rates speech as dnsmos_local.py of microsoft/DNS-Challenge does, the model not personalised."""

    def __init__(self, model: Path, threads: int = 1, every: int = 1) -> None:
        """model: `sig_bak_ovr.onnx`. every: one in so many of the windows is rated; published scores rate each."""
        self.every = every
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    def __call__(self, waveform: np.ndarray) -> Quality:
        """Mean over windows of 9.01 s, 1 s apart; shorter sound is doubled until it fills one.

        waveform: float32 [n] at 16 kHz, n > 0. Samples beyond ±1, which lossy codecs make, are cut off.
        """
        if not len(waveform):
            raise ValueError("cannot rate sound of no samples: leave empty turns out")
        samples = np.clip(waveform, -1, 1).astype(np.float32)
        while len(samples) < WINDOW:
            samples = np.tile(samples, 2)
        scores = [self.window(samples[hop * RATE :][:WINDOW]) for hop in hops(len(samples))[:: self.every]]
        return Quality(*np.mean(scores, axis=0).tolist())

    def window(self, samples: np.ndarray) -> list[float]:
        raw = self.session.run(None, {"input_1": samples[None]})[0][0]
        return [float(fit(value)) for fit, value in zip(FIT, raw, strict=True)]


def hops(samples: int) -> list[int]:
    """Which windows the reference rates, by the second each starts at.

    It counts whole seconds of sound, so up to 1 s at the end goes unheard; and it leaves out the windows, 7 to 23
    among them, whose end in floating point falls one sample short. Published scores have both; so have ours.
    """
    count = int(samples // RATE - SECONDS) + 1
    return [hop for hop in range(count) if int((hop + SECONDS) * RATE) - hop * RATE == WINDOW]
