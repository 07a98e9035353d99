"""Where a talking head is cut out of a picture or a clip: one box for the whole clip, so that it never moves.

The box has the shape of the picture to be made (3:2 for 720 x 480), in whole pixels of the source and in whole steps of
that shape: scaling it stretches nothing. Boxes are left, top, right, bottom in pixels of the source as shown.

T: frame. H, W, C: height, width, channels of a picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

ABOVE, BELOW, ASIDE = 0.40, 0.10, 0.20
"""How far a head reaches beyond its face box: hair and chin in face heights, ears in face widths."""
EYE_LINE = 0.46
"""Where the middle of the head comes to lie, as a share of the box's height: a little above the middle."""
ROOM = 2.4
"""Height of the box in face heights, where the picture has as much: head and shoulders."""


class CropError(Exception):
    """A clip that no box fits: why, what to do."""


@dataclass(frozen=True)
class Crop:
    """A box, in pixels of the source, and the size that it is scaled to."""

    left: int
    top: int
    width: int
    height: int
    made_width: int
    made_height: int

    @property
    def scale(self) -> float:
        """Pixels made of one of the source, the same along both axes; above 1 the picture is enlarged."""
        return self.made_height / self.height

    def cut(self, image_HWC: np.ndarray) -> np.ndarray:
        """The box out of a picture, uint8 [made_height, made_width, C]: averaged when shrunk, cubic when enlarged."""
        box_HWC = image_HWC[self.top : self.top + self.height, self.left : self.left + self.width]
        if self.scale == 1:
            return np.ascontiguousarray(box_HWC)
        how = cv2.INTER_AREA if self.scale < 1 else cv2.INTER_CUBIC
        return cv2.resize(box_HWC, (self.made_width, self.made_height), interpolation=how)

    def place(self, boxes_T4: np.ndarray) -> np.ndarray:
        """Boxes of the source, [..., 4], in pixels of the picture that is made; NaN stays NaN."""
        return (boxes_T4 - [self.left, self.top, self.left, self.top]) * self.scale


def head_crop(
    boxes_T4: np.ndarray,
    width: int,
    height: int,
    made: tuple[int, int] = (720, 480),
    room: float = ROOM,
    upscale: bool = False,
) -> Crop:
    """The box around a head over a clip: the face is inside in every frame, the head where the picture allows.

    boxes_T4: the face's boxes, NaN where it was lost. width, height: of the source's pictures. made: width and height
    of the picture to be made. room: wanted height of the box in face heights (median of the clip). upscale: whether a
    source that has fewer pixels than are to be made may be enlarged; one that has enough never is.
    Raises CropError where the face is never on show, moves over more than any box holds, or has too few pixels.
    """
    known_T4 = boxes_T4[np.isfinite(boxes_T4).all(axis=1)].astype(np.float64)
    if not len(known_T4):
        raise CropError("no frame shows the face")
    face = _union(known_T4, width, height)
    head = _union(_heads(known_T4), width, height)
    across, down = (length // math.gcd(*made) for length in made)  # the shape's smallest step: 3 x 2 for 720 x 480
    most = min(width // across, height // down)
    needed = _steps(face, across, down)
    if needed > most:
        raise CropError(
            f"the face moves over {face[2] - face[0]}x{face[3] - face[1]} pixels; the largest {across}:{down} box "
            f"in {width}x{height} is {most * across}x{most * down}"
        )
    wanted = max(_steps(head, across, down), math.ceil(room * _face_height(known_T4) / down), made[1] // down)
    steps = min(wanted, most)
    box_width, box_height = steps * across, steps * down
    if box_height < made[1] and not upscale:
        raise CropError(
            f"the source has {box_width}x{box_height} pixels to show, {made[0]}x{made[1]} are to be made: "
            "upscale=true enlarges it"
        )
    left = _placed((head[0] + head[2]) / 2 - box_width / 2, box_width, (head[0], head[2]), (face[0], face[2]), width)
    top = (head[1] + head[3]) / 2 - EYE_LINE * box_height
    top = _placed(top, box_height, (head[1], head[3]), (face[1], face[3]), height)
    return Crop(left, top, box_width, box_height, *made)


def _heads(faces_T4: np.ndarray) -> np.ndarray:
    """The boxes of the heads around faces."""
    wide_T = faces_T4[:, 2] - faces_T4[:, 0]
    high_T = faces_T4[:, 3] - faces_T4[:, 1]
    return faces_T4 + np.stack([-ASIDE * wide_T, -ABOVE * high_T, ASIDE * wide_T, BELOW * high_T], axis=1)


def _union(boxes_T4: np.ndarray, width: int, height: int) -> tuple[int, int, int, int]:
    """The whole pixels of the picture that hold all boxes."""
    left, top = np.floor(boxes_T4[:, :2].min(axis=0)).astype(int)
    right, bottom = np.ceil(boxes_T4[:, 2:].max(axis=0)).astype(int)
    return max(0, int(left)), max(0, int(top)), min(width, int(right)), min(height, int(bottom))


def _steps(box: tuple[int, int, int, int], across: int, down: int) -> int:
    """The least size of the shape, in its steps, that holds a box."""
    return max(math.ceil((box[2] - box[0]) / across), math.ceil((box[3] - box[1]) / down))


def _face_height(boxes_T4: np.ndarray) -> float:
    return float(np.median(boxes_T4[:, 3] - boxes_T4[:, 1]))


def _placed(start: float, length: int, head: tuple[int, int], face: tuple[int, int], whole: int) -> int:
    """Where a box of that length starts along one axis: as wished, but it holds the head if it can, and the face."""
    begin = round(start)
    for first, last in (head, face):
        if last - first <= length:
            begin = min(max(begin, last - length), first)
    return min(max(begin, 0), whole - length)
