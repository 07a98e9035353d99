"""Which part of a picture is animated: a box of the video's shape around the face, framed as training clips are.

Training clips show a head in a box of 2.4 face heights with the head a little above its middle (docs/packing.md). The
box is cut out in whole pixels and in whole steps of the video's shape, so that scaling stretches nothing.

H, W, C: height, width, channels of a picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from model.encoders.detect import Face

ABOVE, BELOW, ASIDE = 0.40, 0.10, 0.20
"""How far a head reaches beyond its face box: hair and chin in face heights, ears in face widths."""
EYE_LINE = 0.46
"""Where the middle of the head comes to lie, as a share of the box's height."""
ROOM = 2.4
"""Height of the box in face heights, where the picture has as much."""


@dataclass(frozen=True)
class Box:
    """A part of a picture, in whole pixels, and the size that is made of it."""

    left: int
    top: int
    width: int
    height: int
    made_width: int
    made_height: int

    @property
    def scale(self) -> float:
        """Pixels made of one of the picture, the same along both axes; above 1 it is enlarged."""
        return self.made_height / self.height

    def cut(self, image_HWC: np.ndarray) -> np.ndarray:
        """The box out of a picture, uint8 [made_height, made_width, C]: averaged when shrunk, cubic when enlarged."""
        box_HWC = image_HWC[self.top : self.top + self.height, self.left : self.left + self.width]
        if self.scale == 1:
            return np.ascontiguousarray(box_HWC)
        how = cv2.INTER_AREA if self.scale < 1 else cv2.INTER_CUBIC
        return cv2.resize(box_HWC, (self.made_width, self.made_height), interpolation=how)


def framed(face: Face, width: int, height: int, made: tuple[int, int], room: float = ROOM) -> Box | None:
    """The box around a face; None where the picture is too narrow or too low for a box that holds the face.

    width, height: of the picture. made: width and height of the video. The box is `room` face heights high, larger
    where it would have to be enlarged, and as large as the picture allows where that is less.
    """
    across, down = (length // math.gcd(*made) for length in made)  # the shape's smallest step: 3 x 2 for 720 x 480
    most = min(width // across, height // down)
    wide, high = face.right - face.left, face.bottom - face.top
    if max(math.ceil(wide / across), math.ceil(high / down)) > most:
        return None
    head_wide, head_high = (1 + 2 * ASIDE) * wide, (1 + ABOVE + BELOW) * high
    wanted = max(math.ceil(head_wide / across), math.ceil(max(head_high, room * high) / down), made[1] // down)
    steps = min(wanted, most)
    box_width, box_height = steps * across, steps * down
    middle_x, middle_y = (face.left + face.right) / 2, (face.top + face.bottom) / 2 - (ABOVE - BELOW) / 2 * high
    left = _inside(middle_x - box_width / 2, box_width, width, face.left, face.right)
    top = _inside(middle_y - EYE_LINE * box_height, box_height, height, face.top, face.bottom)
    return Box(left, top, box_width, box_height, *made)


def _inside(wished: float, length: int, whole: int, face_start: float, face_end: float) -> int:
    """Where a box of that length starts along one axis: as wished, but with all of the face, and in the picture."""
    first, last = math.ceil(face_end) - length, math.floor(face_start)
    start = min(max(round(wished), first), last) if first <= last else round((face_start + face_end - length) / 2)
    return min(max(start, 0), whole - length)
