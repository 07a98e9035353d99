"""What somebody hands in to be animated, looked at before hours go into it: a picture with a face, and speech.

H, W: rows and columns of a picture. N: sample of sound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from model import media
from model.crop import Crop, CropError, head_crop
from model.encoders.detect import CenterFace, Face
from model.encoders.speech import FPS, RATE

SHORTEST = 0.2
"""Seconds of sound below which nothing is said: five frames."""
SILENT = 1e-3
"""Level of the loudest frame, of full scale (-60 dB), below which sound is silence."""
SOUND_RATE = 48_000
"""Sample rate of the video's sound, Hz."""
_LOST = 0.9  # of the announced sound: where less than this share can be decoded, the file is damaged
_SMALL = 0.2  # face height as a share of the picture's: below, lips are a few pixels


class InputError(Exception):
    """A picture or a sound that cannot be animated: which, why, and what to do."""


@dataclass(frozen=True)
class Picture:
    """A picture, the one face in it that is animated, and the part of it that is shown.

    image_HW3: uint8 RGB, the whole picture; face: in its pixels. shown_HW3: the part, at the video's size.
    """

    image_HW3: np.ndarray
    face: Face
    box: Crop
    shown_HW3: np.ndarray

    @property
    def shown_face(self) -> np.ndarray:
        """The face in the part that is shown: left, top, right, bottom, pixels of the video."""
        face = self.face
        return self.box.place(np.array([face.left, face.top, face.right, face.bottom]))

    def remarks(self) -> list[str]:
        """What the person who handed it in should know of how it is used."""
        height, width = self.image_HW3.shape[:2]
        box, said = self.box, []
        wide = box.width - box.before - box.after  # of the picture itself
        if (wide, box.height) != (width, height):
            said.append(
                f"the picture is {width}x{height}; shown is {wide}x{box.height} around the face "
                f"(from {box.left + box.before},{box.top}), cut and not stretched"
            )
        if box.padded:
            said.append(
                f"it is too narrow for the video: {box.padded:.0%} of the width is black, left and right of it "
                "(pad=false refuses such pictures)"
            )
        if box.scale > 1:
            said.append(f"it is enlarged {box.scale:.2f} times: expect it soft")
        if self.face.height < _SMALL * box.height:
            share = self.face.height / box.height
            said.append(f"the face takes {share:.0%} of the height shown: a closer picture gives better lips")
        return said


@dataclass(frozen=True)
class Sound:
    """Speech. heard_N: float32 at 16 kHz, for the encoder; played_N: float32 at SOUND_RATE, for the video."""

    heard_N: np.ndarray
    played_N: np.ndarray

    @property
    def frames(self) -> int:
        """Frames of video that hold all of it: the last one may end in silence."""
        return -(-len(self.heard_N) * FPS // RATE)


def read_picture(path: Path) -> np.ndarray:
    """A picture file, upright by its own orientation mark, without transparency: uint8 [H, W, 3] RGB."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"image={path}: {error.strerror or error}") from error
    try:
        image_HW3 = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None
    except cv2.error as error:
        raise InputError(f"image={path}: cannot be read: {error.err}") from error
    if image_HW3 is None:
        raise InputError(f"image={path}: not a picture that can be read here; save it as .png or .jpg")
    return np.ascontiguousarray(image_HW3[..., ::-1])


def picture(
    path: Path, find: CenterFace, made: tuple[int, int], which: int = 0, upscale: bool = False, pad: bool = False
) -> Picture:
    """A picture file, checked and framed. made: width and height of the video.

    which: the face to animate, counted from the left from 1 on; 0: the only one. upscale: whether a picture with
    fewer pixels than the video may be enlarged. pad: whether one in which no part would do may be shown in its whole
    width between black sides. Raises InputError.
    """
    image_HW3 = read_picture(path)
    height, width = image_HW3.shape[:2]
    found = [face.scaled(width, height) for face in find(image_HW3)]
    face = _chosen(path, sorted(found, key=lambda face: face.left), which)
    box = _framed(face, width, height, made, upscale, pad)
    if box is None:
        raise InputError(f"image={path}: {_unframed(face, width, height, made, upscale, pad)}")
    return Picture(image_HW3, face, box, box.cut(image_HW3))


def _framed(face: Face, width: int, height: int, made: tuple[int, int], upscale: bool, pad: bool) -> Crop | None:
    """The part to show, as training clips are framed; None where there is none."""
    try:
        return head_crop(
            np.array([[face.left, face.top, face.right, face.bottom]]), width, height, made, upscale=upscale, pad=pad
        )
    except CropError:
        return None


def _unframed(face: Face, width: int, height: int, made: tuple[int, int], upscale: bool, pad: bool) -> str:
    """Why no part of a picture can be shown, and what to do."""
    ways = {"upscale=true": (True, pad), "pad=true": (upscale, True), "upscale=true pad=true": (True, True)}
    helping = [way for way, allowed in ways.items() if _framed(face, width, height, made, *allowed)]
    else_do = "".join(f", or {way}" for way in helping[:-1] or helping)  # the last one does where any does
    if enlarged := _framed(face, width, height, made, True, False):
        return (
            f"too small: of its {width}x{height} pixels {enlarged.width}x{enlarged.height} can be shown, "
            f"{made[0]}x{made[1]} are to be made; take a larger picture{else_do}"
        )
    return (
        f"{width}x{height} has no room for a {made[0]}:{made[1]} part with the whole face "
        f"({face.right - face.left:.0f}x{face.height:.0f}); take a wider picture{else_do}"
    )


def _chosen(path: Path, faces: Sequence[Face], which: int) -> Face:
    if not faces:
        raise InputError(f"image={path}: no face is found in it; take a picture that shows one from the front")
    if not which and len(faces) > 1:
        places = ", ".join(
            f"{n} at {(f.left + f.right) / 2:.0f},{(f.top + f.bottom) / 2:.0f}" for n, f in enumerate(faces, 1)
        )
        raise InputError(
            f"image={path}: shows {len(faces)} faces ({places}); say which with face=1 …, or cut the picture"
        )
    if which > len(faces):
        raise InputError(f"image={path}: face={which}, but it shows {len(faces)}")
    return faces[max(which, 1) - 1]


def sound(path: Path) -> Sound:
    """The sound of a sound or video file, checked. Raises InputError or MediaError."""
    found = media.probe(path).audio
    if found is None:
        raise InputError(f"audio={path}: has no sound that can be read")
    begin = max(Fraction(0), found.start)
    end = max(begin, found.start + found.duration)
    heard_N = media.audio(path, rate=RATE)
    if not np.isfinite(heard_N).all():
        raise InputError(f"audio={path}: damaged: holds samples that are no numbers; convert it again")
    announced = float(end)
    if len(heard_N) / RATE < _LOST * announced:
        raise InputError(
            f"audio={path}: damaged: {len(heard_N) / RATE:.2f} s of {announced:.2f} s can be decoded; "
            "fetch or convert it again"
        )
    if len(heard_N) < SHORTEST * RATE:
        raise InputError(f"audio={path}: {len(heard_N) / RATE:.2f} s of sound is too short; at least {SHORTEST} s")
    if loudest(heard_N) < SILENT:
        raise InputError(f"audio={path}: silent (nothing above {20 * np.log10(SILENT):.0f} dB): is it the right track?")
    span = media.Span(Fraction(0), Fraction(len(heard_N), RATE))
    return Sound(heard_N, media.audio(path, span, SOUND_RATE))


def loudest(heard_N: np.ndarray) -> float:
    """Root mean square of the loudest frame of sound at 16 kHz, of full scale."""
    step = RATE // FPS
    frames_TN = np.pad(heard_N, (0, -len(heard_N) % step)).reshape(-1, step)
    return float(np.sqrt(np.square(frames_TN, dtype=np.float64).mean(axis=1)).max())
