"""One pass over a clip's pictures: who is on show, the camera, the light. What scoring is made from."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np

from curation.backends.landmarks import Landmarker
from curation.backends.text import TextDetector
from curation.backends.tracks import Sight
from curation.measures import picture
from curation.measures.camera import Camera, small
from curation.measures.fingerprint import thumbnail
from curation.measures.motion import Flow, FlowMotion
from curation.stages.cast import Cast
from model.encoders.face import FaceEncoder

FPS = 25
TEXT_EVERY = 100
"""Frames from one look for writing to the next."""
SHARP_EVERY = 25
"""Frames from one measurement of sharpness to the next."""


class Viewing:
    """Watches a clip frame by frame."""

    def __init__(
        self,
        frames: int,
        landmarks: Landmarker,
        recognise: FaceEncoder,
        samples: int,
        text: TextDetector | None = None,
        crops: bool = False,
    ) -> None:
        """frames: about how many there will be. samples: how many embeddings of a face are wanted over them.

        text: what looks for writing, if wanted. crops: whether SyncNet is to see the faces.
        """
        due = [int((sample + 0.5) * frames / samples) for sample in range(samples)]
        self.cast = Cast(landmarks, recognise, due, crops)
        self.shape = (0, 0)
        self.sharpness: list[float] = []
        self.thumbnails: list[np.ndarray] = []
        self.text: list[float] = []
        self._text = text
        self._camera, self._flow = Camera(), Flow()
        self._steps: list[np.ndarray] = []
        self._luminance: list[float] = []
        self._brightest_hw: np.ndarray | None = None

    def see(self, image_HWC: np.ndarray, sights: Mapping[int, Sight]) -> None:
        """The next frame, uint8 RGB, and the faces in it by the number of their track."""
        index = self.cast.count
        self.shape = image_HWC.shape[:2]
        self.cast.see(image_HWC, sights)
        luma_HW = cv2.cvtColor(image_HWC, cv2.COLOR_RGB2GRAY)
        if index % FPS == 0:
            self.thumbnails.append(thumbnail(luma_HW))
        if index % SHARP_EVERY == 0:
            self.sharpness.append(picture.sharpness(luma_HW))
            self.cast.sharpen(luma_HW)
            if self._text and index % TEXT_EVERY == 0:
                self.text.append(self._text(image_HWC))
        self._survey(luma_HW, self.cast.near_F4)

    @property
    def steps_T33(self) -> np.ndarray:
        """The camera's steps, as measures/camera.py has them."""
        return np.stack(self._steps) if self._steps else np.zeros((0, 3, 3))

    @property
    def luminance(self) -> float:
        """Mean luma of the frames, 0-255; NaN without any."""
        return float(np.mean(self._luminance)) if self._luminance else float("nan")

    @property
    def letterbox(self) -> float:
        """Share of the picture that is black bars; NaN where all of it is black."""
        return float("nan") if self._brightest_hw is None else picture.letterbox(self._brightest_hw)

    @property
    def flow(self) -> FlowMotion:
        """Motion of the subject and of the background."""
        return self._flow.motion(FPS)

    def _survey(self, luma_HW: np.ndarray, boxes_F4: np.ndarray) -> None:
        """Light, and motion of the camera and of what it shows; boxes: of people, the subject's first."""
        grey_hw = small(luma_HW)
        boxes_F4 = boxes_F4 * (np.array(grey_hw.shape[::-1] * 2) / np.array(luma_HW.shape[::-1] * 2))
        step_33 = self._camera.see(grey_hw, boxes_F4)
        self._flow.see(grey_hw, boxes_F4, step_33)
        self._steps.append(step_33)
        self._luminance.append(picture.luminance(grey_hw))
        before = grey_hw if self._brightest_hw is None else self._brightest_hw
        self._brightest_hw = np.maximum(before, grey_hw)
