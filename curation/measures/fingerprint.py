"""What a clip looks and sounds like in a few bits, the same after another encoding: to find copies.

T: pictures. H, W: height, width. N: samples. K: windows of sound. manifests/duplicates.py compares the hashes.
"""

from __future__ import annotations

import cv2
import numpy as np
from scipy.fft import dctn

from manifests.duplicates import SOUND_BITS, SOUND_SECONDS

UNKNOWN = -1
"""Hash of a picture that is flat, of sound that is silent: nothing to tell it by."""
SIDE = 32
WINDOW_SECONDS = 0.512
LAG = 5
"""Windows between the two whose difference is hashed: 0.25 s."""
BAND = (300.0, 2000.0)
_FLAT = 2.0  # standard deviation, grey levels
_SILENT = 1e-3  # root mean square: -60 dBFS
_FLOOR = 1e-3  # of a window's mean energy: what lies below is noise of the codec


def thumbnail(luma_HW: np.ndarray) -> np.ndarray:
    """The picture at 32 x 32, uint8: what `picture_hash` takes."""
    return cv2.resize(luma_HW, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def picture_hash(thumbnails_THW: np.ndarray) -> np.ndarray:
    """63 bits a picture, int64 [T]; -1 for a flat one.

    thumbnails_THW: luma, 0-255, of one picture a second [T, 32, 32]. The bits say which of the 63 lowest frequencies
    (DCT, 8 x 8 without the mean) are above their median (pHash: Zauner, "Implementation and benchmarking of perceptual
    image hash functions", 2010).
    """
    thumbnails_THW = np.asarray(thumbnails_THW, np.float32).reshape(-1, SIDE, SIDE)
    waves_TF = dctn(thumbnails_THW, axes=(1, 2), norm="ortho")[:, :8, :8].reshape(-1, 64)[:, 1:]
    hashes_T = _packed(waves_TF > np.median(waves_TF, axis=1, keepdims=True))
    return np.where(thumbnails_THW.std(axis=(1, 2)) < _FLAT, UNKNOWN, hashes_T)


def sound_hash(waveform_N: np.ndarray, rate: int = 16_000) -> np.ndarray:
    """32 bits every 0.05 s, int64 [K]; -1 where it is silent. K is 0 for sound shorter than 0.76 s.

    The bits are signs: whether the step from one band's level to the next one's rose within 0.25 s, for 33 bands of
    300-2000 Hz and windows of 0.51 s (after Haitsma and Kalker, "A highly robust audio fingerprinting system", ISMIR
    2002, with levels in decibels, longer windows and fewer of them). They do not depend on the volume.
    """
    size, hop = round(WINDOW_SECONDS * rate), round(SOUND_SECONDS * rate)
    if len(waveform_N) < size + LAG * hop:
        return np.zeros(0, np.int64)
    windows_KN = np.lib.stride_tricks.sliding_window_view(np.asarray(waveform_N, np.float32), size)[::hop]
    power_KF = np.abs(np.fft.rfft(windows_KN * np.hanning(size).astype(np.float32), axis=1)) ** 2
    edges = np.geomspace(*BAND, SOUND_BITS + 2) * size / rate
    sums_KF = np.concatenate([np.zeros((len(power_KF), 1)), np.cumsum(power_KF, axis=1)], axis=1)
    bands_KB = np.diff(sums_KF[:, np.round(edges).astype(int)], axis=1)
    levels_KB = np.log(bands_KB + _FLOOR * bands_KB.mean(axis=1, keepdims=True) + 1e-12)
    steps_KB = np.diff(levels_KB, axis=1)
    hashes_K = _packed(steps_KB[LAG:] > steps_KB[:-LAG])
    silent_K = np.sqrt(np.mean(windows_KN**2, axis=1)) < _SILENT
    return np.where(silent_K[LAG:] | silent_K[:-LAG], UNKNOWN, hashes_K)


def _packed(bits_KB: np.ndarray) -> np.ndarray:
    """Rows of at most 63 bits as numbers, the first bit lowest."""
    return bits_KB.astype(np.int64) @ (np.int64(1) << np.arange(bits_KB.shape[1], dtype=np.int64))
