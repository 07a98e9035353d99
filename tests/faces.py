"""The networks that tests of faces share, loaded once, and what they say of the surest face of a picture."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from model import weights
from model.encoders.detect import CenterFace
from model.encoders.face import DlibFace


@functools.cache
def encoder() -> DlibFace:
    return DlibFace(weights.path("dlib-face"))


@functools.cache
def finder() -> CenterFace:
    return CenterFace(weights.path("centerface"))


def points(image_HWC: np.ndarray) -> np.ndarray:
    """Five points [5, 2] of the surest face, pixels. image_HWC: uint8 RGB."""
    height, width = image_HWC.shape[:2]
    return np.array(finder()(image_HWC)[0].points) * [width, height]


def vectors(images: Iterable[np.ndarray]) -> np.ndarray:
    """The vectors [K, 128] of the surest face of each picture."""
    return np.stack([encoder()(image_HWC, points(image_HWC)) for image_HWC in images])


def read(file: Path) -> np.ndarray:
    """A picture file, uint8 [H, W, 3] RGB."""
    return np.ascontiguousarray(cv2.imread(str(file))[..., ::-1])
