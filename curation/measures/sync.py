"""Whether lips and voice belong together in time, as SyncNet's authors measure it, and the cepstra it listens to.

Chung and Zisserman, "Out of time: automated lip sync in the wild", ACCV-W 2016; the constants are those of the
published evaluation (joonson/syncnet_python). Both streams have one feature a picture, at 25 pictures a second.

Shapes: T pictures or sound frames, D numbers of a feature, J shifts, N samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RATE = 16000
CEPSTRA = 13
REACH = 15
"""Pictures by which the sound is shifted, at most, either way."""

_EPSILON = 1e-6  # torch's pairwise_distance adds it to every difference
_LENGTH, _STEP, _FFT = 400, 160, 512  # samples: 25 ms every 10 ms
_FILTERS, _LIFTER, _EMPHASIS = 26, 22, 0.97


@dataclass(frozen=True)
class SyncScore:
    """What SyncNet says of a clip.

    distance: Sync-D, between lips and voice at the best shift; less is better. confidence: Sync-C, by how much that
    is less than the median over all shifts; more is better. offset: pictures by which the sound is early; sound
    that is k pictures late gives -k.
    """

    distance: float
    confidence: float
    offset: int


def distances(lips_TD: np.ndarray, voice_TD: np.ndarray) -> np.ndarray:
    """Mean Euclidean distance between lips and the voice of a moment j - REACH pictures later, for every j.

    lips, voice: float32, as many of either. Beyond the voice's ends its features are zeros, and count.
    Returns float64 [2 · REACH + 1].
    """
    padded_TD = np.pad(voice_TD, ((REACH, REACH), (0, 0)))
    shifted = (padded_TD[shift : shift + len(lips_TD)] for shift in range(2 * REACH + 1))
    return np.array([np.linalg.norm(lips_TD - voice + _EPSILON, axis=1).mean(dtype=np.float64) for voice in shifted])


def score(distances_J: np.ndarray) -> SyncScore:
    """Sync-D, Sync-C and the offset out of the distances at every shift from -REACH to REACH."""
    best = int(distances_J.argmin())
    return SyncScore(
        distance=float(distances_J[best]),
        confidence=float(np.median(distances_J) - distances_J[best]),
        offset=REACH - best,
    )


def mfcc(waveform_N: np.ndarray) -> np.ndarray:
    """Mel cepstra every 10 ms of 25 ms, as python_speech_features computes them of 16-bit sound by default.

    Log energy takes the place of the first; the rest are liftered. The last frame is filled up with zeros.
    waveform: float [N] at 16 kHz, full scale ±1. Returns float64 [T, 13].
    """
    samples_N = np.clip(np.rint(waveform_N * 32768.0), -32768, 32767).astype(np.float64)
    samples_N[1:] -= _EMPHASIS * samples_N[:-1].copy()
    count = 1 + max(0, -(-(len(samples_N) - _LENGTH) // _STEP))
    padded_N = np.pad(samples_N, (0, max(0, (count - 1) * _STEP + _LENGTH - len(samples_N))))
    frames_TN = np.lib.stride_tricks.sliding_window_view(padded_N, _LENGTH)[::_STEP][:count]
    power_TF = np.abs(np.fft.rfft(frames_TN, _FFT)) ** 2 / _FFT
    cepstra_TC = np.log(_not_zero(power_TF @ _mel_filters().T)) @ _cosines().T
    cepstra_TC[:, 0] = np.log(_not_zero(power_TF.sum(axis=1)))
    return cepstra_TC


def _not_zero(energy: np.ndarray) -> np.ndarray:
    return np.where(energy == 0, np.finfo(float).eps, energy)


def _mel_filters() -> np.ndarray:
    """Triangles between points evenly spread over the mel scale, each point moved down to a bin: [26, 257]."""
    highest = 2595 * np.log10(1 + RATE / 2 / 700)
    hertz = 700 * (10 ** (np.linspace(0, highest, _FILTERS + 2) / 2595) - 1)
    points = np.floor((_FFT + 1) * hertz / RATE)[:, None]
    left, centre, right = points[:-2], points[1:-1], points[2:]
    bins = np.arange(_FFT // 2 + 1)
    rising, falling = (bins - left) / (centre - left), (right - bins) / (right - centre)
    return np.maximum(0, np.minimum(rising, falling))


def _cosines() -> np.ndarray:
    """The orthonormal cosine transform (type 2) of 26 log energies, its rows liftered: [13, 26]."""
    order, place = np.arange(CEPSTRA)[:, None], np.arange(_FILTERS)
    basis = np.cos(np.pi * order * (2 * place + 1) / (2 * _FILTERS)) * np.sqrt(2 / _FILTERS)
    return basis * (1 + _LIFTER / 2 * np.sin(np.pi * order / _LIFTER))
