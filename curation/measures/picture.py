"""How a picture looks: how bright, how sharp in all and in the face, and how much of it is black bars.

Luma is what OpenCV's RGB -> grey makes of full-range RGB: 0.299 R + 0.587 G + 0.114 B, 0-255 (ITU-R BT.601).
Letters: H, W a picture's height and width, pixels.
"""

from __future__ import annotations

import cv2
import numpy as np

SIDE = 640
"""Long side at which a picture's sharpness is measured, pixels."""
FACE_HEIGHT = 192
"""Height of a face box at which the face's sharpness is measured, pixels."""
DARK = 32
"""Luma below which a bar's pixels stay in every frame (FFmpeg's blackdetect draws its line there)."""
FILLED = 0.98
"""Share of a line's pixels that have to be dark: a bar may be frayed by compression."""
EDGE = 4
"""Lines within which a bar gives way to the picture."""
LIT = 0.3
"""Share of pixels that are not dark just inside a bar: darkness that fades in is a dark room, not a bar."""


def luminance(luma_HW: np.ndarray) -> float:
    """Mean luma, 0-255. luma_HW: uint8."""
    return float(cv2.mean(luma_HW)[0])


def sharpness(luma_HW: np.ndarray) -> float:
    """Variance of the Laplacian with the long side at SIDE pixels, grey levels squared.

    luma_HW: uint8. Source: Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000.
    """
    return _variance(_scaled(luma_HW, SIDE / max(luma_HW.shape)))


def face_sharpness(luma_HW: np.ndarray, box: np.ndarray) -> float:
    """`sharpness` of the face box alone, with its height at FACE_HEIGHT pixels, whatever it is in the picture.

    luma_HW: uint8. box: float [4] left, top, right, bottom, pixels; what lies outside the picture is left out.
    NaN for a lost face (NaN in the box), and for one of which nothing is in the picture.
    """
    if not np.isfinite(box).all():
        return float("nan")
    left, top, right, bottom = np.round(box).astype(int)
    face_HW = luma_HW[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    if min(face_HW.shape) < 2:
        return float("nan")
    return _variance(_scaled(face_HW, FACE_HEIGHT / float(box[3] - box[1])))


def _scaled(luma_HW: np.ndarray, factor: float) -> np.ndarray:
    """Area averages when shrinking, a cubic when enlarging: averages would leave steps, which look sharp."""
    size = [max(1, round(length * factor)) for length in luma_HW.shape[::-1]]
    if size == list(luma_HW.shape[::-1]):
        return luma_HW
    return cv2.resize(luma_HW, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)


def _variance(luma_HW: np.ndarray) -> float:
    return float(cv2.meanStdDev(cv2.Laplacian(luma_HW, cv2.CV_16S))[1][0, 0] ** 2)


def letterbox(brightest_HW: np.ndarray) -> float:
    """Share of the picture that is black bars, above and below or at the sides, 0..1: what lies outside `between_bars`.

    NaN when all of it is dark: nobody can tell a bar from a black picture.
    """
    found = between_bars(brightest_HW)
    if found is None:
        return float("nan")
    left, top, right, bottom = found
    height, width = brightest_HW.shape
    return 1 - (bottom - top) * (right - left) / (height * width)


def between_bars(brightest_HW: np.ndarray) -> tuple[int, int, int, int] | None:
    """The picture between its black bars: left, top, right, bottom, pixels; None when all of it is dark.

    A bar is dark in every frame, has a straight edge, and gives way to the picture within EDGE lines; a side without
    such an edge has none. Bars of another colour, and blurred copies of the picture beside it, are not found.

    brightest_HW: uint8, each pixel's greatest luma over the clip (`np.maximum` of its pictures, of any one size).
    """
    lit_HW = brightest_HW >= DARK
    if not lit_HW.any():
        return None
    height, width = lit_HW.shape
    top, bottom = _bar(lit_HW), _bar(lit_HW[::-1])
    # Columns are judged between the bars above and below: else the bars' own pixels would count as theirs.
    inner_WH = lit_HW[top : height - bottom].T
    left, right = _bar(inner_WH), _bar(inner_WH[::-1])
    return left, top, width - right, height - bottom


def _bar(lit_LN: np.ndarray) -> int:
    """Number of lines (rows of the array) that make a bar at its beginning."""
    lit_L = lit_LN.mean(axis=1)
    inside = np.flatnonzero(lit_L > 1 - FILLED)
    if not len(inside):
        return 0
    bar = int(inside[0])
    return bar if lit_L[bar : bar + EDGE].max() >= LIT else 0
