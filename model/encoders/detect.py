"""Faces in a picture that somebody hands in, and their five points, by CenterFace (1911.03599) run in OpenCV.

H, W, C: height, width, channels of a picture. P: point. h, w: rows and columns of the network's maps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

_BLOCK = 32  # the network halves its input five times
_CELL = 4  # pixels per cell of its maps
_OVERLAP = 0.3  # from this intersection over union on, two boxes are one face
_MAPS = ("537", "538", "539", "540")  # scores, log sizes, offsets and points, as the file calls them
_SIDE = 640  # pixels of the picture's long side: finds faces from 3.5 % of it up to those that fill it


@dataclass(frozen=True)
class Face:
    """One face, in pixels of the picture; the box ends at the picture's edges.

    points: (x, y) of the subject's right eye, left eye, nose tip, right and left corner of the mouth.
    """

    left: float
    top: float
    right: float
    bottom: float
    score: float
    points: tuple[tuple[float, float], ...]

    @property
    def height(self) -> float:
        return self.bottom - self.top


class FaceFinder:
    """Finds the faces in a picture. model: centerface.onnx. threshold: least score."""

    def __init__(self, model: Path, threshold: float = 0.35) -> None:
        self._network = cv2.dnn.readNetFromONNX(str(model))
        self.threshold = threshold

    def __call__(self, image_HWC: np.ndarray) -> list[Face]:
        """Faces from left to right; none where nothing looks like one. image_HWC: uint8 RGB."""
        whole = np.array(image_HWC.shape[:2])
        height, width = (max(1, round(n * min(1, _SIDE / whole.max()))) for n in whole)
        padded = np.zeros((height + -height % _BLOCK, width + -width % _BLOCK, 3), np.uint8)
        padded[:height, :width] = cv2.resize(image_HWC, (width, height), interpolation=cv2.INTER_AREA)
        self._network.setInput(cv2.dnn.blobFromImage(padded))
        maps = self._network.forward(list(_MAPS))
        heat, size, offset, points = (m[0, :, : -(-height // _CELL), : -(-width // _CELL)] for m in maps)
        found = _decoded(heat[0], size, offset, points, self.threshold)
        faces = [_face(*one, whole / [height, width], whole) for one in found]
        return sorted(faces, key=lambda face: face.left)


def _decoded(
    heat_hw: np.ndarray, size_2hw: np.ndarray, offset_2hw: np.ndarray, points_Phw: np.ndarray, threshold: float
) -> Iterator[tuple[float, np.ndarray, np.ndarray, np.ndarray]]:
    """Score, first and last corner [2], and points [5, 2] of each face; all y before x, in pixels of the input.

    size: log of a face's height and width in cells; offset: of its centre in the cell; points: shares of its box.
    """
    cells_N2 = np.argwhere(heat_hw > threshold)
    cells_N2 = cells_N2[np.argsort(-heat_hw[tuple(cells_N2.T)], kind="stable")]
    at = (slice(None), *cells_N2.T)
    sizes_N2 = np.exp(size_2hw[at].T) * _CELL
    starts_N2 = (cells_N2 + offset_2hw[at].T + 0.5) * _CELL - sizes_N2 / 2
    points_N52 = starts_N2[:, None] + points_Phw[at].T.reshape(-1, 5, 2) * sizes_N2[:, None]
    ends_N2, areas_N = starts_N2 + sizes_N2, sizes_N2.prod(axis=1)
    rest = np.arange(len(cells_N2))
    while len(rest):
        first, rest = rest[0], rest[1:]
        yield float(heat_hw[tuple(cells_N2[first])]), starts_N2[first], ends_N2[first], points_N52[first]
        shared = np.minimum(ends_N2[first], ends_N2[rest]) - np.maximum(starts_N2[first], starts_N2[rest])
        common = np.maximum(shared, 0).prod(axis=1)
        rest = rest[common < _OVERLAP * (areas_N[first] + areas_N[rest] - common)]


def _face(
    score: float,
    start_2: np.ndarray,
    end_2: np.ndarray,
    points_52: np.ndarray,
    scale_2: np.ndarray,
    whole_2: np.ndarray,
) -> Face:
    (top, left), (bottom, right) = ((np.clip(corner * scale_2, 0, whole_2)).tolist() for corner in (start_2, end_2))
    return Face(left, top, right, bottom, score, tuple((x, y) for y, x in (points_52 * scale_2).tolist()))
