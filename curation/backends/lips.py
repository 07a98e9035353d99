"""Whether a mouth says what is heard, and how many frames apart: the built-in score, with the shipped parameters.

The model is in curation/measures/lips.py; `curation/fit_lips.py` made the parameters and makes others. Cheap beside
the landmarks, which other measures need anyway: per frame 0.5 ms of Whisper's first two blocks, 0.03 ms the rest.

T: frame at 25 fps. D: number of the mouth. K: component. N: sample at 16 kHz.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from curation.measures import lips
from curation.measures.lips import LipModel, LipScore
from curation.measures.sound import level
from model.encoders.speech import WhisperEncoder

SHIPPED = Path(__file__).with_name("lip_sync.npz")
BLOCKS = 2
"""Of the encoder: the states behind the second know the sounds; later ones know the words."""
SHORTEST = 2.0
SEEN, SPEECH = 0.9, 0.5
SILENCE = -60.0
"""dBFS below which there is nothing to hear."""


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
