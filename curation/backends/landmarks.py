"""478 points, 52 expressions and the pose of one face, by MediaPipe's FaceLandmarker.

Each picture is looked at on its own (the library's VIDEO mode smooths over time, which moves what lips do), in a
square crop around a face that a detector has found before. About 10 ms a crop on one core: 7 the network of the
points, 1.5 the face detector inside, 0.7 the library's Python; expressions and pose are nearly free.

H, W, C: height, width, channels of a picture. P: point.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import mediapipe
import numpy as np
from mediapipe.tasks.python.core.base_options import BaseOptions
from mediapipe.tasks.python.vision import FaceLandmarker, FaceLandmarkerOptions

SIDE = 256
"""Pixels of the crop; the network's own input."""
MARGINS = (1.3, 1.5, 2.0)
"""Side of the crop over the longer side of the box, tried in turn; large faces get the first only."""
SMALL = 100
"""Pixels of the longer side of the box below which a face may be found only with more around it."""
CONFIDENCE = 0.3
"""Least score of the face detector inside and of there being a face under the points."""

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

_CHATTER = re.compile(rb"[IW]\d{4} |INFO: Created TensorFlow Lite|WARNING: (Logging before|All log messages)")


@dataclass(frozen=True)
class Landmarks:
    """What is known of one face.

    points_P3: float32 [478, 3], x and y in pixels of the frame, z (depth, negative towards the camera) in the same
    scale; the order of MediaPipe's face mesh with irises.
    blendshapes: float32 [52], 0..1, in the order of BLENDSHAPES.
    pose_44: float64 [4, 4], turns and moves the canonical face to the camera's view of the crop: x to the right of
    the picture, y up, z towards the camera, centimetres. Its rotation has no scale.
    """

    points_P3: np.ndarray
    blendshapes: np.ndarray
    pose_44: np.ndarray


class Landmarker:
    """Finds the landmarks of a face whose box is known. Keeps nothing from one picture to the next."""

    def __init__(self, model: Path) -> None:
        """model: `face_landmarker.task` with blendshapes. Raises RuntimeError or ValueError when it is not one."""
        options = FaceLandmarkerOptions(
            BaseOptions(model_asset_path=str(model), delegate=BaseOptions.Delegate.CPU),
            num_faces=1,
            min_face_detection_confidence=CONFIDENCE,
            min_face_presence_confidence=CONFIDENCE,
            output_face_blendshapes=True,
            output_facial_transformation_matrixes=True,
        )
        with _without_chatter():
            self._network = FaceLandmarker.create_from_options(options)
        self._end = weakref.finalize(self, _closed, self._network)

    def __call__(self, image_HWC: np.ndarray, box: tuple[float, float, float, float]) -> Landmarks | None:
        """Landmarks of the face in a box, or None where the model sees none (mostly: a profile).

        image_HWC: uint8 RGB. box: left, top, right, bottom in pixels of the picture; may reach beyond it. NaN or
        empty is a lost face, and None.
        """
        size = max(box[2] - box[0], box[3] - box[1])
        if not np.isfinite(box).all() or size <= 0:
            return None
        for margin in MARGINS if size < SMALL else MARGINS[:1]:
            if found := self._look(image_HWC, box, max(2, round(margin * size))):
                return found
        return None

    def close(self) -> None:
        """Free the model; also done when the landmarker goes."""
        self._end()

    def _look(self, image_HWC: np.ndarray, box: tuple[float, float, float, float], side: int) -> Landmarks | None:
        left, top = round((box[0] + box[2] - side) / 2), round((box[1] + box[3] - side) / 2)
        shown = resized(square(image_HWC, left, top, side))
        result = self._network.detect(mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=shown))
        if not result.face_landmarks:
            return None
        shares_P3 = np.array([(point.x, point.y, point.z) for point in result.face_landmarks[0]])
        return Landmarks(
            points_P3=(shares_P3 * side + [left, top, 0]).astype(np.float32),
            blendshapes=np.array([shape.score for shape in result.face_blendshapes[0]], np.float32),
            pose_44=result.facial_transformation_matrixes[0].astype(np.float64),
        )


def square(image_HWC: np.ndarray, left: int, top: int, side: int) -> np.ndarray:
    """A square of a picture, black where it reaches beyond: [side, side, C]."""
    height, width = image_HWC.shape[:2]
    shown = image_HWC[np.clip(top, 0, height) : max(top + side, 0), np.clip(left, 0, width) : max(left + side, 0)]
    above, before = min(max(-top, 0), side), min(max(-left, 0), side)
    below, after = side - above - shown.shape[0], side - before - shown.shape[1]
    return np.pad(shown, [(above, below), (before, after), (0, 0)])


def resized(crop_HWC: np.ndarray) -> np.ndarray:
    """The crop as the network takes it, [SIDE, SIDE, C]: shrunk by area averages, or enlarged smoothly."""
    how = cv2.INTER_AREA if crop_HWC.shape[0] > SIDE else cv2.INTER_LINEAR
    return np.ascontiguousarray(cv2.resize(crop_HWC, (SIDE, SIDE), interpolation=how))


def _closed(network: FaceLandmarker) -> None:
    """Free the model; where Python has ended its threads, through which the library frees it, leave that to the exit.

    (The library's own __del__ would then die aloud.)
    """
    try:
        network.close()
    except RuntimeError:
        network._handle = None


@contextlib.contextmanager
def _without_chatter() -> Iterator[None]:
    """Keep the library's greetings off stderr, which it writes to past Python; everything else goes through."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as kept:
        stderr = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            kept.seek(0)
            for line in kept:
                if not _CHATTER.match(line):
                    os.write(2, line)
