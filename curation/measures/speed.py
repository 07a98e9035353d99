"""What is meant by a speed: the slope of a path over five frames, never the step from one frame to the next.

What is measured in a single frame jitters by some tenths of a pixel, and 25 such steps a second add up to a motion
that nobody sees. Motion at constant speed has exactly its speed either way; a swing of 1 Hz keeps 96 % of it, one
of 2 Hz 86 %, and independent jitter counts for a fifth of what it would from frame to frame.

Letters: T frames, K the frames of a window, D dimensions.
"""

from __future__ import annotations

import numpy as np

OFFSETS = np.arange(-2, 3)
"""Frames of the window that a speed is measured in, counted from the frame itself."""
LEAST = 3
"""Frames of a window that have to be known."""


def windows(values_T: np.ndarray) -> np.ndarray:
    """Each frame's neighbours: float [T, ...] -> [T, K, ...], NaN beyond both ends."""
    reach = int(OFFSETS[-1])
    padding = [(reach, reach)] + [(0, 0)] * (values_T.ndim - 1)
    padded = np.pad(values_T.astype(np.float64), padding, constant_values=np.nan)
    return padded[np.arange(len(values_T))[:, None] + OFFSETS + reach]


def slopes(values_TKD: np.ndarray) -> np.ndarray:
    """Change per frame of the straight line that fits each window best (least squares); [T, D].

    values_TKD: a frame with NaN in any dimension is not known. NaN where fewer than LEAST frames of the window are.
    """
    known_TK = np.isfinite(values_TKD).all(axis=2)
    count_T = known_TK.sum(axis=1)
    offsets_TK = np.where(known_TK, OFFSETS, 0.0)
    offsets_TK -= known_TK * (offsets_TK.sum(axis=1) / np.maximum(count_T, 1))[:, None]
    rise_TD = np.einsum("tk,tkd->td", offsets_TK, np.where(known_TK[..., None], values_TKD, 0.0))
    run_T = np.where(count_T >= LEAST, (offsets_TK**2).sum(axis=1), np.nan)
    return rise_TD / run_T[:, None]


def mean(values_T: np.ndarray) -> float:
    """Mean of the values that are known; NaN when none is."""
    known = values_T[np.isfinite(values_T)]
    return float(known.mean()) if len(known) else float("nan")
