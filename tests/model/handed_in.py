"""What is handed in to be animated: a real picture, and sound files made on the spot."""

from __future__ import annotations

import functools
import wave
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from model import media, weights
from tests.faces import finder


@functools.cache
def man() -> np.ndarray:
    """A man who talks, uint8 [480, 640, 3] RGB."""
    film = weights.path("psychopy-jwpIntro")
    return next(media.frames(film, media.Span(Fraction(0), Fraction(1)), Fraction(1)))


@functools.cache
def close() -> np.ndarray:
    """His face in a square, of which it takes nine tenths of the height: no box of 3:2 inside holds it."""
    (face,) = (face.scaled(640, 480) for face in finder()(man()))
    side = round(face.height / 0.9)
    left, top = (round((start + end - side) / 2) for start, end in ((face.left, face.right), (face.top, face.bottom)))
    return man()[top : top + side, left : left + side]


def saved(image_HWC: np.ndarray, folder: Path, name: str = "face.png") -> Path:
    path = folder / name
    cv2.imwrite(str(path), image_HWC[..., ::-1])
    return path


def spoken(path: Path, samples_N: np.ndarray, rate: int = 16000) -> Path:
    """A sound file; of several channels, where samples are [N, channels]."""
    with wave.open(str(path), "wb") as out:
        out.setnchannels(samples_N[0].size)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes((samples_N * 32767).astype("<i2").tobytes())
    return path


def tone(samples: int, level: float = 0.3) -> np.ndarray:
    return (level * np.sin(np.arange(samples) * 0.1)).astype(np.float32)
