"""Faces in a picture, found by CenterFace ("Joint Face Detection and Alignment Using Face as Point", 1911.03599).

How small a face it finds depends on the face's height as a share of the picture's long side, and on the pixels
that side is shown with: at 640 it finds 99 % of faces from 3.5 % upwards, at 320 from 7 %, at 160 from 15 %, in
profile as well as frontal. A face that fills the picture is found best at 160, which costs a tenth of 640.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import onnxruntime

from model.protobuf import BYTES, within

_BLOCK = 32  # the network halves its input five times
_CELL = 4  # pixels per cell of its maps
_OVERLAP = 0.3  # from this intersection over union on, two boxes are one face


@dataclass(frozen=True)
class Face:
    """One face; lengths are shares of the picture's width and height, the box ends at the picture's edges.

    points: (x, y) of the subject's right eye, left eye, nose tip, right and left corner of the mouth; those of a
    face cut off by the edge may lie outside.
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

    def scaled(self, width: float, height: float) -> Face:
        """The same face in pixels of a picture of that size."""
        return Face(
            self.left * width,
            self.top * height,
            self.right * width,
            self.bottom * height,
            self.score,
            tuple((x * width, y * height) for x, y in self.points),
        )


class CenterFace:
    """Finds the faces in a picture.

    model: centerface.onnx. sides: pixels to which the picture's long side is shrunk (never enlarged: large faces
    get lost), tried from the smallest until a face is found; a single one finds large and small faces at once and
    gives boxes of even precision. threshold: least score. threads: of the computation.
    """

    def __init__(self, model: Path, sides: Sequence[int] = (640,), threshold: float = 0.35, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3  # errors: it would warn of every counter left over from training
        network = _freed(model.read_bytes())
        self._network = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
        self._input = self._network.get_inputs()[0].name
        self.sides = tuple(sides)
        self.threshold = threshold

    def __call__(self, image_HWC: np.ndarray) -> list[Face]:
        """Faces by falling score. image_HWC: uint8 RGB."""
        longest = max(image_HWC.shape[:2])
        for side in sorted({min(side, longest) for side in self.sides}):
            if faces := self.at(image_HWC, side):
                return faces
        return []

    def at(self, image_HWC: np.ndarray, side: int) -> list[Face]:
        """The same with the picture's long side shrunk to so many pixels."""
        side = min(side, max(image_HWC.shape[:2]))
        height, width = (max(1, round(n * side / max(image_HWC.shape[:2]))) for n in image_HWC.shape[:2])
        shown = cv2.resize(image_HWC, (width, height), interpolation=cv2.INTER_AREA)
        padded = np.zeros((1, 3, height + -height % _BLOCK, width + -width % _BLOCK), np.float32)
        padded[0, :, :height, :width] = shown.transpose(2, 0, 1)
        maps = self._network.run(None, {self._input: padded})
        heat, size, offset, points = (m[0, :, : -(-height // _CELL), : -(-width // _CELL)] for m in maps)
        return _decode(heat[0], size, offset, points, self.threshold, np.array([height, width]))


def _decode(
    heat_hw: np.ndarray,
    size_2hw: np.ndarray,
    offset_2hw: np.ndarray,
    points_Phw: np.ndarray,
    threshold: float,
    shape: np.ndarray,
) -> list[Face]:
    """Faces out of the network's maps, all of them y before x. shape: height, width of the picture, pixels.

    heat: score of a face's centre in the cell; size: log of its height, width in cells; offset: of the centre in
    the cell, cells; points: 5 (y, x) as shares of the box.
    """
    cells_N2 = np.argwhere(heat_hw > threshold)
    cells_N2 = cells_N2[np.argsort(-heat_hw[tuple(cells_N2.T)], kind="stable")]
    at = (slice(None), *cells_N2.T)
    sizes_N2 = np.exp(size_2hw[at].T) * _CELL
    starts_N2 = (cells_N2 + offset_2hw[at].T + 0.5) * _CELL - sizes_N2 / 2
    points_N52 = (starts_N2[:, None] + points_Phw[at].T.reshape(-1, 5, 2) * sizes_N2[:, None]) / shape
    ends_N2 = np.clip((starts_N2 + sizes_N2) / shape, 0, 1)
    starts_N2 = np.clip(starts_N2 / shape, 0, 1)
    faces = []
    for n in _distinct(starts_N2, ends_N2):
        (top, left), (bottom, right) = starts_N2[n].tolist(), ends_N2[n].tolist()
        points = tuple((x, y) for y, x in points_N52[n].tolist())
        faces.append(Face(left, top, right, bottom, float(heat_hw[tuple(cells_N2[n])]), points))
    return faces


def _distinct(starts_N2: np.ndarray, ends_N2: np.ndarray) -> Iterator[int]:
    """Indices of the boxes that do not cover one that came before."""
    areas_N = (ends_N2 - starts_N2).prod(axis=1)
    rest = np.arange(len(areas_N))
    while len(rest):
        first, rest = rest[0], rest[1:]
        yield int(first)
        shared = np.minimum(ends_N2[first], ends_N2[rest]) - np.maximum(starts_N2[first], starts_N2[rest])
        common = np.maximum(shared, 0).prod(axis=1)
        rest = rest[common < _OVERLAP * (areas_N[first] + areas_N[rest] - common)]


# The file is exported for ten pictures of 32 x 32, and lists its weights among its inputs, which keeps them from
# being folded and halves the speed. Both are changed in its protobuf bytes; no field changes its length.
_GRAPH, _INPUT, _OUTPUT, _VALUE_INFO = 7, 11, 12, 13  # fields of ModelProto and GraphProto in onnx.proto
_DIMENSIONS = (2, 1, 2, 1)  # ValueInfoProto.type.tensor_type.shape.dim
_DIM_PARAM = 2


def _freed(model: bytes) -> bytes:
    """The same network for pictures of any number and size, with constant weights."""
    data = bytearray(model)
    graph = within(data, [(0, 0, len(data))], _GRAPH)
    picture, *weights = within(data, graph, _INPUT)
    for tag, _, _ in weights:
        data[tag] = _VALUE_INFO << 3 | BYTES  # no longer an input, just a value whose shape is known
    dimensions = [picture, *within(data, graph, _OUTPUT)]
    for field in _DIMENSIONS:
        dimensions = within(data, dimensions, field)
    for _, start, end in dimensions:
        data[start:end] = bytes([_DIM_PARAM << 3 | BYTES, 0])  # `dim_value: 32` becomes `dim_param: ""`
    return bytes(data)
