"""How loud a piece of sound is, and how much of it is cut off at full scale."""

from __future__ import annotations

import numpy as np

SILENCE = -100.0
"""dBFS reported for anything quieter: the rounding noise of 16-bit sound is at -101."""
FULL = 0.999
"""Magnitude taken for full scale: the largest 16-bit sample is 0.99997, and codecs leave clipped tops rough."""


def level(waveform: np.ndarray) -> float:
    """Root mean square level in dB of full scale; a full-scale square wave is 0, a full-scale sine -3.01.

    waveform: float [n], full scale ±1. Returns at least SILENCE, also for no samples.
    """
    power = float(np.mean(np.square(waveform, dtype=np.float64))) if len(waveform) else 0.0
    return max(SILENCE, 10 * float(np.log10(power))) if power else SILENCE


def clipped_share(waveform: np.ndarray) -> float:
    """Share of samples at or beyond full scale, 0..1; 0 for no samples.

    waveform: float [n], full scale ±1.
    """
    return float(np.mean(np.abs(waveform) >= FULL)) if len(waveform) else 0.0
