"""What moves once the camera is taken out: the head over the scene, the person, and the background.

Letters: T frames, K the frames of a window, F faces, h and w the small picture's height and width.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from curation.measures.camera import around, moved, people
from curation.measures.speed import mean, slopes, windows

STRIDE = 3
"""Frames from one picture to the next that flow is taken between, 8.3 a second at 25: as VBench's dynamic degree, which
looks at 8 a second. A flow's error, some tenths of a pixel, then counts a third."""
_REPEATED = cv2.BORDER_REPLICATE
LEAST_AREA = 0.01
"""Share of the picture that a region has to have for its flow to be known."""


def head_travel(centres_T2: np.ndarray, heights_T: np.ndarray, steps_T33: np.ndarray, fps: float) -> float:
    """Mean speed of a face's centre over the scene, the camera's motion removed: face heights per second.

    Where the face was in the frames around is moved along with the background first; a speed is as in
    measures/speed.py, over five frames. A head that keeps its place in the picture while the camera pans with it
    travels over the scene.

    centres_T2: frame heights from the picture's centre (`camera.to_heights`), NaN where the face is lost.
    heights_T: the face's height, frame heights. steps_T33: as `Camera.see` returns them.
    NaN when nowhere three of five neighbouring frames have both a face and a camera step.
    """
    around_TK33 = around(steps_T33)
    paths_TK2 = moved(around_TK33, windows(centres_T2))
    speeds_T = np.linalg.norm(slopes(paths_TK2), axis=1) * fps
    return mean(speeds_T / heights_T)


@dataclass(frozen=True)
class FlowMotion:
    """Mean magnitude of what flow is left, frame heights/s, in the person and outside all people; NaN if unknown."""

    subject: float
    background: float


class Flow:
    """Watches what of a clip's pictures moves otherwise than the camera makes it."""

    def __init__(self) -> None:
        self._dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self._seen = 0
        self._before = (np.zeros((0, 0), np.uint8), np.zeros((0, 4)))
        self._steps_33 = np.eye(3)
        self._speeds: list[tuple[float, float]] = []

    def see(self, grey_hw: np.ndarray, boxes_F4: np.ndarray, step_33: np.ndarray) -> None:
        """Look at the clip's next picture.

        grey_hw: as `camera.small` makes it. boxes_F4: everybody's faces, pixels of grey_hw, the subject's first; NaN
        for one that is lost, and then nobody knows what is background; no rows where nobody is there.
        step_33: what `Camera.see` returned for this picture.
        """
        self._steps_33 = step_33 @ self._steps_33
        if self._seen % STRIDE == 0:
            if self._seen > 0:
                self._speeds.append(self._residual(grey_hw))
            self._before, self._steps_33 = (grey_hw, boxes_F4), np.eye(3)
        self._seen += 1

    def motion(self, fps: float) -> FlowMotion:
        """Means over the clip so far. fps: of the pictures seen."""
        speeds_S2 = np.array(self._speeds).reshape(-1, 2) * fps / STRIDE
        return FlowMotion(subject=mean(speeds_S2[:, 0]), background=mean(speeds_S2[:, 1]))

    def _residual(self, later_hw: np.ndarray) -> tuple[float, float]:
        """Mean flow in the subject and in the background, frame heights, once the camera's motion is undone."""
        before_hw, boxes_F4 = self._before
        if not np.isfinite(self._steps_33).all():
            return float("nan"), float("nan")
        shape = before_hw.shape
        # The later picture as the camera would have seen it from where it was before.
        pixels_23, back = _in_pixels(self._steps_33, shape), cv2.WARP_INVERSE_MAP
        size, whole_hw = shape[::-1], np.ones(shape, np.uint8)
        steady_hw = cv2.warpAffine(later_hw, pixels_23, size, flags=cv2.INTER_LINEAR | back, borderMode=_REPEATED)
        seen_hw = cv2.warpAffine(whole_hw, pixels_23, size, flags=cv2.INTER_NEAREST | back) > 0
        flow_hw2 = self._dis.calc(before_hw, steady_hw, np.zeros((*shape, 2), np.float32))
        # Not cv2.magnitude: its last bit depends on where in memory the picture lies.
        speed_hw = np.sqrt(np.square(flow_hw2, dtype=np.float64).sum(axis=2))
        everybody = bool(np.isfinite(boxes_F4).all())
        subject = _mean_in(speed_hw, seen_hw & people(boxes_F4[:1], shape))
        background = _mean_in(speed_hw, seen_hw & ~people(boxes_F4, shape)) if everybody else float("nan")
        return subject / shape[0], background / shape[0]


def _in_pixels(matrix_33: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A similarity of frame heights as one of pixels, [2, 3]."""
    centre = (np.array(shape[1::-1]) - 1) / 2
    shift = matrix_33[:2, 2] * shape[0] + centre - matrix_33[:2, :2] @ centre
    return np.concatenate([matrix_33[:2, :2], shift[:, None]], axis=1)


def _mean_in(values_hw: np.ndarray, region_hw: np.ndarray) -> float:
    if region_hw.mean() < LEAST_AREA:
        return float("nan")
    return float(values_hw[region_hw].mean())
