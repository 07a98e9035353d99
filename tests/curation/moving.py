"""Clips whose camera and head move by known amounts, composed from real pictures.

A camera's path is what happens to the background: where its points go. Picture coordinates as in measures/camera.py:
frame heights from the centre, x to the right, y down, turns clockwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import cv2
import numpy as np

from curation.measures.camera import Camera, CameraMotion, camera_motion, small, to_heights
from curation.measures.motion import Flow, FlowMotion, head_travel
from model import weights
from model.media import Span, frames

FPS = 25


@dataclass(frozen=True)
class Measured:
    camera: CameraMotion
    flow: FlowMotion
    travel: float
    steps_T33: np.ndarray


def still(name: str, second: int = 1) -> np.ndarray:
    """A picture of a film of the catalogue: uint8 [H, W, 3] RGB."""
    return next(frames(weights.path(name), Span(Fraction(second), Fraction(second + 1))))


def similarity(x: float = 0.0, y: float = 0.0, zoom: float = 1.0, roll: float = 0.0) -> np.ndarray:
    """[3, 3]: zoom and roll (degrees) about the centre, then a shift, frame heights."""
    cosine, sine = zoom * np.cos(np.radians(roll)), zoom * np.sin(np.radians(roll))
    return np.array([[cosine, -sine, x], [sine, cosine, y], [0, 0, 1]])


def steady(seconds: float, x: float = 0.0, y: float = 0.0, zoom: float = 0.0, roll: float = 0.0) -> list[np.ndarray]:
    """A path at constant speed. x, y: frame heights/s; zoom: %/s; roll: degrees/s."""
    times = np.arange(round(seconds * FPS)) / FPS
    return [similarity(x * t, y * t, np.exp(zoom / 100 * t), roll * t) for t in times]


def shown(image_HWC: np.ndarray, where_33: np.ndarray, fill: int = cv2.BORDER_REFLECT) -> np.ndarray:
    """The picture moved; beyond its edges it goes on mirrored."""
    height, width = image_HWC.shape[:2]
    to_33 = np.array([[height, 0, (width - 1) / 2], [0, height, (height - 1) / 2], [0, 0, 1]])
    pixels_33 = to_33 @ where_33 @ np.linalg.inv(to_33)
    return cv2.warpAffine(image_HWC, pixels_33[:2], (width, height), flags=cv2.INTER_CUBIC, borderMode=fill)


@dataclass(frozen=True)
class Head:
    """A head cut out of a picture. alpha_HW1: float, 1 in it. box: left, top, right, bottom, pixels."""

    image_HWC: np.ndarray
    alpha_HW1: np.ndarray
    box: np.ndarray

    @staticmethod
    def cut(image_HWC: np.ndarray, box: Sequence[float], shape: tuple[int, int]) -> Head:
        """The head around a face box, in the middle of an empty picture of that height and width."""
        left, top, right, bottom = box
        middle, tall = ((left + right) / 2, (top + bottom) / 2), bottom - top
        shift = np.array([[1, 0, (shape[1] - 1) / 2 - middle[0]], [0, 1, (shape[0] - 1) / 2 - middle[1]]])
        alpha_HW = np.zeros(image_HWC.shape[:2], np.float32)
        axes = (round(0.5 * tall), round(0.68 * tall))
        cv2.ellipse(alpha_HW, (round(middle[0]), round(middle[1] - 0.06 * tall)), axes, 0, 0, 360, 1.0, -1)
        alpha_HW = cv2.GaussianBlur(alpha_HW, (0, 0), 1.5)
        image_HWC, alpha_HW = (cv2.warpAffine(a, shift, shape[::-1]) for a in (image_HWC, alpha_HW))
        return Head(image_HWC, alpha_HW[..., None], np.array(box) + np.tile(shift[:, 2], 2))

    def over(self, background_HWC: np.ndarray, where_33: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The head, moved, before a background; and its box there."""
        face_HWC = shown(self.image_HWC, where_33, cv2.BORDER_CONSTANT)
        alpha_HW1 = shown(self.alpha_HW1, where_33, cv2.BORDER_CONSTANT)[..., None]
        image_HWC = alpha_HW1 * face_HWC + (1 - alpha_HW1) * background_HWC
        corners_22 = to_heights(self.box.reshape(2, 2), face_HWC.shape) @ where_33[:2, :2].T + where_33[:2, 2]
        box = corners_22 * face_HWC.shape[0] + (np.array(face_HWC.shape[1::-1]) - 1) / 2
        return np.clip(image_HWC, 0, 255).astype(np.uint8), box.ravel()


def composed(
    background_HWC: np.ndarray, head: Head, camera: Sequence[np.ndarray], path: Sequence[np.ndarray]
) -> tuple[list[np.ndarray], np.ndarray]:
    """A head before a background: pictures, and boxes [T, 4].

    camera: where the background goes in the picture. path: where the head goes in the picture.
    """
    made = [head.over(shown(background_HWC, there), here) for there, here in zip(camera, path, strict=True)]
    return [image for image, _ in made], np.array([box for _, box in made])


def measured(images: Sequence[np.ndarray], boxes_T4: np.ndarray | None = None) -> Measured:
    """Everything that these pictures' motion gives, as `score` asks for it. boxes_T4: without them, nobody is there."""
    camera, flow, steps = Camera(), Flow(), []
    shape = images[0].shape
    for index, image_HWC in enumerate(images):
        grey_hw = small(cv2.cvtColor(image_HWC, cv2.COLOR_RGB2GRAY))
        boxes_F4 = np.empty((0, 4)) if boxes_T4 is None else boxes_T4[index, None] * grey_hw.shape[0] / shape[0]
        steps.append(camera.see(grey_hw, boxes_F4))
        flow.see(grey_hw, boxes_F4, steps[-1])
    steps_T33 = np.array(steps)
    boxes_T4 = np.full((len(images), 4), np.nan) if boxes_T4 is None else boxes_T4
    centres_T2 = to_heights((boxes_T4[:, :2] + boxes_T4[:, 2:]) / 2, shape)
    heights_T = (boxes_T4[:, 3] - boxes_T4[:, 1]) / shape[0]
    travel = head_travel(centres_T2, heights_T, steps_T33, FPS)
    return Measured(camera_motion(steps_T33, FPS), flow.motion(FPS), travel, steps_T33)


def noisy(images: Sequence[np.ndarray], deviation: float) -> list[np.ndarray]:
    """The pictures with fresh noise in every one, grey levels."""
    random = np.random.default_rng(0)
    return [np.clip(i + random.normal(0, deviation, i.shape), 0, 255).astype(np.uint8) for i in images]
