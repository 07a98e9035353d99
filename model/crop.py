"""Where a talking head is cut out of a picture or a clip: one box for the whole clip, so that it never moves.

The box has the shape of the picture to be made (3:2 for 720 x 480), in whole pixels of the source and in whole steps of
that shape: scaling it stretches nothing. Where it may, it reaches beyond the source's sides, and what lies there is
black. Boxes are left, top, right, bottom in pixels of the source as shown.

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

Box = tuple[int, int, int, int]
"""Left, top, right, bottom: whole pixels of the source, right and bottom exclusive."""


class CropError(Exception):
    """A clip that no box fits: why, what to do."""


@dataclass(frozen=True)
class Crop:
    """A box, in pixels of the source, and the size that it is scaled to.

    before, after: how much of the box's width, at its left and at its right, is black instead of the source's picture.
    """

    left: int
    top: int
    width: int
    height: int
    made_width: int
    made_height: int
    before: int = 0
    after: int = 0

    @property
    def scale(self) -> float:
        """Pixels made of one of the source, the same along both axes; above 1 the picture is enlarged."""
        return self.made_height / self.height

    @property
    def padded(self) -> float:
        """Share of the picture made that is black, because the source ends there."""
        return (self.before + self.after) / self.width

    @property
    def shown(self) -> tuple[float, float, float, float]:
        """Where the source's picture lies in the picture made, in pixels of that; all of it without padding."""
        right = self.made_width - self.after * self.scale
        return self.before * self.scale, 0.0, right, float(self.made_height)

    def cut(self, image_HWC: np.ndarray) -> np.ndarray:
        """The box out of a picture, uint8 [made_height, made_width, C]: averaged when shrunk, cubic when enlarged."""
        left, right = self.left + self.before, self.left + self.width - self.after
        box_HWC = image_HWC[self.top : self.top + self.height, left:right]
        if self.padded:
            box_HWC = cv2.copyMakeBorder(box_HWC, 0, 0, self.before, self.after, cv2.BORDER_CONSTANT)
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
    pad: bool = False,
    area: Box | None = None,
) -> Crop:
    """The box around a head over a clip: the face is inside in every frame, the head where the picture allows.

    boxes_T4: the face's boxes, NaN where it was lost. width, height: of the source's pictures. made: width and height
    of the picture to be made. room: wanted height of the box in face heights (median of the clip). upscale: whether a
    source that has fewer pixels than are to be made may be enlarged; one that has enough never is. pad: whether the
    box may reach beyond the sides of a source in which no box would do; then it holds the head, and the source's whole
    width in its middle. area: the part of the source to stay inside of, for instance between black bars; None: all.
    Raises CropError where the face is never on show, moves over more than any box holds, or has too few pixels.
    """
    known_T4 = boxes_T4[np.isfinite(boxes_T4).all(axis=1)].astype(np.float64)
    if not len(known_T4):
        raise CropError("no frame shows the face")
    area = area or (0, 0, width, height)
    face, head = _union(known_T4, area), _union(_heads(known_T4), area)
    wide, high = area[2] - area[0], area[3] - area[1]
    across, down = (length // math.gcd(*made) for length in made)  # the shape's smallest step: 3 x 2 for 720 x 480
    inside, tall = min(wide // across, high // down), high // down
    needed, enough = _steps(face, across, down), made[1] // down
    beyond = inside < max(needed, 0 if upscale else enough) <= tall  # a box that reaches beyond the sides would do
    most = tall if pad and beyond else inside
    hints = ["pad=true fills its sides with black"] if beyond else []
    if needed > most:
        problem = (
            f"the face moves over {face[2] - face[0]}x{face[3] - face[1]} pixels; the largest {across}:{down} box "
            f"in {wide}x{high} is {most * across}x{most * down}"
        )
        raise CropError(": ".join([problem, *hints]))
    wanted = max(_steps(head, across, down), enough)
    if not (pad and beyond):
        wanted = max(wanted, math.ceil(room * _face_height(known_T4) / down))
    steps = min(wanted, most)
    box_width, box_height = steps * across, steps * down
    if box_height < made[1] and not upscale:
        problem = f"the source has {box_width}x{box_height} pixels to show, {made[0]}x{made[1]} are to be made"
        raise CropError(f"{problem}: {', '.join(['upscale=true enlarges it', *hints])}")
    left, top = (head[0] + head[2]) / 2 - box_width / 2, (head[1] + head[3]) / 2 - EYE_LINE * box_height
    left = _placed(left, box_width, (head[0], head[2]), (face[0], face[2]), (area[0], area[2]))
    top = _placed(top, box_height, (head[1], head[3]), (face[1], face[3]), (area[1], area[3]))
    before, after = max(0, area[0] - left), max(0, left + box_width - area[2])
    return Crop(left, top, box_width, box_height, *made, before, after)


def _heads(faces_T4: np.ndarray) -> np.ndarray:
    """The boxes of the heads around faces."""
    wide_T = faces_T4[:, 2] - faces_T4[:, 0]
    high_T = faces_T4[:, 3] - faces_T4[:, 1]
    return faces_T4 + np.stack([-ASIDE * wide_T, -ABOVE * high_T, ASIDE * wide_T, BELOW * high_T], axis=1)


def _union(boxes_T4: np.ndarray, area: Box) -> Box:
    """The whole pixels of the area that hold all boxes."""
    left, top = np.floor(boxes_T4[:, :2].min(axis=0)).astype(int)
    right, bottom = np.ceil(boxes_T4[:, 2:].max(axis=0)).astype(int)
    return max(area[0], int(left)), max(area[1], int(top)), min(area[2], int(right)), min(area[3], int(bottom))


def _steps(box: Box, across: int, down: int) -> int:
    """The least size of the shape, in its steps, that holds a box."""
    return max(math.ceil((box[2] - box[0]) / across), math.ceil((box[3] - box[1]) / down))


def _face_height(boxes_T4: np.ndarray) -> float:
    return float(np.median(boxes_T4[:, 3] - boxes_T4[:, 1]))


def _placed(start: float, length: int, head: tuple[int, int], face: tuple[int, int], area: tuple[int, int]) -> int:
    """Where a box of that length starts along one axis: as wished, but it holds the head if it can, and the face.

    One that is longer than the area has the area in its middle.
    """
    first, last = area
    if length > last - first:
        return first - (length - (last - first)) // 2
    begin = round(start)
    for low, high in (head, face):
        if high - low <= length:
            begin = min(max(begin, high - length), low)
    return min(max(begin, first), last - length)
