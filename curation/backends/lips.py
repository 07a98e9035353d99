"""Whether a mouth says what is heard, and how many frames apart: the built-in score, with the shipped parameters.

The model is in curation/measures/lips.py; `curation/fit_lips.py` made the parameters and makes others. Cheap beside
the landmarks, which other measures need anyway: per frame 0.5 ms of Whisper's first two blocks, 0.03 ms the rest.

T: frame at 25 fps. D: number of the mouth. K: component. N: sample at 16 kHz. H, W, C: picture.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from curation.backends.faces import CenterFace, Face
from curation.backends.landmarks import BLENDSHAPES, Landmarker
from curation.measures import lips
from curation.measures.lips import LipModel, LipScore
from curation.measures.sound import level
from model import media
from model.encoders.speech import WhisperEncoder
from model.media import Span

SHIPPED = Path(__file__).with_name("lip_sync.npz")
BLOCKS = 2
"""Of the encoder: the states behind the second know the sounds; later ones know the words."""
SHORTEST = 2.0
SEEN, SPEECH = 0.9, 0.5
SILENCE = -60.0
"""dBFS below which there is nothing to hear."""
EVERY, LOST = 5, 10
"""Frames between two searches for the face; frames from the nearest find at which it counts as lost."""


class ParametersError(Exception):
    """A file of parameters that cannot be used: which, why, what to do."""


class LipSync:
    """Scores mouths against sound.

    To score several people against one sound, `hear` it once and `compare` each with it.
    """

    def __init__(self, encoder: WhisperEncoder, parameters: Path = SHIPPED) -> None:
        """encoder: of Whisper tiny.en. parameters: as `save` writes them; raises ParametersError for others."""
        self._encoder = encoder
        self.model = load(parameters)

    def __call__(self, mouth_TD: np.ndarray, waveform_N: np.ndarray, speech: float = 1.0) -> LipScore | str:
        """The score of a mouth (see `mouth_features`) and the sound from its first frame on, or why there is none.

        speech: share of the time in which somebody speaks, 0..1.
        """
        return self.compare(mouth_TD, self.hear(waveform_N), speech)

    def hear(self, waveform_N: np.ndarray) -> np.ndarray | str:
        """The sound as `compare` wants it: [T, K], or why it cannot be scored."""
        loud = level(waveform_N)
        if loud < SILENCE:
            return f"sound silent ({loud:.0f} dBFS)"
        return lips.sound_components(self._encoder(waveform_N, BLOCKS)[BLOCKS], self.model)

    def compare(self, mouth_TD: np.ndarray, heard: np.ndarray | str, speech: float = 1.0) -> LipScore | str:
        """The score of a mouth and a sound that was heard, or why there is none."""
        if isinstance(heard, str):
            return heard
        if (seconds := min(len(mouth_TD), len(heard)) / lips.FPS) < SHORTEST:
            return f"shorter than {SHORTEST:g} s ({seconds:.2f} s)"
        if (seen := lips.seen_share(mouth_TD)) < SEEN:
            return f"landmarks in {seen:.0%} of the frames, {SEEN:.0%} needed"
        if speech < SPEECH:
            return f"speech in {speech:.0%} of the time, {SPEECH:.0%} needed"
        return lips.compare(lips.mouth_components(mouth_TD, self.model), heard, self.model.weights_K)


# --- the parameters' file -------------------------------------------------------------------------------------


def load(parameters: Path) -> LipModel:
    """The model in a file of `save`. Raises ParametersError when there is none."""
    try:
        with np.load(parameters, allow_pickle=False) as file:
            return LipModel(**{field.name: file[field.name] for field in dataclasses.fields(LipModel)})
    except (OSError, KeyError, ValueError) as error:
        raise ParametersError(f"{parameters}: no lip parameters; curation/fit_lips.py makes them ({error})") from error


def save(parameters: Path, model: LipModel, recordings: Sequence[str], offsets: Sequence[int]) -> None:
    """Write a model as float32, with the names of the recordings it was fitted on and the offsets found in them."""
    arrays = {name: array.astype(np.float32) for name, array in vars(model).items()}
    with parameters.open("wb") as file:
        np.savez(file, recordings=np.array(recordings), offsets=np.array(offsets, np.int32), **arrays)


# --- the mouth in a video -------------------------------------------------------------------------------------


def watch(video: Path, detector: CenterFace, landmarker: Landmarker, span: Span | None = None) -> np.ndarray:
    """The mouth of the largest face in a video, frame by frame: [T, MOUTH], NaN where it is not seen.

    The face is searched for every fifth frame and taken to move evenly between. Decodes the video twice: whole
    frames of a clip in memory would be gigabytes. Raises MediaError when the video cannot be read.
    """
    span = span or Span(Fraction(0), media.probe(video).duration)
    sparse = media.frames(video, span, Fraction(lips.FPS, EVERY))
    boxes = interpolated([largest(detector(image), image.shape) for image in sparse], EVERY)
    points_TP3, shapes_TB = [], []
    nothing = np.full((478, 3), np.nan, np.float32), np.full(len(BLENDSHAPES), np.nan, np.float32)
    for image, box in zip(media.frames(video, span, Fraction(lips.FPS)), boxes, strict=False):
        found = landmarker(image, tuple(box))
        points, shapes = (found.points_P3, found.blendshapes) if found else nothing
        points_TP3.append(points)
        shapes_TB.append(shapes)
    if not points_TP3:
        return np.zeros((0, lips.MOUTH))
    return lips.mouth_features(np.stack(points_TP3), np.stack(shapes_TB))


def largest(faces: Sequence[Face], shape: Sequence[int]) -> np.ndarray:
    """Box of the largest face, pixels: left, top, right, bottom; NaN without one. shape: of the picture."""
    if not faces:
        return np.full(4, np.nan)
    face = max(faces, key=lambda face: (face.right - face.left) * (face.bottom - face.top))
    height, width = shape[:2]
    return np.array([face.left * width, face.top * height, face.right * width, face.bottom * height])


def interpolated(boxes: Sequence[np.ndarray], every: int) -> np.ndarray:
    """Boxes seen every few frames as boxes of every frame, [T, 4]; NaN further than LOST from one seen."""
    frames = np.arange(len(boxes) * every)
    seen = np.array([n * every for n, box in enumerate(boxes) if np.isfinite(box).all()])
    if len(seen) == 0:
        return np.full((len(frames), 4), np.nan)
    found_T4 = np.stack([box for box in boxes if np.isfinite(box).all()])
    result_T4 = np.stack([np.interp(frames, seen, side) for side in found_T4.T], axis=1)
    result_T4[np.abs(frames[:, None] - seen).min(axis=1) > LOST] = np.nan
    return result_T4
