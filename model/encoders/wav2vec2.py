"""What is said, as vectors: wav2vec 2.0 (Baevski et al. 2020, arXiv 2006.11477), as Hallo and Hallo3 use it.

The waveform goes through the convolutions, which give 50 features a second; these are linearly interpolated to one a
frame of video, first on first and last on last; the transformer then works at that rate. The states after each of its
layers are what counts: 12 x 768 a frame for wav2vec2-base-960h.

N: sample. T: feature. F: frame of video. L: layer. D: width of a state.
"""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from model import pretrained

PUBLISHED = "facebook/wav2vec2-base-960h"
RATE = 16000
FPS = 25
SAMPLES = RATE // FPS
LONGEST = 60 * FPS
"""Frames encoded in one go; the transformer looks at all of them, and its memory grows with their square."""
OVERLAP = 2 * FPS
"""Frames computed beyond either end of a window and thrown away where longer sound is cut into windows."""


class Wav2Vec2:
    """Turns speech into the hidden states of a Wav2Vec2Model, one set a frame of video."""

    def __init__(self, place: Path, device: str | torch.device = "cpu") -> None:
        """place: a folder with config.json, model.safetensors and, if it is there, preprocessor_config.json.

        Raises PretrainedError when the folder holds something else.
        """
        from transformers import Wav2Vec2Model

        # The masking vector is of use in training alone, and not every file has it.
        self.network: Any = pretrained.network(Wav2Vec2Model, place, spare=["masked_spec_embed"]).to(device)
        self.name = "wav2vec2"
        self.layers: int = self.network.config.num_hidden_layers
        self.dim: int = self.network.config.hidden_size
        self.normalise = _normalises(place)

    @torch.no_grad()
    def frames(self, waveform_N: np.ndarray, frames: int) -> np.ndarray:
        """The states after each layer of the transformer: float32 [frames, layers, dim].

        waveform_N: float32 at 16 kHz, mono; frame f hears the 640 samples from 640 f on, and the context. Missing
        sound is silence, more than `frames` need is not heard. Up to a minute is encoded in one go, 0.5 GB for the
        base model; longer sound in windows of that length, so memory does not grow with it.
        """
        heard_N = np.asarray(waveform_N, np.float32)[: frames * SAMPLES]
        if self.normalise and len(heard_N):
            heard_N = (heard_N - heard_N.mean()) / np.sqrt(heard_N.var() + 1e-7)
        sound_N = torch.zeros(frames * SAMPLES)
        sound_N[: len(heard_N)] = torch.from_numpy(heard_N)
        states_FLD = np.zeros((frames, self.layers, self.dim), np.float32)
        for first, last in windows(frames):
            before, behind = max(0, first - OVERLAP), min(last + OVERLAP, frames)
            window_FLD = self._states(sound_N[before * SAMPLES : behind * SAMPLES], behind - before)
            states_FLD[first:last] = window_FLD[first - before : last - before].cpu().numpy()
        return states_FLD

    def _states(self, sound_N: torch.Tensor, frames: int) -> torch.Tensor:
        """[frames, layers, dim] of one window."""
        features_1DT = self.network.feature_extractor(sound_N[None].to(self.network.device))
        features_1DF = F.interpolate(features_1DT, size=frames, mode="linear", align_corners=True)
        projected_1FD, _ = self.network.feature_projection(features_1DF.transpose(1, 2))
        states: list[torch.Tensor] = []
        hooks = [
            layer.register_forward_hook(lambda *call: states.append(call[-1])) for layer in self.network.encoder.layers
        ]
        try:
            self.network.encoder(projected_1FD)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.stack(states, dim=2)[0]


def windows(frames: int) -> list[tuple[int, int]]:
    """First and last (exclusive) frame of each window, as few and as even as their overlap allows."""
    if frames <= LONGEST:
        return [(0, frames)] if frames else []
    pieces = math.ceil(frames / (LONGEST - 2 * OVERLAP))
    return list(itertools.pairwise(round(piece * frames / pieces) for piece in range(pieces + 1)))


def _normalises(place: Path) -> bool:
    """Whether the network was taught on sound of zero mean and unit variance. Raises PretrainedError."""
    file = place / "preprocessor_config.json"
    try:
        settings = json.loads(file.read_text()) if file.exists() else {}
        rate, normalises = int(settings.get("sampling_rate", RATE)), bool(settings.get("do_normalize", True))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise pretrained.PretrainedError(f"{file}: cannot be read: {error}") from error
    if rate != RATE:
        raise pretrained.PretrainedError(f"{file}: made for sound at {rate} Hz; this code gives it {RATE}")
    return normalises
