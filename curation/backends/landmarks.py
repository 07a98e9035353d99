"""478 points, 52 expressions and the pose of one face, by the networks of MediaPipe's FaceLandmarker.

Each picture is looked at on its own: smoothing over time would move what lips do. The points are looked for in a
square whose place, size and tilt the search for faces has told; expressions and pose follow from the points. The
networks are those of `face_landmarker.task`, run by onnxruntime. MediaPipe's library sets the square by a detector of
its own: its points lie 0.2 to 0.4 % of the face's height from these (docs/metrics.md). It takes a third more, and its
packages of 2026 report over the network that they are used.

H, W, C: height, width, channels of a picture. P: point. S: side of what the network sees.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from scipy.special import expit

from curation.backends import tflite
from curation.backends.tracks import Sight
from curation.measures.canonical import Canonical, pose
from model import protobuf

SIDE = 256
"""Pixels of the network's own input."""
REGION = 1.17
"""Side of what it is shown over the longer side of the face's box; MediaPipe's detector does so on average."""
LOWER = 0.08
"""How far the middle of that lies under the box's, over the same side: hair is no part of it."""
VIEW = 1.3
"""Side of the square, around the box, whose picture the pose is told from, over the same side."""
CONFIDENCE = 0.3
"""Score of there being a face under the points up to which there is none."""
POINTS = 478

_NAMES = """
_neutral browDownLeft browDownRight browInnerUp browOuterUpLeft browOuterUpRight cheekPuff cheekSquintLeft
cheekSquintRight eyeBlinkLeft eyeBlinkRight eyeLookDownLeft eyeLookDownRight eyeLookInLeft eyeLookInRight
eyeLookOutLeft eyeLookOutRight eyeLookUpLeft eyeLookUpRight eyeSquintLeft eyeSquintRight eyeWideLeft
eyeWideRight jawForward jawLeft jawOpen jawRight mouthClose mouthDimpleLeft mouthDimpleRight mouthFrownLeft
mouthFrownRight mouthFunnel mouthLeft mouthLowerDownLeft mouthLowerDownRight mouthPressLeft mouthPressRight
mouthPucker mouthRight mouthRollLower mouthRollUpper mouthShrugLower mouthShrugUpper mouthSmileLeft
mouthSmileRight mouthStretchLeft mouthStretchRight mouthUpperUpLeft mouthUpperUpRight noseSneerLeft
noseSneerRight
"""
BLENDSHAPES: tuple[str, ...] = tuple(_NAMES.split())
"""What the expressions are, in the model's order; Left and Right are the subject's."""
# The points that the expressions' network takes (kLandmarksSubsetIdxs of face_blendshapes_graph.cc).
_TELLING = """
0 1 4 5 6 7 8 10 13 14 17 21 33 37 39 40 46 52 53 54 55 58 61 63 65 66 67 70 78 80 81 82 84 87 88 91 93 95 103 105 107
109 127 132 133 136 144 145 146 148 149 150 152 153 154 155 157 158 159 160 161 162 163 168 172 173 176 178 181 185 191
195 197 234 246 249 251 263 267 269 270 276 282 283 284 285 288 291 293 295 296 297 300 308 310 311 312 314 317 318 321
323 324 332 334 336 338 356 361 362 365 373 374 375 377 378 379 380 381 382 384 385 386 387 388 389 390 397 398 400 402
405 409 415 454 466 468 469 470 471 472 473 474 475 476 477
"""
TELLING = np.array([int(number) for number in _TELLING.split()])


@dataclass(frozen=True)
class Landmarks:
    """What is known of one face.

    points_P3: float32 [478, 3], x and y in pixels of the frame, z (depth, negative towards the camera) in the same
    scale; the order of MediaPipe's face mesh with irises.
    blendshapes: float32 [52], 0..1, in the order of BLENDSHAPES.
    pose_44: float64 [4, 4], turns and moves the canonical face to the view of a camera that looks at the face: x to the
    right of the picture, y up, z towards the camera, centimetres. Its scale is 1 within a few per cent.
    """

    points_P3: np.ndarray
    blendshapes: np.ndarray
    pose_44: np.ndarray


@dataclass(frozen=True)
class Region:
    """A square of a picture. middle_2: x and y, pixels. side: pixels. angle: of its upper edge, clockwise, radians."""

    middle_2: np.ndarray
    side: float
    angle: float

    @staticmethod
    def around(sight: Sight) -> Region:
        """Where a face's points are looked for: upright by its eyes and mouth."""
        eyes_2 = sight.points[1] - sight.points[0]
        down_2 = sight.points[3:].mean(axis=0) - sight.points[:2].mean(axis=0)
        angle = float(np.arctan2(eyes_2[1] - down_2[0], eyes_2[0] + down_2[1]))
        longer = float(max(sight.box[2:] - sight.box[:2]))
        below_2 = LOWER * longer * np.array([-np.sin(angle), np.cos(angle)])
        return Region((sight.box[:2] + sight.box[2:]) / 2 + below_2, REGION * longer, angle)

    @property
    def turn_22(self) -> np.ndarray:
        cosine, sine = np.cos(self.angle), np.sin(self.angle)
        return np.array([[cosine, -sine], [sine, cosine]])


class Landmarker:
    """Finds the landmarks of a face that is in sight. Keeps nothing from one picture to the next."""

    def __init__(self, model: Path, threads: int = 1) -> None:
        """model: `face_landmarker.task` with blendshapes. threads: of the computation.

        Raises ValueError when it is another file.
        """
        try:
            with zipfile.ZipFile(model) as bundle:
                self._mark = tflite.network(bundle.read("face_landmarks_detector.tflite"), threads)
                self._express = tflite.network(bundle.read("face_blendshapes.tflite"), threads)
                self._face = _canonical(bundle.read("geometry_pipeline_metadata_landmarks.binarypb"))
        except (zipfile.BadZipFile, KeyError, ValueError) as error:
            raise ValueError(f"{model} is no face_landmarker.task with blendshapes: {error}") from error

    def __call__(self, image_HWC: np.ndarray, sight: Sight) -> Landmarks | None:
        """Landmarks of the face in sight, or None where the model sees none (mostly: a profile).

        image_HWC: uint8 RGB. The box may reach beyond the picture. NaN or empty is a lost face, and None.
        """
        longer = float(max(sight.box[2:] - sight.box[:2]))
        if not (np.isfinite(sight.box).all() and np.isfinite(sight.points).all() and longer > 0):
            return None
        region = Region.around(sight)
        points, presence, *_ = self._mark(upright(image_HWC, region)[None] / np.float32(255))
        if expit(float(presence.reshape(()))) <= CONFIDENCE:
            return None
        points_P3 = (points.reshape(POINTS, 3).astype(np.float64) / SIDE - [0.5, 0.5, 0]) * region.side
        points_P3[:, :2] = points_P3[:, :2] @ region.turn_22.T + region.middle_2
        corner_2 = (sight.box[:2] + sight.box[2:] - VIEW * longer) / 2
        shares_P3 = (points_P3 - [*corner_2, 0]) / (VIEW * longer)
        [blendshapes] = self._express((shares_P3[None, TELLING, :2] * SIDE).astype(np.float32))
        return Landmarks(points_P3.astype(np.float32), blendshapes.reshape(-1), pose(self._face, shares_P3))


def upright(image_HWC: np.ndarray, region: Region) -> np.ndarray:
    """What is in a region, [SIDE, SIDE, C]: shrunk by area averages, or enlarged smoothly; black beyond the picture."""
    reach = int(np.ceil(region.side * np.abs(region.turn_22[0]).sum())) + 2  # a square that holds the turned one
    left, top = np.floor(region.middle_2 - reach / 2).astype(int).tolist()
    shown = square(image_HWC, left, top, reach)
    if region.side > SIDE:
        shrunk = round(reach * SIDE / region.side)
        shown = cv2.resize(shown, (shrunk, shrunk), interpolation=cv2.INTER_AREA)
    scale = len(shown) / reach
    there_22 = region.turn_22 * (region.side / SIDE * scale)  # one pixel of the result, in pixels of what is shown
    # Pixels count from their middles.
    start_2 = (region.middle_2 - [left, top]) * scale - 0.5 + there_22 @ np.full(2, (1 - SIDE) / 2)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(shown, np.column_stack([there_22, start_2]), (SIDE, SIDE), flags=flags)


def square(image_HWC: np.ndarray, left: int, top: int, side: int) -> np.ndarray:
    """A square of a picture, black where it reaches beyond: [side, side, C]."""
    height, width = image_HWC.shape[:2]
    shown = image_HWC[np.clip(top, 0, height) : max(top + side, 0), np.clip(left, 0, width) : max(left + side, 0)]
    above, before = min(max(-top, 0), side), min(max(-left, 0), side)
    below, after = side - above - shown.shape[0], side - before - shown.shape[1]
    return np.pad(shown, [(above, below), (before, after), (0, 0)])


# GeometryPipelineMetadata of MediaPipe's geometry_pipeline_metadata.proto.
_CANONICAL_MESH, _BASIS = 1, 2
_VERTICES, _LANDMARK, _WEIGHT = 3, 1, 2
_PER_VERTEX = 5  # x, y, z, and two of the texture


def _canonical(metadata: bytes) -> Canonical:
    """The canonical face, and which of its points the pose is told by."""
    whole = [(0, 0, len(metadata))]
    [mesh] = protobuf.within(metadata, whole, _CANONICAL_MESH)
    places = protobuf.within(metadata, [mesh], _VERTICES)
    numbers = np.frombuffer(b"".join(metadata[start:end] for _, start, end in places), np.float32)
    points_P3 = numbers.reshape(-1, _PER_VERTEX)[:, :3].astype(np.float64)
    basis = [dict(protobuf.fields(metadata, start, end)) for _, start, end in protobuf.within(metadata, whole, _BASIS)]
    indices_N = np.array(
        [protobuf.varint(metadata, part[_LANDMARK][1])[0] if _LANDMARK in part else 0 for part in basis]
    )
    places = [part[_WEIGHT] for part in basis]
    weights_N = np.frombuffer(b"".join(metadata[start:end] for _, start, end in places), np.float32).astype(np.float64)
    return Canonical(points_P3[indices_N], indices_N, weights_N, len(points_P3))
